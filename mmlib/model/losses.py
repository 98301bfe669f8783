"""Symmetric InfoNCE between images and captions of a batch.

Shapes: B pairs, D width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

# Clamp of a learned 1/temperature at 100: Radford et al. 2021 (CLIP), section 2.5.
LOG_MAX_SCALE = math.log(100.0)


class InfoNCE(nn.Module):
    """Cross-entropy of cosine similarities over a temperature, both directions, averaged.

    van den Oord et al. 2018 (InfoNCE); the symmetric form is Radford et al. 2021, section 2.3.

    Args:
        temperature: the fixed temperature, or the first one of a learned temperature.
        learned: learn log(1/temperature), with 1/temperature clamped to 100; a fixed one may be higher.
        identity_positives: every caption of a row's image is a positive of it, and each positive is
            weighed against captions of other images alone (SINCERE: Feeney & Hughes 2023).
            Targets that are uniform over all of them (Khosla et al. 2020, L_out) would not do: rows
            of one image are alike, which makes that loss the very same as without the option.
            Off, only the pair itself is positive and the rest are negatives, even another caption of
            the same image (REFERENCE §3.8).

    Raises:
        ValueError: the temperature is not greater than 0.
    """

    def __init__(self, temperature: float = 0.07, learned: bool = False, identity_positives: bool = True):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, found {temperature}")
        log_scale = torch.tensor(-math.log(temperature))
        self.log_scale = nn.Parameter(log_scale, requires_grad=learned)
        self.identity_positives = identity_positives

    @property
    def temperature(self) -> float:
        """The temperature in use."""
        log_scale = self.log_scale.item()
        return math.exp(-min(log_scale, LOG_MAX_SCALE) if self.log_scale.requires_grad else -log_scale)

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, image_id_B: torch.Tensor
    ) -> torch.Tensor:
        """Mean loss in nats; ln B for B unrelated pairs.

        Computed in float32 whatever the precision of the embeddings: at bf16 a similarity has three
        decimal digits, which a temperature of 0.07 magnifies fourteen times.

        Args:
            image_BD: image embeddings, any norm.
            text_BD: caption embeddings, row b the caption of image row b.
            image_id_B: which image each row shows, to find captions of the same image.
        """
        with torch.autocast(image_BD.device.type, enabled=False):
            if self.log_scale.requires_grad:
                with torch.no_grad():  # the weight itself: a clamp in the graph has no gradient to return by
                    self.log_scale.clamp_(max=LOG_MAX_SCALE)
            image_BD, text_BD = (F.normalize(x.float(), dim=-1) for x in (image_BD, text_BD))
            sim_BB = self.log_scale.exp() * image_BD @ text_BD.T
            positive_BB = torch.eye(len(sim_BB), dtype=torch.bool, device=sim_BB.device)
            if self.identity_positives:
                positive_BB = image_id_B[:, None] == image_id_B[None, :]
            return (_one_direction(sim_BB, positive_BB) + _one_direction(sim_BB.T, positive_BB)) / 2


def _one_direction(sim_BB: torch.Tensor, positive_BB: torch.Tensor) -> torch.Tensor:
    """Mean over rows and their positives p of -log(e^p / (e^p + sum over the row's negatives n of e^n))."""
    # The lowest number, not -inf: a row without negatives then costs 0 and has a gradient of 0.
    lowest = torch.finfo(sim_BB.dtype).min
    negatives_B1 = sim_BB.masked_fill(positive_BB, lowest).logsumexp(1, keepdim=True)
    cost_BB = F.softplus(negatives_B1 - sim_BB)
    return ((cost_BB * positive_BB).sum(1) / positive_BB.sum(1)).mean()
