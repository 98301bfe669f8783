"""The image encoder of the reference experiment: a ViT that is trained from scratch.

Shapes: B images, C channels, H, W pixels, P patches, D width.
"""

import torch
from torch import nn

from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD
from mmlib.model.encoders.base import Encoder
from mmlib.model.encoders.transformer import transformer


class ImageEncoder(Encoder):
    """ViT: square patches, a class token, learned positions; the class token out, LayerNorm.

    Raises:
        ValueError: the patch does not divide the image.
    """

    mean, std = PIXEL_MEAN, PIXEL_STD

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
        self.image_size, self.width = image_size, width
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
        for layer in self.layers.layers[:-1]:
            x_BPD = layer(x_BPD)
        return self.norm(self._last_layer(x_BPD))

    def _last_layer(self, x_BPD: torch.Tensor) -> torch.Tensor:
        """The last layer's output for the class token, (B, D): nobody reads that of the patches."""
        layer, class_B1D = self.layers.layers[-1], x_BPD[:, :1]
        read_B1D, _ = layer.self_attn(class_B1D, x_BPD, x_BPD, need_weights=False)
        class_B1D = layer.norm1(class_B1D + layer.dropout1(read_B1D))
        return layer.norm2(class_B1D + layer._ff_block(class_B1D))[:, 0]
