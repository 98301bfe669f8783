"""Device, precision and processes of a training: who writes, what is gathered, what all decide together.

Several processes are started by torchrun, on one machine or several; without it there is one, and
everything here costs nothing.

Shapes: R rows of this process, B rows of all processes, D width.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from mmlib.config import ParameterError, TrainConfig
from mmlib.files import InUse

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
COMPILE_STEPS = 10_000  # a step gains some 10 ms by compiling, which itself takes about a minute


def build_fabric(config) -> "Fabric":
    """Device, precision and, under torchrun, the processes of this training.

    Raises:
        ParameterError: a GPU is asked for and there is none, fewer GPUs than processes, fp16 without a GPU,
            or a batch that the processes cannot share.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    # First, before one could wait for another that has left.
    gpus, everywhere = torch.cuda.device_count(), process_count()
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if everywhere > 1 else 1
    check_divides(getattr(config, "batch_size", everywhere), everywhere)
    if config.device == "cuda" and not gpus:
        raise ParameterError("device: expected a CUDA GPU, found none; use device='auto' or 'cpu'")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    precision = getattr(config, "precision", "fp32")
    if precision == "fp16" and device == "cpu":
        raise ParameterError("precision: fp16 needs a GPU, found a CPU; use bf16 or fp32")
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


_FAMILIES = (
    ParameterError, FileNotFoundError, FileExistsError, InUse, OSError, ValueError, RuntimeError, Exception
)  # fmt: skip


def process_count() -> int:
    """Number of processes that torchrun started for this training; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def check_divides(batch_size: int, processes: int) -> None:
    """Passes if every process gets the same share of a batch.

    Raises:
        ParameterError: names both numbers and the nearest batch sizes that would do.
    """
    if batch_size % processes:
        low = batch_size - batch_size % processes
        near = [str(size) for size in (low, low + processes) if size >= max(2, processes)]
        raise ParameterError(
            f"batch_size must be a multiple of the number of processes: found {batch_size} pairs for"
            f" {processes} processes; use {' or '.join(near)}, or another number of processes"
        )


def share(count: int, rank: int, processes: int) -> slice:
    """The rows of `count` that belong to a process: contiguous, sizes that differ by one at most."""
    small, larger = divmod(count, processes)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))


@contextlib.contextmanager
def all_or_none(fabric: "Fabric") -> Iterator[None]:
    """Ends a block in which the processes do not talk to each other: an error of one is an error of all.

    So none goes on to wait for one that has left, and all end with the same exit code.

    Raises:
        Exception: this process's own; or, of the same family, that of the first that has one.
    """
    error = None
    try:
        yield
    except Exception as own:
        error = own
    try:
        # their families, since not every error can be made from a text
        family = error and next(kind for kind in _FAMILIES if isinstance(error, kind))
        errors = all_gather_objects(fabric, error and (family, str(error)))
    except Exception as lost:
        raise error or lost from None
    if error:
        raise error
    for rank, theirs in enumerate(errors):
        if theirs:
            kind, text = theirs
            raise kind(f"process {rank} of {fabric.world_size}: {text}")


def has_lost_another(fabric: "Fabric", error: BaseException) -> bool:
    """Whether an error says that another process is gone, not that something is wrong in this one."""
    # gloo has no error of its own: its messages begin with the place in its source
    return fabric.world_size > 1 and (isinstance(error, dist.DistError) or "gloo/" in str(error))


def all_gather_objects(fabric: "Fabric", value: Any) -> list:
    """The values of all processes (any that can be pickled) by rank, in every process."""
    if fabric.world_size == 1:
        return [value]
    values = [None] * fabric.world_size
    dist.all_gather_object(values, value)
    return values


def all_gather_batch(fabric: "Fabric", x_RD: torch.Tensor, batch: int) -> torch.Tensor:
    """The rows of all processes in order, (B, …), with gradients for this one's from all losses.

    Args:
        fabric: of this process.
        x_RD: this process's `share` of a batch.
        batch: B.
    """
    if fabric.world_size == 1:
        return x_RD
    sizes = [len(range(batch)[share(batch, rank, fabric.world_size)]) for rank in range(fabric.world_size)]
    padding = x_RD.new_zeros(max(sizes) - len(x_RD), *x_RD.shape[1:])
    parts = fabric.all_gather(torch.cat([x_RD, padding]), sync_grads=True)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])


def sum_gradients(fabric: "Fabric", parameters: Iterable[nn.Parameter]) -> None:
    """Adds up gradients of weights that no wrapper keeps equal (those of the loss)."""
    for parameter in parameters if fabric.world_size > 1 else ():
        if parameter.grad is not None:
            # as the wrapper's mean does for the model's
            parameter.grad = fabric.all_reduce(parameter.grad, reduce_op="mean")
