"""Device, precision and processes of a training (Lightning Fabric), and whether its model is compiled."""

from typing import TYPE_CHECKING

import torch

from mmlib.config import ParameterError, TrainConfig
from mmlib.training.processes import process_count, processes_per_machine

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
COMPILE_STEPS = 10_000  # a step gains some 10 ms by compiling, which itself takes about a minute


def build_fabric(config) -> "Fabric":
    """Device, precision and, under torchrun, the processes of this training.

    Raises:
        ParameterError: a GPU is asked for and there is none, fewer GPUs than processes, or fp16 without
            a GPU.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    gpus = torch.cuda.device_count()
    if config.device == "cuda" and not gpus:
        raise ParameterError("device: expected a CUDA GPU, found none; use device='auto' or 'cpu'")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    precision = getattr(config, "precision", "fp32")
    if precision == "fp16" and device == "cpu":
        raise ParameterError("precision: fp16 needs a GPU, found a CPU; use bf16 or fp32")
    here, everywhere = processes_per_machine(), process_count()
    if device == "cuda" and here > gpus:
        raise ParameterError(
            f"expected a GPU for each of the {here} processes on this machine, found {gpus}; start fewer"
            " (--nproc_per_node), or use device='cpu'"
        )
    several = {}
    if everywhere > 1:
        # What gets no gradient: the networks of the test-time write, and a pretrained encoder's own pooling.
        unused = getattr(config, "memory_write", False) or getattr(config, "image_pooling", "") == "attention"
        several = {"strategy": DDPStrategy(find_unused_parameters=unused), "num_nodes": everywhere // here}
    fabric = Fabric(accelerator=device, devices=here, precision=PRECISION[precision], **several)
    if everywhere > 1:
        fabric.launch()
    return fabric


def compiles(config: TrainConfig, fabric: "Fabric", pairs: int) -> bool:
    """Whether the model is compiled; `auto` where the minute that compiling takes comes back.

    Args:
        config: of the run.
        fabric: its device.
        pairs: of an epoch.
    """
    if config.compile != "auto":
        return config.compile == "on"
    return fabric.device.type == "cuda" and pairs // config.batch_size * config.epochs >= COMPILE_STEPS
