"""Image and text backbones of open_clip: one tower of a CLIP model, with its projection.

Shapes: B items, L tokens, F feature channels, P positions.

open_clip names no default among the weights of a model; `default` takes the first tag of its list.
A file may hold the whole CLIP model or the tower alone.
"""

import torch
from torch import nn
from torch.nn import functional as F

from mmlib.config import ParameterError
from mmlib.model.encoders import real_positions
from mmlib.model.image_towers import cnn_blocks, timm_blocks
from mmlib.model.pretrained import (
    Backbone,
    NamedBlocks,
    is_loaded,
    layer_blocks,
    positions,
    wrong_size,
)
from mmlib.model.weights import downloading, fit, is_file, quiet, read_weights, unknown_name

NO_TOWER = ("logit_scale", "logit_bias")  # of the pair, not of a tower


def build_open_clip_image(
    name: str, weights: str, image_size: int, pooling: str, load_pretrained: bool
) -> Backbone:
    """The image tower of the open_clip model `name` with `weights`, a pretrained tag.

    Raises:
        ParameterError: unknown name or tag, or an image size that it cannot take.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        ValueError: a file that does not fit.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    full = f"open_clip:{name}"
    model, tag = _create(full, name, weights, "image", load_pretrained)
    visual = model.visual
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    takes = f"images of {size} pixels"
    if image_size != size:
        raise wrong_size(full, image_size, takes)
    if load_pretrained and is_file(weights):
        state = read_weights(weights)
        tower = {k.removeprefix("visual."): t for k, t in state.items() if k.startswith("visual.")}
        fit(visual, tower or state, weights)
    return Backbone(
        full, visual, _positions if pooling == "attention" else _projected, _image_blocks(visual),
        variant=_variant(tag), mean=tuple(tag.get("mean", OPENAI_DATASET_MEAN)),
        std=tuple(tag.get("std", OPENAI_DATASET_STD)), takes=takes,
    )  # fmt: skip


def build_open_clip_text(
    name: str, weights: str, max_tokens: int, padding: int, load_pretrained: bool
) -> tuple[Backbone, int, int]:
    """The text tower of the open_clip model `name`, its feature channels, and its number of token ids.

    Args:
        name: of the model.
        weights: a pretrained tag, `default`, `none` or a file.
        max_tokens: longest caption, tokens.
        padding: the tokenizer's padding id.
        load_pretrained: whether weights are loaded at all.

    Raises:
        ParameterError: unknown name or tag, or more tokens than it has positions.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        ValueError: a file that does not fit.
    """
    full = f"open_clip:{name}"
    model, tag = _create(full, name, weights, "text", load_pretrained)
    is_joined = not hasattr(model, "text")  # the tower's modules are then the model's own
    text = model if is_joined else model.text
    if is_joined:
        for other in ("visual", *NO_TOWER):
            delattr(model, other)
    context = getattr(model, "context_length", None) or getattr(text, "context_length", None)
    if context and max_tokens > context:
        raise ParameterError(f"max_tokens: {full} has {context} positions, found {max_tokens}")
    if load_pretrained and is_file(weights):
        state = read_weights(weights)
        tower = {k.removeprefix("text."): t for k, t in state.items() if k.startswith("text.")}
        fit(text, tower or state, weights, ("visual", *NO_TOWER))
    read = _TextRead(context, padding)
    with torch.no_grad():
        features = read(text.eval(), torch.ones(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long))
    ids = getattr(text, "vocab_size", None) or text.config.vocab_size
    backbone = Backbone(full, text, read, _text_blocks(text), variant=(*_variant(tag), "text"))
    return backbone, features.shape[1], ids


def _create(full: str, name: str, weights: str, side: str, load_pretrained: bool) -> tuple[nn.Module, dict]:
    """The whole CLIP model and what open_clip says of its tag; files are left to the caller."""
    import open_clip

    if name not in open_clip.list_models():
        raise unknown_name("open_clip model", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_tag = weights not in ("none", "default") and not is_file(weights)
    if is_tag and weights not in tags:
        raise unknown_name(f"weights of {full}", weights, tags)
    if weights == "default" and not tags:
        raise ParameterError(f"open_clip has no weights for {full}: use {side}_weights 'none' or a file")
    if weights == "default":
        weights = tags[0]
    tag = {} if weights == "none" or is_file(weights) else open_clip.get_pretrained_cfg(name, weights)
    # Weights that were trained with the quick form of GELU give other features with the exact one.
    options = {"force_quick_gelu": bool(tag.get("quick_gelu")), "pretrained_text": False}
    file = None
    if is_loaded(weights, load_pretrained):
        with downloading(full, f"weights {weights!r}", f"{side}_weights=<path>"):
            file = open_clip.download_pretrained(tag)
    # A text tower of transformers has its configuration on the hub.
    with quiet(), downloading(full, "configuration", f"{side}_encoder of another name"):
        return open_clip.create_model(name, pretrained=file, **options), tag


def _variant(tag: dict) -> tuple:
    return ("quick_gelu",) if tag.get("quick_gelu") else ()


def _projected(visual: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    out = visual(image_BCHW)
    return out[0] if isinstance(out, tuple) else out  # CoCa's tower gives its tokens too


def _positions(visual: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    """The patches after the last layer, or the last map's positions, before pooling and projection."""
    out = visual.forward_intermediates(image_BCHW, indices=1, intermediates_only=True)
    return positions(out["image_intermediates"][-1])


class _TextRead:
    """Token ids to the tower's projected vector.

    A causal tower sees no token after the last real one, so a batch need not be filled to the
    tower's full length; the others read padding as they did when they were trained.
    """

    def __init__(self, context: int | None, padding: int):
        self.context, self.padding = context, padding

    def __call__(self, text: nn.Module, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        length_B = length_B.clamp(min=1)
        pooling = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        is_causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
        if is_causal and pooling in ("argmax", "eos"):
            return self._causal(text, tokens_BL, length_B)
        if hasattr(text, "config"):  # a transformers model, which masks its own padding id
            real_BL, _ = real_positions(tokens_BL, length_B)
            tokens_BL = tokens_BL.masked_fill(~real_BL, text.config.pad_token_id)
        else:
            tokens_BL = F.pad(tokens_BL, (0, self.context - tokens_BL.shape[1]), value=self.padding)
        out = text.encode_text(tokens_BL) if hasattr(text, "encode_text") else text(tokens_BL)
        return out[0] if isinstance(out, tuple) else out

    @staticmethod
    def _causal(text: nn.Module, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        L = tokens_BL.shape[1]
        x_BLF = text.token_embedding(tokens_BL) + text.positional_embedding[:L]
        x_BLF = text.ln_final(text.transformer(x_BLF, attn_mask=text.attn_mask[:L, :L]))
        end_BF = x_BLF[torch.arange(len(x_BLF), device=x_BLF.device), length_B - 1]
        project = text.text_projection
        if project is None:
            return end_BF
        return project(end_BF) if isinstance(project, nn.Linear) else end_BF @ project


def _image_blocks(visual: nn.Module) -> NamedBlocks:
    if hasattr(visual, "trunk"):
        blocks = timm_blocks(visual.trunk, "trunk.")
        blocks[-1][1].extend(f"head.{name}" for name, _ in visual.head.named_parameters())
        return blocks
    if not hasattr(visual, "transformer"):
        return cnn_blocks(visual)
    return layer_blocks(
        visual, "transformer.resblocks", lambda name: name.startswith(("ln_post", "proj", "attn_pool"))
    )


def _text_blocks(text: nn.Module) -> NamedBlocks:
    if not hasattr(text.transformer, "resblocks"):  # a transformers model
        from mmlib.model.hf_towers import transformer_blocks

        blocks = transformer_blocks(text.transformer, "transformer.")
        known = {name for _, names in blocks for name in names}
        blocks[-1][1].extend(name for name, _ in text.named_parameters() if name not in known)
        return blocks
    return layer_blocks(
        text, "transformer.resblocks", lambda name: name.startswith(("ln_final", "text_projection"))
    )
