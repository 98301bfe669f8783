"""The network of a config, with encoders by the names that the parameters give them.

| image_encoder | what it is |
|---|---|
| `vit` | the reference experiment's, from scratch |
| `timm:<name>`, `torchvision:<name>`, `open_clip:<name>` | of a library; weights `none`: from scratch |

| text_encoder | what it is |
|---|---|
| `transformer` | the reference experiment's, from scratch |
| `gru`, `words` | light ones, from scratch |
| `open_clip:<name>`, `hf:<name or folder>` | of another library, with or without its weights |
"""

from typing import Any

from mmlib.config import ParameterError, TrainConfig
from mmlib.model.encoders import Encoder, GRUEncoder, ImageEncoder, TextEncoder, WordsEncoder
from mmlib.model.network import DualEncoder, MemoryNetwork
from mmlib.model.weights import unknown_name

IMAGE_LIBRARIES = ("timm", "torchvision", "open_clip")
TEXT_LIBRARIES = ("open_clip", "hf")
IMAGE_NAMES = ("vit", *(f"{library}:<name>" for library in IMAGE_LIBRARIES))
TEXT_NAMES = ("transformer", "gru", "words", *(f"{library}:<name>" for library in TEXT_LIBRARIES))


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
    for name, encoder in (("image_tune", image), ("text_tune", text)):
        try:
            encoder.set_tune(getattr(config, name))
        except ParameterError as error:
            raise ParameterError(f"{name}: {error}") from None
    if not config.memory_slots:
        return DualEncoder(image, text)
    names = ("latent_dim", "num_heads", "dropout", "memory_slots", "feedback_steps", "memory_write")
    return MemoryNetwork(image, text, **{name: getattr(config, name) for name in names})


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
        from mmlib.model import image_towers, open_clip_towers
        from mmlib.model.pretrained import PretrainedImageEncoder

        build = {
            "timm": image_towers.build_timm,
            "torchvision": image_towers.build_torchvision,
            "open_clip": open_clip_towers.build_open_clip_image,
        }[library]
        backbone = build(
            model, config.image_weights, config.image_size, config.image_pooling, load_pretrained
        )
        return PretrainedImageEncoder(backbone, config)
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
        from mmlib.model import hf_towers, open_clip_towers
        from mmlib.model.pretrained import PretrainedTextEncoder

        if library == "hf":
            built = hf_towers.build_hf_text(model, weights, config.max_tokens, load_pretrained, architecture)
        else:
            built = open_clip_towers.build_open_clip_text(
                model, weights, config.max_tokens, padding, load_pretrained
            )
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
