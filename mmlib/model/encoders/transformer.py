"""The text encoder of the reference experiment: a transformer over token ids, trained from scratch.

Shapes: B captions, L tokens, D width.
Its layers are post-norm with GELU, as the reference experiment's are.
"""

import torch
from torch import nn

from mmlib.model.encoders.base import Encoder


def transformer(width: int, layers: int, heads: int, mlp_ratio: int, dropout: float) -> nn.TransformerEncoder:
    """`layers` post-norm encoder layers with GELU, batch first."""
    layer = nn.TransformerEncoderLayer(
        width, heads, mlp_ratio * width, dropout, activation="gelu", batch_first=True, norm_first=False
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def real_positions(tokens_BL: torch.Tensor, length_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions are no padding, (B, L) bool, and how many, (B,).

    An empty caption keeps its first position, so that its attention and mean are defined.
    """
    length_B = length_B.clamp(min=1)
    return torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None], length_B


class TextEncoder(Encoder):
    """Token embedding and learned positions, transformer, mean over positions, LayerNorm, Linear.

    Args:
        vocabulary: number of token ids, padding included.
        max_tokens: number of positions; longer inputs are an error of the caller.
        padding_mask: whether padding is left out of the attention and of the mean.  The reference
            experiment has no mask (REFERENCE §3.9): its mean runs over all positions.
    """

    def __init__(
        self,
        vocabulary: int,
        max_tokens: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        padding_mask: bool,
    ):
        super().__init__()
        self.width = width
        self.token = nn.Embedding(vocabulary, width)
        self.position_LD = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.layers = transformer(width, layers, heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        self.padding_mask = padding_mask

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        x_BLD = self.token(tokens_BL) + self.position_LD[: tokens_BL.shape[1]]
        if not self.padding_mask:
            return self.project(self.norm(self.layers(x_BLD).mean(1)))
        real_BL, length_B = real_positions(tokens_BL, length_B)
        x_BLD = self.layers(x_BLD, src_key_padding_mask=~real_BL)
        mean_BD = (x_BLD * real_BL[..., None]).sum(1) / length_B[:, None]
        return self.project(self.norm(mean_BD))
