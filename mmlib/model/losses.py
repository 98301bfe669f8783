"""Symmetric InfoNCE between images and captions of a batch.

Shapes: B pairs, D width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

MAX_SCALE = 100.0  # clamp of a learned 1/temperature: Radford et al. 2021 (CLIP), section 2.5


class InfoNCE(nn.Module):
    """Cross-entropy of cosine similarities over a temperature, both directions, averaged.

    van den Oord et al. 2018 (InfoNCE); the symmetric form is Radford et al. 2021, section 2.3.

    Args:
        temperature: the fixed temperature, or the first one of a learned temperature.
        learned: learn log(1/temperature), with 1/temperature clamped to 100.
        identity_positives: captions of one image are positives of each other's image: the target is
            uniform over all of them, as in supervised contrastive learning (Khosla et al. 2020, L_out).
            Off, only the pair itself is positive and the rest are negatives, even another caption of
            the same image (REFERENCE §3.8).
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
        return 1 / min(math.exp(self.log_scale.item()), MAX_SCALE)

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
            scale = self.log_scale.exp().clamp(max=MAX_SCALE)
            sim_BB = scale * F.normalize(image_BD.float(), dim=-1) @ F.normalize(text_BD.float(), dim=-1).T
            if not self.identity_positives:
                target_B = torch.arange(len(sim_BB), device=sim_BB.device)
                return (F.cross_entropy(sim_BB, target_B) + F.cross_entropy(sim_BB.T, target_B)) / 2
            same_BB = (image_id_B[:, None] == image_id_B[None, :]).float()
            target_BB = same_BB / same_BB.sum(1, keepdim=True)
            return (F.cross_entropy(sim_BB, target_BB) + F.cross_entropy(sim_BB.T, target_BB)) / 2
