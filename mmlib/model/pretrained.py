"""Wraps pretrained models of timm, torchvision, open_clip and transformers as encoders.

Shapes: B items, F feature channels, P positions, H, W positions of a map, Q queries, D latent width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mmlib.config import ParameterError
from mmlib.model.encoders import Block, Encoder, fingerprint_of
from mmlib.model.weights import is_file


class PretrainedEncoder(Encoder):
    """A backbone of another library and a head.

    Args:
        name: what the backbone is, with all that its features depend on beside its weights.
        backbone: the library's own module, without its classifier; its parameters keep their names.
        read: (backbone, inputs…) to features (B, F) or (B, P, F).
        head: features to (B, D).
        blocks: name and parameter names of the backbone's blocks, from input to output.
        feature_shape, width: see `Encoder`.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        read: Callable[..., torch.Tensor],
        head: nn.Module,
        blocks: list[tuple[str, list[str]]],
        feature_shape: tuple[int, ...],
        width: int,
    ):
        super().__init__()
        self.name, self.feature_shape, self.width = name, feature_shape, width
        self.backbone, self.head = backbone, head
        self._read, self._blocks = read, blocks
        # Fixed tables, as sine positions are, stay fixed when the rest is tuned.
        self._trainable = frozenset(n for n, p in backbone.named_parameters() if p.requires_grad)

    @property
    def blocks(self) -> list[Block]:
        """The backbone's parameters in groups, from input to output."""
        parameters = dict(self.backbone.named_parameters())
        return [(block, [parameters[name] for name in names]) for block, names in self._blocks]

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the pretrained part."""
        return self.backbone.parameters()

    def features(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The backbone's output, (B, F) or (B, P, F); a gradient is kept only if some of it is tuned."""
        tuned = any(p.requires_grad for p in self.backbone_parameters())
        with torch.set_grad_enabled(tuned and torch.is_grad_enabled()):
            return self._read(self.backbone, *inputs)

    def from_features(self, feature: torch.Tensor) -> torch.Tensor:
        """The head's output, (B, D), of features of any floating type."""
        return self.head(feature.to(next(self.head.parameters()).dtype))

    def set_tune(self, tune: str) -> None:
        """Chooses what of the backbone is trained; the head always is.

        What is not trained has no gradient and behaves as in evaluation (no dropout, batch norm by its
        stored statistics), also after `train()`.

        Args:
            tune: `all`, `none`, or `last-<n>`: the n blocks nearest the output.

        Raises:
            ParameterError: another word, or more blocks than there are.
        """
        trained = {name for _, names in self._blocks[self._first_tuned(tune) :] for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained and name in self._trainable)
        self.train(self.training)

    def _first_tuned(self, tune: str) -> int:
        count = len(self._blocks)
        if tune in ("all", "none"):
            return 0 if tune == "all" else count
        kind, _, number = tune.partition("-")
        if kind != "last" or not number.isdecimal() or not int(number):
            raise ParameterError(f"tune: expected all, none or last-<n>, found {tune!r}")
        if int(number) > count:
            raise ParameterError(
                f"tune {tune!r}: {self.name} has {count} blocks ({', '.join(b for b, _ in self._blocks)});"
                f" use last-<n> with n up to {count}, or 'all'"
            )
        return count - int(number)

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            _freeze_modes(self.backbone)
        return self

    def fingerprint(self) -> str:
        """16 hex digits over the backbone's name and weights; the head has no part in it."""
        return fingerprint_of(self.name, self.backbone.state_dict())


def _freeze_modes(module: nn.Module) -> None:
    """Evaluation mode for every module that is frozen, or that stands directly in a partly frozen one."""
    parameters = list(module.parameters())
    if all(p.requires_grad for p in parameters):
        return
    if not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = False
    for child in module.children():
        # What has no parameters, as dropout, cannot be told frozen by itself: it goes with its parent.
        if next(child.parameters(), None) is None:
            child.eval()
        else:
            _freeze_modes(child)


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


LEAST_DEVIATION = 0.1  # of a channel, over the mean deviation of all
QUERIES = 4  # of the attention pooling: a few, so that one vector can hold several things of a picture


class Standardise(nn.Module):
    """Features minus their mean over their deviation, channel by channel, as some of them have it.

    The features of a backbone differ in scale from channel to channel; a head that sees them as they are
    learns from the few large ones.  The identity until `fit` was called.

    Args:
        features: F.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("deviation_F", torch.ones(features))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Takes mean and deviation from features (…, F), such as those of some training items."""
        rows_RF = features.reshape(-1, features.shape[-1]).float()
        self.mean_F.copy_(rows_RF.mean(0))
        deviation_F = rows_RF.std(0)
        # A channel that hardly ever changes must not become the loudest where it does.
        floor = LEAST_DEVIATION * deviation_F.mean() + torch.finfo(torch.float32).tiny
        self.deviation_F.copy_(deviation_F.clamp(min=floor))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(…, F) → (…, F)."""
        return (features - self.mean_F) / self.deviation_F


class PooledHead(nn.Module):
    """One vector per item: standardised features, dropout, Linear, LayerNorm.

    Args:
        features: F.
        width: D.
        dropout: probability.
    """

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        self.standardise = Standardise(features)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(features, width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, feature_BF: torch.Tensor) -> torch.Tensor:
        """(B, F) → (B, D)."""
        return self.out_norm(self.project(self.dropout(self.standardise(feature_BF))))


class AttentionHead(nn.Module):
    """Learned queries attend to an item's positions; what they read is joined and brought to D.

    Attention pooling as in Set Transformer (Lee et al. 2019, §3.2, PMA), with one layer.

    Args:
        features: F.
        width: D.
        heads: of the attention; must divide D.
        dropout: of positions and of what was read, probability.
    """

    def __init__(self, features: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.standardise = Standardise(features)
        self.dropout = nn.Dropout(dropout)
        self.position = nn.Linear(features, width)
        self.query_QD = nn.Parameter(torch.randn(QUERIES, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read_norm = nn.LayerNorm(width)
        self.project = nn.Linear(QUERIES * width, width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, feature_BPF: torch.Tensor) -> torch.Tensor:
        """(B, P, F) → (B, D)."""
        position_BPD = self.position(self.dropout(self.standardise(feature_BPF)))
        query_BQD = self.query_QD.expand(len(feature_BPF), -1, -1)
        read_BQD, _ = self.attention(query_BQD, position_BPD, position_BPD, need_weights=False)
        joined_BE = self.dropout(self.read_norm(read_BQD)).flatten(1)
        return self.out_norm(self.project(joined_BE))


def build_head(feature_shape: tuple[int, ...], width: int, heads: int, dropout: float) -> nn.Module:
    """The head for features of this shape, (F,) or (P, F)."""
    if len(feature_shape) == 1:
        return PooledHead(feature_shape[0], width, dropout)
    return AttentionHead(feature_shape[1], width, heads, dropout)
