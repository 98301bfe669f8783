"""Small untrained networks."""

from mmlib.config import TrainConfig, build
from mmlib.model import DualEncoder, build_model

SIZES = {
    "max_tokens": 12, "image_size": 16, "patch_size": 8, "latent_dim": 16, "num_layers": 1,
    "num_heads": 2, "mlp_ratio": 2, "dropout": 0.1, "memory_slots": 8, "feedback_steps": 2,
}  # fmt: skip


def untrained(vocabulary: int, **sizes) -> DualEncoder:
    """A network of these sizes, freshly initialised."""
    return build_model(build(TrainConfig, {"run": "untrained", "epochs": 1, "lr": 0.1} | sizes), vocabulary)
