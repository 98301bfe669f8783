"""Encoders of images and captions behind one interface: from scratch, or around pretrained models."""

from mmlib.model.encoders.base import Encoder, PretrainedEncoder
from mmlib.model.encoders.building import build_image_encoder, build_text_encoder
from mmlib.model.encoders.transformer import TextEncoder
from mmlib.model.encoders.vit import ImageEncoder

__all__ = [
    "Encoder",
    "ImageEncoder",
    "PretrainedEncoder",
    "TextEncoder",
    "build_image_encoder",
    "build_text_encoder",
]
