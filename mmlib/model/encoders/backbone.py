"""A pretrained model made ready: what each library's module hands over, and how it becomes an encoder.

Shapes: B items, F feature channels, P positions, H, W positions of a map, D latent width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mmlib.config import ParameterError
from mmlib.model.encoders.base import PretrainedEncoder
from mmlib.model.encoders.heads import build_head
from mmlib.model.encoders.weights import is_file

NamedBlocks = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Backbone:
    """A library's model without its classifier.

    Attributes:
        name: as in the config, `timm:resnet18`.
        model: the library's own module, weights loaded.
        read: (model, inputs…) to features (B, F) or (B, P, F).
        blocks: name and parameter names of its blocks, from input to output.
        variant: all else that the features depend on, for the fingerprint.
        mean, std, takes: images: pixel normalisation, and the sizes it takes, in words.
        architecture: see `Encoder`.
    """

    name: str
    model: nn.Module
    read: Callable[..., torch.Tensor]
    blocks: NamedBlocks
    variant: tuple = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    takes: str = ""
    architecture: dict | None = None

    @property
    def identity(self) -> str:
        """Name and variant as one text."""
        return " ".join([self.name, *map(str, self.variant)])


class PretrainedImageEncoder(PretrainedEncoder):
    """An image backbone and its head; normalised pixels (B, 3, H, W), or features, → (B, D).

    Raises:
        ParameterError: the backbone cannot take images of this size, or has no positions to attend to.
    """

    def __init__(self, backbone: Backbone, config):
        self_shape = _feature_shape(backbone, config)
        head = build_head(self_shape, config.latent_dim, config.num_heads, config.dropout)
        super().__init__(
            f"{backbone.identity} mean {backbone.mean} std {backbone.std} {config.image_pooling}",
            backbone.model, backbone.read, head, backbone.blocks, self_shape, config.latent_dim,
        )  # fmt: skip
        self.mean, self.std, self.image_size = backbone.mean, backbone.std, config.image_size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W), or features (B, F) or (B, P, F), → (B, D)."""
        return self.from_features(self.features(image) if image.ndim == 4 else image)


class PretrainedTextEncoder(PretrainedEncoder):
    """A text backbone and its head; token ids (B, L) and lengths (B,), or features (B, F), → (B, D)."""

    def __init__(self, backbone: Backbone, features: int, config):
        head = build_head((features,), config.latent_dim, config.num_heads, config.dropout)
        super().__init__(
            backbone.identity,
            backbone.model, backbone.read, head, backbone.blocks, (features,), config.latent_dim,
        )  # fmt: skip
        self.architecture = backbone.architecture

    def forward(self, tokens: torch.Tensor, length_B: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, L) and lengths (B,), or features (B, F), → (B, D)."""
        return self.from_features(tokens if tokens.is_floating_point() else self.features(tokens, length_B))


@torch.no_grad()
def _feature_shape(backbone: Backbone, config) -> tuple[int, ...]:
    """The shape of one image's features, found by trying a black image."""
    size = config.image_size
    try:
        shape = tuple(backbone.read(backbone.model.eval(), torch.zeros(1, 3, size, size)).shape[1:])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise wrong_size(backbone.name, size, backbone.takes) from error
    if 0 in shape:
        raise wrong_size(backbone.name, size, backbone.takes)
    if len(shape) != (2 if config.image_pooling == "attention" else 1):
        raise ParameterError(
            f"image_pooling {config.image_pooling!r}: {backbone.name} gives features of shape {shape}, which"
            " have no positions to attend to; use image_pooling 'encoder'"
        )
    return shape


def wrong_size(name: str, found: int, takes: str) -> ParameterError:
    """The error for an image size that an encoder cannot take."""
    return ParameterError(f"image_size: {name} takes {takes}, found {found}")


def is_loaded(weights: str, load_pretrained: bool) -> bool:
    """Whether weights are to come from the library's loader."""
    return load_pretrained and weights != "none" and not is_file(weights)


def positions(map_BFHW: torch.Tensor) -> torch.Tensor:
    """A map's positions row by row, (B, P, F)."""
    return map_BFHW.flatten(2).transpose(1, 2)


def layer_blocks(model: nn.Module, layers: str, after: Callable[[str], bool]) -> NamedBlocks:
    """Blocks of a transformer: what comes before its layers, and each layer; what comes after joins the last.

    Args:
        model: the transformer.
        layers: name of the list of its layers.
        after: tells by a parameter's name whether it comes after the layers.
    """
    blocks: dict[str, list[str]] = {"embedding": []}
    blocks |= {f"{layers}.{name}": [] for name, _ in model.get_submodule(layers).named_children()}
    last = list(blocks)[-1]
    for name, _ in model.named_parameters():
        if name.startswith(f"{layers}."):
            blocks[f"{layers}.{name.removeprefix(layers + '.').split('.')[0]}"].append(name)
        else:
            blocks[last if after(name) else "embedding"].append(name)
    return [(block, names) for block, names in blocks.items() if names]
