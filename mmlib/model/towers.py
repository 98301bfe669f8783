"""The two from-scratch encoders: a ViT for images, a transformer for token ids.

Shapes: B items, C channels, H, W pixels, P patches, L tokens, D width.
Both use post-norm transformer layers with GELU, as the reference experiment does.
"""

import torch
from torch import nn


def transformer(width: int, layers: int, heads: int, mlp_ratio: int, dropout: float) -> nn.TransformerEncoder:
    """`layers` post-norm encoder layers with GELU, batch first."""
    layer = nn.TransformerEncoderLayer(
        width, heads, mlp_ratio * width, dropout, activation="gelu", batch_first=True, norm_first=False
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class ImageEncoder(nn.Module):
    """ViT: square patches, a class token, learned positions; the class token out, LayerNorm.

    Raises:
        ValueError: the patch does not divide the image.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"patch_size must divide image_size: {image_size} is not a multiple of {patch_size};"
                f" choose image_size {image_size - image_size % patch_size} or another patch_size"
            )
        patches = (image_size // patch_size) ** 2
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token_11D = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position_1PD = nn.Parameter(torch.randn(1, patches + 1, width) * 0.02)
        self.layers = transformer(width, layers, heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) → (B, D)."""
        patch_BPD = self.patch(image_BCHW).flatten(2).transpose(1, 2)
        class_B1D = self.class_token_11D.expand(len(patch_BPD), -1, -1)
        x_BPD = torch.cat([class_B1D, patch_BPD], dim=1) + self.position_1PD
        return self.norm(self.layers(x_BPD)[:, 0])


class TextEncoder(nn.Module):
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
        self.token = nn.Embedding(vocabulary, width)
        self.position_LD = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.layers = transformer(width, layers, heads, mlp_ratio, dropout)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        self.padding_mask = padding_mask

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D).

        An empty caption keeps its first position, so that its attention and mean are defined.
        """
        x_BLD = self.token(tokens_BL) + self.position_LD[: tokens_BL.shape[1]]
        if not self.padding_mask:
            return self.project(self.norm(self.layers(x_BLD).mean(1)))
        length_B = length_B.clamp(min=1)
        real_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None]
        x_BLD = self.layers(x_BLD, src_key_padding_mask=~real_BL)
        mean_BD = (x_BLD * real_BL[..., None]).sum(1) / length_B[:, None]
        return self.project(self.norm(mean_BD))
