"""Configs of small encoders, and files of small pretrained models in their libraries' own formats."""

import json
from types import SimpleNamespace

import torch
from torch import nn

DEFAULTS = {
    "image_encoder": "vit", "image_weights": "none", "image_pooling": "encoder", "image_size": 32,
    "text_encoder": "transformer", "text_weights": "none", "max_tokens": 12, "patch_size": 8,
    "latent_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2, "dropout": 0.1, "padding_mask": True,
}  # fmt: skip

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 10, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
}
CLIP_RESNET = CLIP | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}
CLIP_TIMM = CLIP | {
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_resnet", "timm_proj": "linear"},
    "text_cfg": CLIP["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"},
}


def config(**changes):
    """A flat config, as TrainConfig has its fields."""
    return SimpleNamespace(**DEFAULTS | changes)


def add_clip(folder, name, content):
    """Registers a CLIP architecture under `name`."""
    import open_clip

    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    open_clip.add_model_config(file)


def write_bert(folder, **changes):
    """A tiny BERT with random weights, as transformers saves it; returns the folder."""
    from transformers import BertConfig, BertModel

    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 12,
    }  # fmt: skip
    randomise(BertModel(BertConfig(**sizes | changes))).save_pretrained(folder)
    return folder


def randomise(module: nn.Module) -> nn.Module:
    """Moves every weight and statistic from where initialisation leaves it."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.rand_like(tensor))
    return module.eval()


def captions():
    """Token ids (4, 8) and lengths; some captions are short, one is empty."""
    length_B = torch.tensor([8, 3, 1, 0])
    tokens_BL = torch.randint(1, 50, (4, 8))
    return tokens_BL.masked_fill(torch.arange(8) >= length_B[:, None], 0), length_B
