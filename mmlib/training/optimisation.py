"""Optimizers, the course of the learning rate, and the moving average of the weights.

The learning rate is a function of the step alone, never of an optimizer's or scheduler's memory:
restoring a state cannot put an old rate back (REFERENCE §3.3).  A parameter group may run at a fixed
multiple of it, its `scale`.  State is matched by the names of parameters, so that a phase may train
more or fewer weights than its parent.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from mmlib.config import OptimConfig
from mmlib.training.checkpoint import misfits

Rates = Mapping[nn.Parameter, float]
NamedParameters = list[tuple[str, nn.Parameter]]

# One pass over the weights in place of several.  On a CPU too: 2 to 8 times as fast as a loop over
# tensors for 1 M and 30 M weights, to the same bits from run to run.
FUSED = ("adagrad", "adam", "adamw", "sgd")


def build_optimizer(config: OptimConfig, modules: Iterable[nn.Module], rate_of: Rates) -> Optimizer:
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

    Raises:
        ValueError: nothing is trainable, or two parameters have one name.
    """
    trainable = _trainable(modules)
    groups = _groups(trainable, config, rate_of)
    make = _maker(config)
    if config.optimizer in FUSED and config.precision != "fp16":
        return make(groups, lr=config.lr, fused=True)
    if config.optimizer == "adafactor":  # alone in not choosing by device itself
        return make(groups, lr=config.lr, foreach=all(p.is_cuda for _, p in trainable))
    return make(groups, lr=config.lr)


def _maker(config: OptimConfig) -> Callable[..., Optimizer]:
    optim, momentum = torch.optim, config.momentum
    return {
        "sgd": partial(optim.SGD, momentum=momentum, nesterov=momentum > 0),
        "adamw": optim.AdamW,
        "adam": optim.Adam,
        "nadam": optim.NAdam,
        "radam": optim.RAdam,
        "adamax": optim.Adamax,
        "adagrad": optim.Adagrad,
        "rmsprop": partial(optim.RMSprop, momentum=momentum),
        "adafactor": optim.Adafactor,
    }[config.optimizer]


def _trainable(modules: Iterable[nn.Module]) -> NamedParameters:
    trainable = [(name, p) for name, p in _named(modules).items() if p.requires_grad]
    if not trainable:
        raise ValueError("nothing to train: expected parameters that require a gradient, found none")
    return trainable


def _named(modules: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    names: dict[str, nn.Parameter] = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            if names.setdefault(name, parameter) is not parameter:
                raise ValueError(f"two parameters have the name {name!r}: expected different names")
    return names


def _groups(trainable: NamedParameters, config: OptimConfig, rate_of: Rates) -> list[dict]:
    """Matrices before the rest, each by scale in the order of first appearance."""
    groups = []
    for is_matrix, decay in ((True, config.weight_decay), (False, 0.0)):
        by_scale: dict[float, list[nn.Parameter]] = {}
        for _, parameter in trainable:
            if (parameter.ndim >= 2) is is_matrix:
                by_scale.setdefault(float(rate_of.get(parameter, 1.0)), []).append(parameter)
        groups += [
            {"params": parameters, "weight_decay": decay, "scale": scale, "lr": config.lr * scale}
            for scale, parameters in by_scale.items()
        ]
    return groups


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


def optimizer_names(optimizer: Optimizer, modules: Iterable[nn.Module]) -> list[str]:
    """The name of each parameter, in the order of the optimizer's `state_dict()`; kept in checkpoints.

    Args:
        optimizer: from `build_optimizer`.
        modules: those that it was built for.
    """
    name_of = {parameter: name for name, parameter in _named(modules).items()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def keep_optimizer_state(optimizer: Optimizer, parent: Mapping, modules: Iterable[nn.Module]) -> None:
    """Takes over the parent's momentum and the like, and none of its settings.

    PyTorch keeps settings (lr, momentum, weight decay) in the same dict as the state; loading it
    whole would put the parent's back over those asked for.

    Args:
        optimizer: of the continued run.  Its parameters are found in the parent by name; those that the
            parent did not train start afresh, and what it alone trained is left behind.
        parent: checkpoint with the parent's `optimizer` (its `state_dict()`) and `optimizer_names`.
        modules: those that the optimizer was built for.
    """
    own = optimizer.state_dict()
    names = optimizer_names(optimizer, modules)
    there = parent["optimizer_names"]
    state_of = {name: parent["optimizer"]["state"].get(place) for place, name in enumerate(there)}
    state = dict(own["state"])  # adagrad has a state from the beginning
    state |= {place: state_of[name] for place, name in enumerate(names) if state_of.get(name)}
    _complete_momentum(optimizer, state)
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _complete_momentum(optimizer: Optimizer, state: dict[int, dict]) -> None:
    """Adds a momentum of zero, from which a step is a first step, where torch would miss one.

    Its fused SGD wants a momentum of all weights or of none, its RMSprop one in every state.
    """
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    has_momentum = isinstance(optimizer, torch.optim.SGD | torch.optim.RMSprop)
    if not has_momentum or not optimizer.defaults["momentum"]:
        return
    for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if is_sgd or place in state:
            state[place] = {"momentum_buffer": torch.zeros_like(parameter)} | state.get(place, {})


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


class WeightAverage:
    """average ← d·average + (1 − d)·weights after every step, d = min(decay, (1 + t)/(10 + t)).

    t counts the updates made before: d is 0.1, 0.18, 0.25, …  The share of the random first weights thus
    vanishes soon, where a decay of 0.9999 alone would keep it for tens of thousands of steps.
    Weights that are not trained and buffers (running statistics) stay as the model has them.

    Args:
        model: the plain module, on its device; its weights are the first average.
        decay: the largest d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights; the host does not wait for the device."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = _trained(model)
        torch._foreach_lerp_(list(self.average.values()), [weights[name] for name in self.average], 1 - decay)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights; its own are back to the last bit afterwards.

        Values are copied and tensors stay where they are, so that what holds on to them (an optimizer,
        a compiled step, other processes) does not notice.
        """
        weights = _trained(model)
        own = {name: p.detach().clone() for name, p in weights.items()}
        _copy(self.average, weights)
        try:
            yield model
        finally:
            _copy(own, weights)

    def state_dict(self) -> dict:
        """All that the next update depends on, the decay aside.

        Returns:
            `updates`, and `average`: the averaged weights by their names in the model's `state_dict()`,
            which has the rest.
        """
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict()` was taken.

        Raises:
            ValueError: the state is of other weights; names the first ones.
        """
        if wrong := misfits(state["average"], self.average):
            raise ValueError(f"the averaged weights do not fit the model: {wrong}")
        _copy(state["average"], self.average)
        self.updates = state["updates"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
