"""The model: a multimodal memory network, its two encoders, and the loss that trains it."""

from mmlib.config import LossConfig, ModelConfig
from mmlib.model.losses import InfoNCE
from mmlib.model.network import MemoryNetwork

__all__ = ["InfoNCE", "MemoryNetwork", "build_loss", "build_model"]


def build_model(config: ModelConfig, vocabulary: int) -> MemoryNetwork:
    """A freshly initialised network of the config's sizes for `vocabulary` token ids."""
    sizes = {name: getattr(config, name) for name in ModelConfig.model_fields}
    return MemoryNetwork(vocabulary, config.max_tokens, config.image_size, **sizes)


def build_loss(config: LossConfig) -> InfoNCE:
    """The loss that the config asks for."""
    return InfoNCE(config.temperature, config.learn_temperature, config.identity_positives)
