"""A moving average of the weights, which often retrieves better than the weights themselves.

Polyak & Juditsky 1992; the exponential form with its warm-up is that of TensorFlow's
`ExponentialMovingAverage`.  torch's own `AveragedModel` is not used: it counts on the device, which
makes the host wait at every step, and has no warm-up.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mmlib.training.checkpoint import misfits


class WeightAverage:
    """average ← d·average + (1 − d)·weights after every step, d = min(decay, (1 + t)/(10 + t)).

    t counts the updates made before: d is 0.1, 0.18, 0.25, …  The share of the random first weights thus
    vanishes soon, where a decay of 0.9999 alone would keep it for tens of thousands of steps.
    Weights that are not trained and buffers (running statistics) stay as the model has them.

    Args:
        model: the plain module, on its device; its weights are the first average.
        decay: the largest d, in [0, 1).

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), found {decay}")
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone() for name, p in _trained(model).items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights; the host does not wait for the device.

        Raises:
            RuntimeError: called inside `applied`, where the model's weights are the average itself.
        """
        if self._is_applied:
            raise RuntimeError("the average cannot be updated while it is applied: leave `applied` first")
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = _trained(model)
        torch._foreach_lerp_(list(self.average.values()), [weights[name] for name in self.average], 1 - decay)
        self.updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights; its own are back to the last bit afterwards.

        Values are copied and tensors stay where they are, so that what holds on to them (an optimizer,
        a compiled step, other processes) does not notice.

        Raises:
            RuntimeError: the average is applied already.
        """
        if self._is_applied:
            raise RuntimeError("the average is applied already: leave `applied` before entering it again")
        weights = _trained(model)
        own = {name: p.detach().clone() for name, p in weights.items()}
        _copy(self.average, weights)
        self._is_applied = True
        try:
            yield model
        finally:
            _copy(own, weights)
            self._is_applied = False

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
