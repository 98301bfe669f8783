"""Weights between two models: robust fine-tuning of pretrained encoders (WiSE-FT)."""

from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def interpolate_weights(start: Weights, end: Weights, share: float) -> dict[str, torch.Tensor]:
    """(1 − share)·start + share·end, for every weight that both have in one shape.

    Wortsman et al. 2022 (WiSE-FT), eq. 1: between the pretrained and the fine-tuned weights lie some
    that are better than either, on shifted data above all.  What only `end` has, what has another
    shape there, and whatever is not a floating-point number (counters, ids) is as in `end`.

    Args:
        start: state dict of the pretrained model or the parent.
        end: state dict of the trained model; its keys, dtypes and devices are those of the result.
        share: of `end`, in [0, 1]; 0 and 1 give the shared weights of one side to the last bit.

    Returns:
        A new state dict; no tensor of it is shared with the two.

    Raises:
        ValueError: the share is not in [0, 1], or the two have no weight in common.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the trained weights must be in [0, 1], found {share}")
    shared = {name for name in end if name in start and _fit(start[name], end[name])}
    if not shared:
        raise ValueError(
            "the weights cannot be interpolated: expected names and shapes in common, found"
            f" {_first_keys(start)} at the start and {_first_keys(end)} at the end"
        )
    return {
        name: _between(start[name], tensor, share) if name in shared else tensor.clone()
        for name, tensor in end.items()
    }


def _fit(start: torch.Tensor, end: torch.Tensor) -> bool:
    return start.is_floating_point() and end.is_floating_point() and start.shape == end.shape


def _between(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    if share in (0, 1):  # an infinite or tiny number on the other side must not show
        return (end if share else start).to(end, copy=True)
    wide = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    return torch.lerp(start.to(end.device, wide), end.to(wide), share).to(end.dtype)


def _first_keys(weights: Weights) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(weights.items())[:3]]
    return ", ".join(shown) + (f" and {len(weights) - 3} more" if len(weights) > 3 else "") or "none"
