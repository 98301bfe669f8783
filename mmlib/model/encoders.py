"""Encoders of images and captions: what every encoder is, and those that are trained from scratch.

An encoder gives one vector of the latent's width for each image or caption.  Around a pretrained model
(`mmlib.model.pretrained`) it is in two parts: the *backbone*, whose output for an input is that input's
*features*, and the *head*, which is always trained.  The features of a frozen backbone can be computed
once and passed in place of the pixels or token ids.  An encoder that is trained from scratch has no such
border.

To add one: a class here, and a line in `IMAGE_ENCODERS` or `TEXT_ENCODERS`.

| image_encoder | what it is |
|---|---|
| `vit` | the reference experiment's, from scratch |
| `timm:<name>`, `torchvision:<name>`, `open_clip:<name>` | of a library; weights `none`: from scratch |

| text_encoder | what it is |
|---|---|
| `transformer` | the reference experiment's, from scratch |
| `gru`, `words` | light ones, from scratch |
| `open_clip:<name>`, `hf:<name or folder>` | of another library, with or without its weights |

Shapes: B items, C channels, H, W pixels, P patches or positions, L tokens, F feature channels, D width.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mmlib.config import ParameterError, TrainConfig
from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD
from mmlib.files import nearest
from mmlib.model.network import CosineMemoryNetwork, DualEncoder, MemoryNetwork

Block = tuple[str, list[nn.Parameter]]


class Encoder(nn.Module):
    """Base of all encoders; as it stands, one that is trained from scratch.

    Attributes:
        feature_shape: (F,) or (P, F) of one item's features; None where there is no backbone.
        architecture: what is needed to build the same encoder again where neither weights nor their
            folder are at hand, as JSON types; None if its name and the config are enough.
        mean, std: images: what is subtracted from and divides RGB values in 0..1 before `forward`.
        image_size: images: side in pixels.
    """

    feature_shape: tuple[int, ...] | None = None
    architecture: dict | None = None

    @property
    def blocks(self) -> list[Block]:
        """The backbone's parameters in groups, from input to output; none where there is no backbone."""
        return []

    def set_tune(self, tune: str) -> None:
        """Chooses what is trained.

        Raises:
            ParameterError: anything but `all` for an encoder without a backbone.
        """
        if tune != "all":
            raise ParameterError(
                f"tune {tune!r} needs a pretrained encoder: {type(self).__name__} is trained from scratch,"
                " use 'all'"
            )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ParameterError:
    """The error for a name that a library does not know, with the nearest one that it does."""
    known = list(known)
    return ParameterError(
        f"unknown {kind} {name!r}" + (nearest(name, known) or f": it has {', '.join(known[:8])}, …")
    )


def transformer_layers(config: Any) -> nn.TransformerEncoder:
    """Post-norm encoder layers with GELU, batch first."""
    layer = nn.TransformerEncoderLayer(
        config.latent_dim, config.num_heads, config.mlp_ratio * config.latent_dim, config.dropout,
        activation="gelu", batch_first=True, norm_first=False,
    )  # fmt: skip
    return nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)


def real_positions(tokens_BL: torch.Tensor, length_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions are no padding, (B, L) bool, and how many, (B,).

    An empty caption keeps its first position, so that its attention and mean are defined.
    """
    length_B = length_B.clamp(min=1)
    return torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None], length_B


class TextEncoder(Encoder):
    """Token embedding and learned positions, transformer, mean over positions, LayerNorm, Linear.

    Args:
        config: `latent_dim` (D), `max_tokens` (number of positions), `num_layers`, `num_heads`, `mlp_ratio`,
            `dropout`, and `padding_mask`: whether padding is left out of the attention and of the mean.
            The reference experiment has no mask (REFERENCE §3.9): its mean runs over all positions.
        vocabulary: number of token ids, padding included.
    """

    def __init__(self, config: Any, vocabulary: int):
        super().__init__()
        D = config.latent_dim
        self.token = nn.Embedding(vocabulary, D)
        self.position_LD = nn.Parameter(torch.randn(config.max_tokens, D) * 0.02)
        self.layers = transformer_layers(config)
        self.norm = nn.LayerNorm(D)
        self.project = nn.Linear(D, D)
        self.padding_mask = config.padding_mask

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        x_BLD = self.token(tokens_BL) + self.position_LD[: tokens_BL.shape[1]]
        if not self.padding_mask:
            return self.project(self.norm(self.layers(x_BLD).mean(1)))
        real_BL, length_B = real_positions(tokens_BL, length_B)
        x_BLD = self.layers(x_BLD, src_key_padding_mask=~real_BL)
        mean_BD = (x_BLD * real_BL[..., None]).sum(1) / length_B[:, None]
        return self.project(self.norm(mean_BD))


class ImageEncoder(Encoder):
    """ViT: square patches, a class token, learned positions; the class token out, LayerNorm.

    Args:
        config: `latent_dim` (D), `image_size`, `patch_size`, which divides it, `num_layers`, `num_heads`,
            `mlp_ratio`, `dropout`.
    """

    mean, std = PIXEL_MEAN, PIXEL_STD

    def __init__(self, config: Any):
        super().__init__()
        D, patch_size = config.latent_dim, config.patch_size
        self.image_size = config.image_size
        patches = (config.image_size // patch_size) ** 2
        self.patch = nn.Conv2d(3, D, patch_size, stride=patch_size)
        self.class_token_11D = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        self.position_1PD = nn.Parameter(torch.randn(1, patches + 1, D) * 0.02)
        self.layers = transformer_layers(config)
        self.norm = nn.LayerNorm(D)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) → (B, D)."""
        patch_BPD = self.patch(image_BCHW).flatten(2).transpose(1, 2)
        class_B1D = self.class_token_11D.expand(patch_BPD.shape[0], -1, -1)
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


TOKEN_DEVIATION = 0.1  # of the first token vectors


class GRUEncoder(Encoder):
    """Word vectors read by a GRU in both directions; mean and maximum over positions, LayerNorm, Linear.

    The backward GRU reads each caption's own tokens from the last to the first: the same numbers as
    packed sequences, without lengths on the host.

    Args:
        config: `latent_dim` (D, also of the word vectors and of each direction's state) and `dropout` of
            word vectors and of what is pooled.
        vocabulary: number of token ids, padding included.
    """

    def __init__(self, config: Any, vocabulary: int):
        super().__init__()
        D = config.latent_dim
        self.token = _token_vectors(vocabulary, D)
        self.dropout = nn.Dropout(config.dropout)
        self.ahead = nn.GRU(D, D, batch_first=True)
        self.back = nn.GRU(D, D, batch_first=True)
        self.norm = nn.LayerNorm(4 * D)
        self.project = nn.Linear(4 * D, D)

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        real_BL, length_B = real_positions(tokens_BL, length_B)
        x_BLD = self.dropout(self.token(tokens_BL))
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        mirror_BL = torch.where(real_BL, length_B[:, None] - 1 - place_L, place_L)
        ahead_BLD, _ = self.ahead(x_BLD)
        back_BLD, _ = self.back(_gather(x_BLD, mirror_BL))
        state_BLE = torch.cat([ahead_BLD, _gather(back_BLD, mirror_BL)], dim=-1)
        mean_BE = (state_BLE * real_BL[..., None]).sum(1) / length_B[:, None]
        lowest = torch.finfo(state_BLE.dtype).min
        highest_BE = state_BLE.masked_fill(~real_BL[..., None], lowest).amax(1)
        return self.project(self.dropout(self.norm(torch.cat([mean_BE, highest_BE], dim=-1))))


def _token_vectors(vocabulary: int, width: int) -> nn.Embedding:
    """Small first vectors: those of torch's own size are hardly moved by an adaptive optimizer's steps."""
    token = nn.Embedding(vocabulary, width)
    nn.init.normal_(token.weight, std=TOKEN_DEVIATION)
    return token


def _gather(x_BLD: torch.Tensor, place_BL: torch.Tensor) -> torch.Tensor:
    return x_BLD.gather(1, place_BL[..., None].expand_as(x_BLD))


class WordsEncoder(Encoder):
    """Mean of the token vectors, LayerNorm, and a feed-forward network; the order of words is lost.

    Args:
        config: `latent_dim` (D, also of the token vectors), `mlp_ratio` (hidden width over D) and `dropout`
            of the mean and of the hidden layer.
        vocabulary: number of token ids, padding included.
    """

    def __init__(self, config: Any, vocabulary: int):
        super().__init__()
        D, hidden = config.latent_dim, config.mlp_ratio * config.latent_dim
        self.token = _token_vectors(vocabulary, D)
        self.norm = nn.LayerNorm(D)
        self.feed_forward = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(D, hidden), nn.GELU(),
            nn.Dropout(config.dropout), nn.Linear(hidden, D),
        )  # fmt: skip

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        real_BL, length_B = real_positions(tokens_BL, length_B)
        mean_BD = (self.token(tokens_BL) * real_BL[..., None]).sum(1) / length_B[:, None]
        return self.feed_forward(self.norm(mean_BD))


def build_model(
    config: TrainConfig,
    vocabulary: int,
    padding: int = 0,
    load_pretrained: bool = True,
    architecture: dict | None = None,
) -> DualEncoder:
    """A network of the config's sizes for `vocabulary` token ids, freshly initialised.

    Args:
        config: its encoders, sizes and what of the encoders is tuned.
        vocabulary: number of token ids.
        padding: the token id of padding.
        load_pretrained: read the weights of pretrained encoders; not needed where a checkpoint follows.
        architecture: of the text encoder, as a checkpoint keeps it; else it is read where the weights are.

    Raises:
        ParameterError: an unknown encoder, weights that it does not have, or an image size that it
            cannot take.
        FileNotFoundError, ValueError: weights that are not there or do not fit.
    """
    image = build_image_encoder(config, load_pretrained=load_pretrained)
    text = build_text_encoder(
        config, vocabulary, padding=padding, load_pretrained=load_pretrained, architecture=architecture
    )
    image.set_tune(config.image_tune)
    text.set_tune(config.text_tune)
    if config.memory == "none":
        return DualEncoder(image, text)
    return MEMORIES[config.memory](image, text, config)


MEMORIES = {"published": MemoryNetwork, "cosine": CosineMemoryNetwork}
# Every encoder that is trained from scratch, by its name in the config.
IMAGE_ENCODERS: dict[str, Callable[[Any], Encoder]] = {"vit": ImageEncoder}
TEXT_ENCODERS: dict[str, Callable[[Any, int], Encoder]] = {
    "transformer": TextEncoder,
    "gru": GRUEncoder,
    "words": WordsEncoder,
}


def build_image_encoder(config: Any, *, load_pretrained: bool = True) -> Encoder:
    """The image encoder that the config names, all of it trainable.

    Args:
        config: anything with the fields of ModelConfig, and image_size.
        load_pretrained: False builds the architecture alone, with random weights, for a run whose
            weights come from its checkpoint: neither files nor network are needed.

    Raises:
        ParameterError: an unknown name (the nearest one is named), an image size that the encoder cannot
            take, or attention pooling where there are no positions.
        FileNotFoundError: weights that are not there; what to bring and how to name it.
        ValueError: a file of weights that does not fit.
    """
    name, pooling = config.image_encoder, config.image_pooling
    if name in IMAGE_ENCODERS:
        if pooling != "encoder":
            raise ParameterError(f"image_pooling {pooling!r}: {name!r} reads its class token, use 'encoder'")
        return IMAGE_ENCODERS[name](config)
    from mmlib.model import backbones
    from mmlib.model.pretrained import PretrainedEncoder

    encoder = PretrainedEncoder(
        backbones.build_image_backbone(config, load_pretrained),
        (torch.zeros(1, 3, config.image_size, config.image_size),),
        config,
    )
    encoder.image_size = config.image_size
    return encoder


def build_text_encoder(
    config: Any,
    vocabulary: int,
    *,
    padding: int = 0,
    load_pretrained: bool = True,
    architecture: dict | None = None,
) -> Encoder:
    """The text encoder that the config names, all of it trainable.

    Args:
        config: anything with the fields of ModelConfig, and max_tokens.
        vocabulary: number of token ids of the tokenizer, padding included.
        padding: the tokenizer's padding id.
        load_pretrained: as in `build_image_encoder`.
        architecture: `encoder.architecture` of the same encoder when it was first built.

    Raises:
        ParameterError: an unknown name (the nearest one is named), more tokens than the encoder has
            positions, or token ids that it does not have.
        FileNotFoundError, ValueError, ImportError: as `build_image_encoder`; and transformers missing.
    """
    name = config.text_encoder
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name](config, vocabulary)
    from mmlib.model import backbones
    from mmlib.model.pretrained import PretrainedEncoder

    library, _, model = name.partition(":")
    if library == "open_clip" and model:
        backbone = backbones.build_open_clip_text(model, config, padding, load_pretrained)
    elif library == "hf" and model:
        backbone = backbones.build_hf_text(model, config, load_pretrained, architecture)
    else:
        raise unknown_name("text_encoder", name, (*TEXT_ENCODERS, "open_clip:<name>", "hf:<name>"))
    if vocabulary > backbone.ids:
        raise ParameterError(
            f"text_encoder {name!r} has {backbone.ids:,} token ids, the tokenizer {vocabulary:,}: use the"
            " encoder's own, tokenizer 'encoder'"
        )
    one = torch.ones(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    return PretrainedEncoder(backbone, one, config)
