"""The model: encoders, the memory network that sits on them, and the losses that train it."""

from mmlib.config import ParameterError, TrainConfig
from mmlib.model.losses import build_loss, load_learned
from mmlib.model.losses.infonce import InfoNCE
from mmlib.model.network import DualEncoder, MemoryNetwork

__all__ = ["DualEncoder", "InfoNCE", "MemoryNetwork", "build_loss", "build_model", "load_learned"]


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
    from mmlib.model.encoders import build_image_encoder, build_text_encoder

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
