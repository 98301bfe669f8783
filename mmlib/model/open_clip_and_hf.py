"""Backbones of open_clip, one tower of a CLIP model with its projection; and text models of transformers.

Shapes: B items, L tokens, F feature channels, P positions.

open_clip names no default among the weights of a model; `default` takes the first tag of its list.
A file may hold the whole CLIP model or the tower alone.  Of transformers, any model that `AutoModel` knows,
by its name or folder; its vectors are pooled by the mean over real tokens, or as the sentence-transformers
configuration that lies with the model says.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from mmlib import files
from mmlib.config import ParameterError
from mmlib.files import read_json
from mmlib.model.encoders import real_positions, unknown_name
from mmlib.model.pretrained import (
    Backbone,
    NamedBlocks,
    downloading,
    fit,
    is_file,
    is_loaded,
    layer_blocks,
    positions,
    quiet,
    read_weights,
    wrong_size,
)
from mmlib.model.timm_and_torchvision import cnn_blocks, timm_blocks

NO_TOWER = ("logit_scale", "logit_bias")  # of the pair, not of a tower
POOLING_FILE = "1_Pooling/config.json"
LEGACY = {  # names in older pooling files, in the order in which several are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",  # this and those below are refused
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


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
        hub = bool(tag.get("hf_hub"))
        with downloading(full, f"weights {weights!r}", f"{side}_weights=<path>", hub):
            file = open_clip.download_pretrained(tag)
    # A text tower of transformers has its configuration on the hub.
    hub = "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
    with quiet(), downloading(full, "configuration", f"{side}_encoder of another name", hub):
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
        blocks = transformer_blocks(text.transformer, "transformer.")
        known = {name for _, names in blocks for name in names}
        blocks[-1][1].extend(name for name, _ in text.named_parameters() if name not in known)
        return blocks
    return layer_blocks(
        text, "transformer.resblocks", lambda name: name.startswith(("ln_final", "text_projection"))
    )


def build_hf_text(
    name: str, weights: str, max_tokens: int, load_pretrained: bool, architecture: dict | None
) -> tuple[Backbone, int, int]:
    """The transformers model `name`, its feature channels, and its number of token ids.

    Args:
        name: on the hub, or a folder (relative paths from the repository's root).
        weights: `default`, a revision of the hub, `none` or a file.
        max_tokens: longest caption, tokens.
        load_pretrained: whether weights are loaded at all.
        architecture: of an encoder that was built before; neither folder nor network are then needed
            unless weights are loaded.

    Raises:
        ImportError: transformers is not installed.
        ParameterError: more tokens than it has positions, or a pooling that is not known.
        FileNotFoundError: folder or weights are not there and cannot be downloaded.
        ValueError: weights that do not fit.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ImportError(
            f"text_encoder hf:{name} needs the package transformers: install mmlib[hf]"
        ) from error
    full, from_library = f"hf:{name}", is_loaded(weights, load_pretrained)
    revision = weights if from_library and weights != "default" else "main"
    if architecture is None:
        source = _source(name)
        with downloading(full, "config.json", "text_encoder=hf:<folder>", hub=source == name):
            config = AutoConfig.from_pretrained(source, revision=revision)
            pooling = _pooling(source, revision)
        architecture = {"config": json.loads(config.to_json_string(use_diff=False)), "pooling": pooling}
    stored = dict(architecture["config"])
    config = AutoConfig.for_model(stored.pop("model_type"), **stored)
    if from_library:
        source = _source(name)
        hub = source == name
        with _no_bar(), downloading(full, f"weights {weights!r}", "text_encoder=hf:<folder>", hub):
            model, report = AutoModel.from_pretrained(
                source, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
            )
        _check_whole(full, report)
    else:
        model = AutoModel.from_config(config, dtype=torch.float32)
    model = model.get_encoder() if config.is_encoder_decoder else model
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # a layer on the first token that served the pretraining task
    if load_pretrained and is_file(weights):
        fit(model, read_weights(weights), weights, ("pooler", "decoder"))
    _check_positions(full, model, max_tokens)
    pooling = tuple(architecture["pooling"])
    backbone = Backbone(
        full, model, _Read(pooling), transformer_blocks(model), variant=pooling, architecture=architecture
    )
    return backbone, len(pooling) * config.hidden_size, model.get_input_embeddings().num_embeddings


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keeps transformers' progress bar out of notebooks and logs."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _source(name: str) -> str:
    """A folder as an absolute path, a name of the hub as it is."""
    if (folder := files.from_root(name)).is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"hf:{name}: expected a folder, found nothing at {files.shown(folder)}")
    return name


def _pooling(source: str, revision: str) -> list[str]:
    """How token vectors become one, `mean` where nothing lies with the model that says otherwise."""
    from transformers.utils import cached_file

    file = cached_file(source, POOLING_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return ["mean"]
    said = read_json(Path(file))
    modes = said.get("pooling_mode") or [mode for key, mode in LEGACY.items() if said.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ParameterError(
            f"hf:{source}: {POOLING_FILE} asks for pooling {unknown[0]!r}, known are {', '.join(POOLINGS)}"
        )
    return modes


def _check_whole(full: str, report: dict) -> None:
    """transformers only warns of weights that are missing, and leaves those random."""
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    wrong = [f"{key}: found nothing" for key in missing]
    wrong += [
        f"{key}: expected {tuple(here)}, found {tuple(there)}"
        for key, there, here in report["mismatched_keys"]
    ]
    if wrong:
        raise ValueError(f"the weights of {full} do not fit its config: {'; '.join(wrong[:3])}")


def _check_positions(full: str, model: nn.Module, max_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding id.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    if limit and limit > 0 and max_tokens > limit:
        raise ParameterError(f"max_tokens: {full} has {limit} positions, found {max_tokens}")


def transformer_blocks(model: nn.Module, prefix: str = "") -> NamedBlocks:
    """Blocks of a transformers model: what it registers before its layers, each layer with what follows."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    if not lists:
        return [("model", [f"{prefix}{name}" for name, _ in model.named_parameters()])]
    layers, _ = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    blocks: dict[str, list[str]] = {"embedding": []}
    at = "embedding"
    for name, _ in model.named_parameters():
        if name.startswith(f"{layers}."):
            at = f"{layers}.{name.removeprefix(layers + '.').split('.')[0]}"
        blocks.setdefault(at, []).append(f"{prefix}{name}")
    return [(block, names) for block, names in blocks.items() if names]


class _Read:
    """Token ids to pooled vectors, (B, F) for each way of pooling, joined."""

    def __init__(self, pooling: tuple[str, ...]):
        self.pooling = pooling

    def __call__(self, model: nn.Module, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        real_BL, length_B = real_positions(tokens_BL, length_B)
        out = model(input_ids=tokens_BL, attention_mask=real_BL.long())
        return torch.cat(
            [POOLINGS[mode](out.last_hidden_state, real_BL, length_B) for mode in self.pooling], -1
        )


# Token vectors (B, L, F), real positions (B, L) and lengths (B,) to (B, F): sentence-transformers' modes.
POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mean": lambda x, real, length: (x * real[..., None]).sum(1) / length[:, None],
    "cls": lambda x, real, length: x[:, 0],
    "max": lambda x, real, length: x.masked_fill(~real[..., None], torch.finfo(x.dtype).min).amax(1),
}
