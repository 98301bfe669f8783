"""Optimizers, the course of the learning rate, and the moving average of the weights.

The learning rate is a function of the step alone, never of an optimizer's or scheduler's memory:
restoring a state cannot put an old rate back (REFERENCE §3.3).  A parameter group may run at a fixed
multiple of it, its `scale`.  State is matched by the names of parameters, so that a phase may train
more or fewer weights than its parent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn, optim
from torch.utils.checkpoint import checkpoint

from mmlib.config import OptimConfig

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3  # seconds, where there is an average

OPTIMIZERS = (
    optim.SGD, optim.AdamW, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad,
    optim.RMSprop, optim.Adafactor,
)  # fmt: skip
# One pass over the weights in place of several.  On a CPU too: 2 to 8 times as fast as a loop over
# tensors for 1 M and 30 M weights, to the same bits from run to run.
FUSED = ("adagrad", "adam", "adamw", "sgd")


def build_optimizer(
    config: OptimConfig, modules: Iterable[nn.Module], rate_of: Mapping[nn.Parameter, float]
) -> optim.Optimizer:
    """The config's optimizer over all trainable parameters; weight decay on matrices alone.

    Biases, norms and the temperature are not decayed; whatever has two dimensions or more is, tables of
    vectors (tokens, positions, slots) included.  Weight decay is decoupled from the gradient in adamw
    and adafactor (Loshchilov & Hutter 2019); in the others it is added to the gradient (L2), as torch has
    it.  Adafactor's rate is relative: a step is at most min(rate, 1/√step) · max(10⁻³, RMS of the
    weights) (Shazeer & Stern 2018, section 8).  sgd is Nesterov where there is momentum; rmsprop has
    it too.

    Every group has a `scale`, for the loop to set `lr` to scale · `learning_rate(…)`.  Modules should
    be on their device: adagrad makes its state here.

    Args:
        config: optimizer, rate, momentum, weight decay; under fp16 no fused kernel, since one that
            unscales gradients itself leaves none to clip.
        modules: their names of parameters must differ.
        rate_of: multiple of the learning rate by the parameter; 1 for those that are not in it.
    """
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = []
    for is_matrix, decay in ((True, config.weight_decay), (False, 0.0)):
        by_scale: dict[float, list[nn.Parameter]] = {}  # in the order of first appearance
        for parameter in trainable:
            if (parameter.ndim >= 2) is is_matrix:
                by_scale.setdefault(float(rate_of.get(parameter, 1.0)), []).append(parameter)
        groups += [
            {"params": parameters, "weight_decay": decay, "scale": scale, "lr": config.lr * scale}
            for scale, parameters in by_scale.items()
        ]
    options = {}
    if config.optimizer in ("sgd", "rmsprop"):
        options["momentum"] = config.momentum
    if config.optimizer == "sgd":
        options["nesterov"] = config.momentum > 0
    if config.optimizer in FUSED and config.precision != "fp16":
        options["fused"] = True
    if config.optimizer == "adafactor":  # alone in not choosing by device itself
        options["foreach"] = all(p.is_cuda for p in trainable)
    kind = next(kind for kind in OPTIMIZERS if kind.__name__.lower() == config.optimizer)
    return kind(groups, lr=config.lr, **options)


def rate_scales(
    encoder_blocks: Sequence[Iterable[nn.Parameter]], base_scale: float, layer_decay: float
) -> dict[nn.Parameter, float]:
    """Layer-wise decay: base_scale for the last block, layer_decay times less for each one before it.

    Clark et al. 2020 (ELECTRA), appendix; Bao et al. 2022 (BEiT), where what comes before the first
    block (embeddings, positions) is a block of its own.  A parameter of several blocks has the rate of
    the last of them.

    Args:
        encoder_blocks: their parameters, from input to output.
        base_scale: multiple of the learning rate for the last block.
        layer_decay: in (0, 1].
    """
    scales = {}
    for place, parameters in enumerate(encoder_blocks):
        scale = base_scale * layer_decay ** (len(encoder_blocks) - 1 - place)
        scales.update(dict.fromkeys(parameters, scale))
    return scales


def optimizer_names(optimizer: optim.Optimizer, modules: Iterable[nn.Module]) -> list[str]:
    """The name of each parameter, in the order of the optimizer's `state_dict()`; kept in checkpoints.

    Args:
        optimizer: from `build_optimizer`.
        modules: those that it was built for.
    """
    name_of = {parameter: name for module in modules for name, parameter in module.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def keep_optimizer_state(optimizer: optim.Optimizer, parent: Mapping, modules: Iterable[nn.Module]) -> None:
    """Takes over the parent's momentum and the like, and none of its settings.

    PyTorch keeps settings (lr, momentum, weight decay) in the same dict as the state; loading it
    whole would put the parent's back over those asked for.

    Args:
        optimizer: of the continued run.  Its parameters are found in the parent by name; those that the
            parent did not train start afresh, and what it alone trained is left behind.
        parent: checkpoint with the parent's `optimizer` (its `state_dict()`) and `optimizer_names`.
        modules: those that the optimizer was built for.
    """
    own, there = optimizer.state_dict(), parent["optimizer_names"]
    state_of = {name: parent["optimizer"]["state"].get(place) for place, name in enumerate(there)}
    state = dict(own["state"])  # adagrad has a state from the beginning
    for place, name in enumerate(optimizer_names(optimizer, modules)):
        if state_of.get(name):
            state[place] = state_of[name]
    if optimizer.defaults.get("momentum"):
        # A momentum of zero, from which a step is a first step: torch's fused SGD wants one of all weights
        # or of none, its RMSprop one in every state.
        for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            if isinstance(optimizer, optim.SGD) or place in state:
                state[place] = {"momentum_buffer": torch.zeros_like(parameter)} | state.get(place, {})
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def learning_rate(config: OptimConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one step.

    Cosine: lr·(f + (1 − f)·(1 + cos πt)/2), f the final fraction and t the share of the schedule
    that lies behind (Loshchilov & Hutter 2017, eq. 5, without restarts).  Per epoch, t moves in
    steps of 1/epochs, as the reference experiment does; the last epoch then runs slightly above
    the final rate.  Warm-up rises linearly from lr / (warm-up steps) over its first steps.

    Args:
        config: rate, schedule, warm-up and number of epochs of this phase.
        epoch: of this phase, from 0.
        step: of this epoch, from 0.
        steps: per epoch.
    """
    warm = config.warmup_epochs * steps
    done = epoch * steps + step
    if done < warm:
        return config.lr * min(1.0, (done + 1) / warm)
    if config.schedule == "constant":
        return config.lr
    if config.schedule_unit == "epoch":
        share = max(0.0, epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    else:
        share = (done - warm) / (config.epochs * steps - warm)
    low = config.final_lr_fraction
    return config.lr * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


def start_average(model: nn.Module) -> "ModelEmaV3":
    """A copy of the model, on its device, for `update_average`; its buffers follow those of the model."""
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(model, exclude_buffers=True)
    average.updates = 0
    return average


def update_average(average: "ModelEmaV3", model: nn.Module, decay: float) -> None:
    """average ← d·average + (1 − d)·weights after every step, d = min(decay, (1 + t)/(10 + t)).

    t counts the updates made before: d is 0.1, 0.18, 0.25, …  The share of the random first weights thus
    vanishes soon, where a decay of 0.9999 alone would keep it for tens of thousands of steps.
    The host does not wait for the device.

    Args:
        average: from `start_average`.
        model: the plain module.
        decay: the largest d, in [0, 1).
    """
    average.decay = min(decay, (1 + average.updates) / (10 + average.updates))
    average.update(model)
    average.updates += 1


def average_state(average: "ModelEmaV3") -> dict:
    """What a checkpoint keeps of an average: `updates`, and the trained weights by name."""
    trained = {name: p.detach() for name, p in average.module.named_parameters() if p.requires_grad}
    return {"updates": average.updates, "average": trained}


class Chunked(nn.Module):
    """Encodes a batch in chunks of which only the embeddings stay; the backward encodes each chunk again.

    The gradient is that of the whole batch, for one more forward, as in GradCache (Gao et al. 2021,
    section 3.2).  Dropout has the same masks both times.  Encoders must not depend on what else is in their
    chunk: batch norm would take its statistics from a chunk, and update the running ones twice.

    Args:
        model: images, captions and lengths of R pairs → embeddings (R, D) of images and of captions.
        chunk_size: pairs of a chunk.
    """

    def __init__(self, model: nn.Module, chunk_size: int):
        super().__init__()
        self.model, self.chunk_size = model, chunk_size

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the model's."""
        chunks = zip(*(x.split(self.chunk_size) for x in inputs))
        pairs = [checkpoint(self.model, *chunk, use_reentrant=False) for chunk in chunks]
        image_RD, text_RD = (torch.cat(parts) for parts in zip(*pairs))
        return image_RD, text_RD
