"""Convolutional image encoders that are trained from scratch: torchvision's blocks, stems for the image size.

Shapes: B images, C channels, F feature channels, H, W pixels or positions, D width.

At most `SMALL` pixels leave too few positions for the published stems, which divide by four before
the first block.  There a ResNet begins with one 3×3 convolution of stride 1 and no max-pool (He et
al. 2016, §4.2, do so at 32 pixels), and a ConvNeXt with patches of 2 pixels in place of 4.
"""

from collections import OrderedDict
from functools import partial

import torch
from torch import nn

from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD
from mmlib.model.encoders.base import Encoder
from mmlib.model.encoders.heads import build_head

SMALL = 96  # pixels

RESNETS = {  # kind of block, blocks of each stage; resnet10 is a small one for small images
    "resnet10": ("BasicBlock", (1, 1, 1, 1)),
    "resnet18": ("BasicBlock", (2, 2, 2, 2)),
    "resnet34": ("BasicBlock", (3, 4, 6, 3)),
    "resnet50": ("Bottleneck", (3, 4, 6, 3)),
}
CONVNEXTS = {  # width and blocks of each stage, share of dropped paths; atto and pico: Woo et al. 2023, §3
    "convnext_atto": ((40, 80, 160, 320), (2, 2, 6, 2), 0.0),
    "convnext_pico": ((64, 128, 256, 512), (2, 2, 6, 2), 0.0),
    "convnext_tiny": ((96, 192, 384, 768), (3, 3, 9, 3), 0.1),
    "convnext_small": ((96, 192, 384, 768), (3, 3, 27, 3), 0.4),
}
NAMES = (*RESNETS, *CONVNEXTS)


class ConvolutionalEncoder(Encoder):
    """A ResNet or ConvNeXt with random weights; its last map is pooled, normed and brought to D by a head.

    Args:
        name: one of `NAMES`.
        image_size: side in pixels; chooses the stem.
        width: D.
        heads: of the attention pooling.
        dropout: of the head, probability.
        pooling: `encoder` (global average) or `attention` over the positions of the last map.
    """

    mean, std = PIXEL_MEAN, PIXEL_STD

    def __init__(self, name: str, image_size: int, width: int, heads: int, dropout: float, pooling: str):
        super().__init__()
        self.image_size, self.width, self.pooling = image_size, width, pooling
        build = _resnet if name in RESNETS else _convnext
        self.trunk, features = build(name, image_size <= SMALL)
        self.norm = nn.LayerNorm(features)
        positions = () if pooling == "encoder" else (-1,)
        self.head = build_head((*positions, features), width, heads, dropout)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) → (B, D)."""
        position_BPF = self.trunk(image_BCHW).flatten(2).transpose(1, 2)
        return self.head(self.norm(position_BPF.mean(1) if self.pooling == "encoder" else position_BPF))


def _resnet(name: str, small: bool) -> tuple[nn.Module, int]:
    from torchvision.models import resnet

    kind, layers = RESNETS[name]
    model = resnet.ResNet(getattr(resnet, kind), list(layers))
    features = model.fc.in_features
    if small:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        del model.maxpool
    del model.avgpool, model.fc
    return nn.Sequential(OrderedDict(model.named_children())), features


def _convnext(name: str, small: bool) -> tuple[nn.Module, int]:
    from torchvision.models import convnext
    from torchvision.ops import Conv2dNormActivation

    widths, depths, dropped_paths = CONVNEXTS[name]
    following = (*widths[1:], None)
    setting = [convnext.CNBlockConfig(*stage) for stage in zip(widths, following, depths)]
    model = convnext.ConvNeXt(setting, dropped_paths)
    if small:
        norm = partial(convnext.LayerNorm2d, eps=1e-6)
        stem = Conv2dNormActivation(
            3, widths[0], 2, stride=2, padding=0, norm_layer=norm, activation_layer=None, bias=True
        )
        nn.init.trunc_normal_(stem[0].weight, std=0.02)
        nn.init.zeros_(stem[0].bias)
        model.features[0] = stem
    return model.features, widths[-1]
