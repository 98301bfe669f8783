"""The model: encoders, the memory network that sits on them, and the losses that train it."""

from mmlib.model.encoders import build_image_encoder, build_model, build_text_encoder
from mmlib.model.losses import InfoNCE, build_loss, load_learned
from mmlib.model.network import DualEncoder, MemoryNetwork
