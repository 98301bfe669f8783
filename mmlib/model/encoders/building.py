"""Encoders by the names that the parameters give them.

| image_encoder | what it is |
|---|---|
| `vit` | the reference experiment's, from scratch |
| `resnet10`, `resnet18`, `resnet34`, `resnet50`, `convnext_atto`, … | convolutional, from scratch |
| `torchvision:<name>`, `timm:<name>`, `open_clip:<name>` | of another library, with or without its weights |

| text_encoder | what it is |
|---|---|
| `transformer` | the reference experiment's, from scratch |
| `gru`, `words` | light ones, from scratch |
| `open_clip:<name>`, `hf:<name or folder>` | of another library, with or without its weights |
"""

from typing import Any

from mmlib.config import ParameterError
from mmlib.model.encoders import convolutional
from mmlib.model.encoders.backbone import PretrainedImageEncoder, PretrainedTextEncoder
from mmlib.model.encoders.base import Encoder
from mmlib.model.encoders.hf_towers import build_hf_text
from mmlib.model.encoders.open_clip_towers import build_open_clip_image, build_open_clip_text
from mmlib.model.encoders.timm_towers import build_timm
from mmlib.model.encoders.torchvision_towers import build_torchvision
from mmlib.model.encoders.transformer import TextEncoder
from mmlib.model.encoders.vit import ImageEncoder
from mmlib.model.encoders.weights import unknown_name
from mmlib.model.encoders.words import GRUEncoder, WordsEncoder

IMAGE_LIBRARIES = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "open_clip": build_open_clip_image,
}
TEXT_LIBRARIES = ("open_clip", "hf")
IMAGE_NAMES = ("vit", *convolutional.NAMES, *(f"{library}:<name>" for library in IMAGE_LIBRARIES))
TEXT_NAMES = ("transformer", "gru", "words", *(f"{library}:<name>" for library in TEXT_LIBRARIES))


def build_image_encoder(config: Any, *, load_pretrained: bool = True) -> Encoder:
    """The image encoder that the config names, all of it trainable.

    Args:
        config: anything with the fields of ModelConfig, and image_size.
        load_pretrained: False builds the architecture alone, with random weights, for a run whose
            weights come from its checkpoint: neither files nor network are needed.

    Raises:
        ParameterError: an unknown name (the nearest are named), an image size that the encoder cannot
            take, or attention pooling where there are no positions.
        FileNotFoundError: weights that are not there; what to bring and how to name it.
        ValueError: a file of weights that does not fit, with the first keys that differ.
    """
    name, sizes = config.image_encoder, (config.latent_dim, config.num_heads, config.dropout)
    library, _, model = name.partition(":")
    if library in IMAGE_LIBRARIES and model:
        backbone = IMAGE_LIBRARIES[library](
            model, config.image_weights, config.image_size, config.image_pooling, load_pretrained
        )
        return PretrainedImageEncoder(backbone, config)
    if name in convolutional.NAMES:
        return convolutional.ConvolutionalEncoder(name, config.image_size, *sizes, config.image_pooling)
    if name != "vit":
        raise unknown_name("image_encoder", name, IMAGE_NAMES)
    if config.image_pooling != "encoder":
        raise ParameterError(
            f"image_pooling {config.image_pooling!r}: 'vit' reads its class token, use 'encoder'"
        )
    width, heads, dropout = sizes
    return ImageEncoder(
        config.image_size, config.patch_size, width, config.num_layers, heads, config.mlp_ratio, dropout
    )


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
        ParameterError: an unknown name (the nearest are named), more tokens than the encoder has
            positions, or token ids that it does not have.
        FileNotFoundError, ValueError, ImportError: as `build_image_encoder`; and transformers missing.
    """
    name, weights, width = config.text_encoder, config.text_weights, config.latent_dim
    library, _, model = name.partition(":")
    if library in TEXT_LIBRARIES and model:
        if library == "hf":
            built = build_hf_text(model, weights, config.max_tokens, load_pretrained, architecture)
        else:
            built = build_open_clip_text(model, weights, config.max_tokens, padding, load_pretrained)
        backbone, features, ids = built
        if vocabulary > ids:
            raise ParameterError(
                f"text_encoder {name!r} has {ids:,} token ids, the tokenizer {vocabulary:,}: use the"
                " encoder's own, tokenizer 'encoder'"
            )
        return PretrainedTextEncoder(backbone, features, config)
    if name == "gru":
        return GRUEncoder(vocabulary, width, config.dropout)
    if name == "words":
        return WordsEncoder(vocabulary, width, config.mlp_ratio, config.dropout)
    if name != "transformer":
        raise unknown_name("text_encoder", name, TEXT_NAMES)
    return TextEncoder(
        vocabulary, config.max_tokens, width, config.num_layers, config.num_heads, config.mlp_ratio,
        config.dropout, config.padding_mask,
    )  # fmt: skip
