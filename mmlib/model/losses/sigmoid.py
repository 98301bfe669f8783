"""The sigmoid loss of SigLIP: every pair of the batch is a yes-or-no question of its own.

Shapes: R queries, B pairs of the whole batch.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mmlib.model.losses.base import Loss, log_scale_parameter


class SigmoidLoss(Loss):
    """−1/B · Σ_i Σ_j log σ(z_ij (t x_i·y_j + b)), z = +1 for positives and −1 for the rest.

    Zhai et al. 2023 (SigLIP), section 3.2 and Algorithm 1, cosine similarities x_i·y_j and t = exp(t').
    A pair (i, j) is met twice, as image i's caption and as caption j's image; each time half of its cost
    is counted, which makes the total that of the paper.

    Args:
        temperature: 1/t, fixed, or the first one of a learned temperature (SigLIP: 0.1).
        learned: learn t', without a clamp.
        bias: first value of b, which is always learned (SigLIP: −10): most pairs are negatives, and a
            bias of 0 would make the first steps a correction of that alone.
        identity_positives: captions of one image are positives of each of its rows.
            Off, only the pair itself is, and the rest are negatives.

    Raises:
        ValueError: the temperature is not greater than 0.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learned: bool = True,
        bias: float = -10.0,
        identity_positives: bool = True,
    ):
        super().__init__(identity_positives, share=0.5)
        self.log_scale = log_scale_parameter(temperature, learned)
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    @property
    def temperature(self) -> float:
        """The temperature in use, 1/t."""
        return math.exp(-self.log_scale.item())

    def _scale(self) -> torch.Tensor:
        return self.log_scale.exp()

    def _cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        logit_RB = sim_RB + self.bias
        return -F.logsigmoid(torch.where(positive_RB, logit_RB, -logit_RB)).sum(1)
