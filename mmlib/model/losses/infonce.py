"""Symmetric InfoNCE between images and captions of a batch.

Shapes: R queries, B pairs of the whole batch.
"""

import math

import torch
from torch.nn import functional as F

from mmlib.model.losses.base import Loss, log_scale_parameter

# Clamp of a learned 1/temperature at 100: Radford et al. 2021 (CLIP), section 2.5.
LOG_MAX_SCALE = math.log(100.0)


class InfoNCE(Loss):
    """Cross-entropy of cosine similarities over a temperature, both directions, averaged.

    In nats: ln B for B unrelated pairs.  van den Oord et al. 2018 (InfoNCE); the symmetric form is
    Radford et al. 2021, section 2.3.

    Args:
        temperature: the fixed temperature, or the first one of a learned temperature.
        learned: learn log(1/temperature), with 1/temperature clamped to 100; a fixed one may be higher.
        identity_positives: every caption of a row's image is a positive of it, and each positive is
            weighed against captions of other images alone (SINCERE: Feeney & Hughes 2023).
            Targets that are uniform over all of them (Khosla et al. 2020, L_out) would not do: rows
            of one image are alike, which makes that loss the very same as without the option.
            Off, only the pair itself is positive and the rest are negatives, even another caption of
            the same image (REFERENCE §3.8).
        label_smoothing: ε; the target of a positive is 1 − ε on itself plus ε spread evenly over
            itself and its negatives (Szegedy et al. 2016, section 7).  The other positives of the row
            have no part in it, as they have none in the softmax of this one.

    Raises:
        ValueError: the temperature is not greater than 0, or the smoothing not in [0, 1).
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learned: bool = False,
        identity_positives: bool = True,
        label_smoothing: float = 0.0,
    ):
        super().__init__(identity_positives, share=0.5)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.log_scale = log_scale_parameter(temperature, learned)
        self.label_smoothing = label_smoothing

    @property
    def temperature(self) -> float:
        """The temperature in use."""
        log_scale = self.log_scale.item()
        return math.exp(-min(log_scale, LOG_MAX_SCALE) if self.log_scale.requires_grad else -log_scale)

    def _scale(self) -> torch.Tensor:
        if self.log_scale.requires_grad:
            with torch.no_grad():  # the weight itself: a clamp in the graph has no gradient to return by
                self.log_scale.clamp_(max=LOG_MAX_SCALE)
        return self.log_scale.exp()

    def _cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        """Mean over positives p of -log(e^p / (e^p + sum over the row's negatives n of e^n))."""
        # The lowest number, not -inf: a row without negatives then costs 0 and has a gradient of 0.
        lowest = torch.finfo(sim_RB.dtype).min
        negatives_R1 = sim_RB.masked_fill(positive_RB, lowest).logsumexp(1, keepdim=True)
        cost_RB = F.softplus(negatives_R1 - sim_RB)
        if self.label_smoothing:
            cost_RB = cost_RB + self.label_smoothing * (sim_RB - _mean_with_negatives(sim_RB, positive_RB))
        return (cost_RB * positive_RB).sum(1) / positive_RB.sum(1)


def _mean_with_negatives(sim_RB: torch.Tensor, positive_RB: torch.Tensor) -> torch.Tensor:
    """Mean of each entry and the negatives of its row."""
    sum_R1 = sim_RB.masked_fill(positive_RB, 0).sum(1, keepdim=True)
    return (sim_RB + sum_R1) / (1 + (~positive_RB).sum(1, keepdim=True))
