"""Backbones: image models of timm, torchvision and open_clip, text models of open_clip and transformers.

Each is built by its own library and cut before its classifier.  The features of an image are the model's own
vector (global average, class token, projection), or its positions for a head that attends to them.  Of
torchvision's models, layers between the average and the classifier, as the hidden layer of MobileNetV3, are
cut off too.  Of transformers, any model that `AutoModel` knows; its vectors are pooled by the mean over real
tokens, or as the sentence-transformers configuration that lies with the model says.

All are built alike, `build_…(name, config, load_pretrained)`, from a config with the fields of ModelConfig
and the size of the input; its weights are a tag of the library, `default`, `none` or a file.  Without
`load_pretrained` they are random, and neither files nor network are needed.  All raise ParameterError for a
name, tag or size that the library does not have, FileNotFoundError for weights that are not there and cannot
be downloaded, and ValueError for a file that does not fit.

Shapes: B items, L tokens, F feature channels, P positions.
"""

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmlib import files
from mmlib.config import JOIN, ParameterError
from mmlib.model.encoders import IMAGE_ENCODERS, real_positions, unknown_name
from mmlib.model.pretrained import (
    Backbone,
    chosen_tag,
    downloading,
    is_file,
    load_file,
    reading,
    side_by_side,
)
from mmlib.output import quiet

# Modules of torchvision's classification models that come after the last map or beside the way to it.
CUT = ("avgpool", "flatten", "dropout", "classifier", "fc", "head", "heads", "AuxLogits", "aux1", "aux2")
POOLING_FILE = "1_Pooling/config.json"
Blocks = list[tuple[str, list[str]]]


def build_image_backbone(config: Any, load_pretrained: bool) -> Backbone:
    """The backbone that `image_encoder` names, or several, joined by `+`, with their features side by side.

    Of several, `image_weights` is one for all, or one for each, joined likewise.
    """
    names = config.image_encoder.split(JOIN)
    weights = config.image_weights.split(JOIN) if len(names) > 1 else [config.image_weights]
    of_each = weights * len(names) if len(weights) == 1 else weights
    if len(of_each) != len(names):
        raise ParameterError(
            f"image_weights: expected one for all of {len(names)} image encoders or one for each, joined by"
            f" {JOIN!r}, found {len(weights)}"
        )
    if len(names) > 1 and config.image_pooling == "attention":
        raise ParameterError(
            f"image_pooling 'attention' takes one image encoder, found {len(names)}; use 'encoder'"
        )
    builders = {"timm": build_timm, "torchvision": build_torchvision, "open_clip": build_open_clip_image}
    parts = []
    for name, of_one in zip(names, of_each):
        library, _, model = name.partition(":")
        if library not in builders or not model:
            known = [*([] if parts else IMAGE_ENCODERS), *(f"{library}:<name>" for library in builders)]
            raise unknown_name("image_encoder", name, known)
        chosen = SimpleNamespace(image_weights=of_one, image_pooling=config.image_pooling)
        parts.append(builders[library](model, chosen, load_pretrained))
    return parts[0] if len(parts) == 1 else side_by_side(parts)


def build_timm(name: str, config: Any, load_pretrained: bool) -> Backbone:
    """The timm model `name`, with or without a tag."""
    import timm

    full, weights, (architecture, _, own_tag) = f"timm:{name}", config.image_weights, name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models())
    tags = [key.partition(".")[2] for key in timm.models.get_arch_pretrained_cfgs(architecture)]
    if own_tag and own_tag not in tags:
        raise unknown_name(f"weights of timm:{architecture}", own_tag, tags)
    tag = chosen_tag(full, weights, [own_tag] if own_tag else tags, "image_weights")
    tagged, is_loaded = f"{architecture}.{tag or own_tag}".rstrip("."), bool(tag) and load_pretrained
    hub = is_loaded and bool(timm.models.get_pretrained_cfg(tagged).hf_hub_id)
    search = downloading(full, f"weights {weights!r}", "image_weights=<path>", hub)
    with search if is_loaded else nullcontext():
        model = timm.create_model(tagged, pretrained=is_loaded, num_classes=0)
    about = model.pretrained_cfg
    if load_pretrained and is_file(weights):
        classifier = about.get("classifier") or ()
        load_file(model, full, weights, (classifier,) if isinstance(classifier, str) else classifier)
    data = timm.data.resolve_model_data_config(model)
    return image_backbone(
        full, model, _read_timm, timm_blocks(model), config, data["mean"], data["std"],
        about["input_size"][-1],
    )  # fmt: skip


def image_backbone(name, model, read, blocks, config, mean, std, size, variant="") -> Backbone:
    """A `Backbone` whose `read` gives a vector or positions, as the config's pooling asks for.

    Weights of convolutions, and so the maps between them, lie with the channels last, as the fast kernels of
    CPUs and GPUs read them.
    """
    model = model.to(memory_format=torch.channels_last)
    mean, std, pooling = tuple(mean), tuple(std), config.image_pooling
    identity = f"{name}{variant} mean {mean} std {std} {pooling}"
    read = partial(read, positions=pooling == "attention")
    return Backbone(name, model, read, blocks, identity, mean, std, size)


def _read_timm(model: nn.Module, image_BCHW: torch.Tensor, positions: bool) -> torch.Tensor:
    x = model.forward_features(image_BCHW)
    if not positions:
        return model.forward_head(x, pre_logits=True)
    if x.ndim == 3:
        return x  # tokens (B, P, F)
    return x.flatten(1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else x.flatten(2).mT


def timm_blocks(model: nn.Module, prefix: str = "") -> Blocks:
    """Blocks by the model's own grouping for layer-wise rates, named `blocks.6.0` or as a module."""
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=False))
    names = [names for _, names in sorted(groups.items())]
    labels = [re.match(r"(.*\.\d+)\.|([^.]+)", first)[0].rstrip(".") for first, *_ in names]
    blocks = _with_norms(model, list(zip(labels, names)))
    return [(prefix + label, [prefix + name for name in names]) for label, names in blocks]


def _with_norms(model: nn.Module, blocks: Blocks) -> Blocks:
    """Joins a norm that stands by itself to the block before it."""
    parameters, joined = dict(model.named_parameters()), []
    for label, names in blocks:
        if joined and all(parameters[name].ndim == 1 for name in names):
            joined[-1][1].extend(names)
        else:
            joined.append((label, list(names)))
    return joined


def build_torchvision(name: str, config: Any, load_pretrained: bool) -> Backbone:
    """The torchvision model `name`."""
    from torchvision import models

    full, weights, known = f"torchvision:{name}", config.image_weights, models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    entries, is_vit = models.get_model_weights(name), name.startswith("vit_")
    tag = chosen_tag(full, weights, ["DEFAULT", *entries.__members__], "image_weights")
    entry = entries[tag or "DEFAULT"]
    data = entry.transforms()
    # A ViT's positions are those of one size.
    options = {"image_size": max(entry.meta["min_size"])} if is_vit else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}  # slow, and torchvision means to give it up
    loaded = entry if tag and load_pretrained else None
    with downloading(full, f"weights {weights!r}", "image_weights=<path>") if loaded else nullcontext():
        model = models.get_model(name, weights=loaded, progress=False, **options)
    if hasattr(model, "transform_input"):  # Inception and GoogLeNet renormalise their input
        model.transform_input = weights != "none"
    for child in CUT:
        if hasattr(model, child):
            delattr(model, child)
    if load_pretrained and is_file(weights):
        load_file(model, full, weights, CUT)
    return image_backbone(
        full, model, _read_torchvision, layer_blocks(model) if is_vit else cnn_blocks(model), config,
        data.mean, data.std, data.crop_size[0],
    )  # fmt: skip


def _read_torchvision(model: nn.Module, image_BCHW: torch.Tensor, positions: bool) -> torch.Tensor:
    from torchvision import models

    if isinstance(model, models.VisionTransformer):
        patch_BPF = model._process_input(image_BCHW)
        class_B1F = model.class_token.expand(patch_BPF.shape[0], -1, -1)
        x_BPF = model.encoder(torch.cat([class_B1F, patch_BPF], dim=1))
        return x_BPF if positions else x_BPF[:, 0]
    x = model._transform_input(image_BCHW) if hasattr(model, "_transform_input") else image_BCHW
    for child in model.children():
        for part in child if isinstance(child, nn.ModuleList) else (child,):
            x = part(x)
    x = F.relu(x) if isinstance(model, models.DenseNet) else x  # DenseNet does so outside its modules
    return x.flatten(2).mT if positions else x.mean((2, 3))


def cnn_blocks(model: nn.Module) -> Blocks:
    """Blocks of a model without classifier: its residual blocks where it has some, else its layers."""
    units = [
        (name, [f"{name}.{key}" for key, _ in module.named_parameters()])
        for name, module in _units(model, "")
    ]
    return _with_norms(model, [(name, names) for name, names in units if names])


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order of the data, lists and plain sequences of composite modules opened."""
    for key, child in module.named_children():
        name = f"{prefix}{key}"
        has_parts = any(next(part.children(), None) is not None for part in child.children())
        if name in ("features", "layers") or (type(child) in (nn.Sequential, nn.ModuleList) and has_parts):
            yield from _units(child, f"{name}.")
        else:
            yield name, child


def layer_blocks(model: nn.Module) -> Blocks:
    """Blocks of a transformer: what comes before its layers, and each layer; what comes after joins the last.

    Its layers are the list of modules that holds most of the parameters.
    """
    lists = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential)
    }
    layers = max(lists, key=lists.get) + "."
    blocks: dict[str, list[str]] = {"embedding": []}
    block, after = "embedding", []
    for name, _ in model.named_parameters():
        if name.startswith(layers):
            block = layers + name.removeprefix(layers).split(".")[0]
        # Projections that are parameters of the model itself are listed before its modules.
        is_after = name.split(".")[0] in ("proj", "text_projection")
        (after if is_after else blocks.setdefault(block, [])).append(name)
    blocks[block] += after
    return [(block, names) for block, names in blocks.items() if names]


def open_clip_tag(name: str, weights: str, option: str) -> str | None:
    """The tag that `weights` names, the model's first for `default`; None for `none` and for a file.

    Args:
        name: of the model, without `open_clip:`.
        weights: `none`, `default`, a tag, or a file.
        option: where the weights are named, for errors.

    Raises:
        ParameterError: an unknown model or tag, or `default` where there is no tag.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise unknown_name("open_clip model", name, open_clip.list_models())
    return chosen_tag(f"open_clip:{name}", weights, open_clip.list_pretrained_tags_by_model(name), option)


def create_open_clip(
    name: str, weights: str, option: str, load_pretrained: bool
) -> tuple[str, nn.Module, dict]:
    """Full name, whole CLIP model, and what open_clip says of its tag; arguments are of `open_clip_tag`."""
    import open_clip

    full, tag = f"open_clip:{name}", open_clip_tag(name, weights, option)
    about = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    file = weights if is_file(weights) and load_pretrained else None
    # A text tower of transformers has its configuration on the hub.
    hub = bool(about.get("hf_hub")) or "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
    # Remarks are on random weights, which are what was asked for.
    search = downloading(full, f"weights {(tag or weights)!r}", f"{option}=<path>", hub)
    with quiet(), search if hub or (tag and load_pretrained) else nullcontext():
        if tag and load_pretrained:
            file = open_clip.download_pretrained(about)
        # Weights that were trained with the quick form of GELU give other features with the exact one.
        options = {"force_quick_gelu": bool(about.get("quick_gelu")), "pretrained_text": False}
        model = open_clip.create_model(name, force_custom_text=True, **options)
    if file:
        with reading(full, file) as path:
            open_clip.load_checkpoint(model, path)
    return full, model, about


def build_open_clip_image(name: str, config: Any, load_pretrained: bool) -> Backbone:
    """The image tower of the open_clip model `name` with its projection."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    full, model, about = create_open_clip(name, config.image_weights, "image_weights", load_pretrained)
    visual = model.visual
    if hasattr(visual, "trunk"):
        blocks = timm_blocks(visual.trunk, "trunk.")
        blocks[-1][1].extend(f"head.{key}" for key, _ in visual.head.named_parameters())
    else:
        blocks = layer_blocks(visual) if hasattr(visual, "transformer") else cnn_blocks(visual)
    size = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
    return image_backbone(
        full, visual, _read_open_clip_image, blocks, config, about.get("mean", OPENAI_DATASET_MEAN),
        about.get("std", OPENAI_DATASET_STD), size, " quick_gelu" if about.get("quick_gelu") else "",
    )  # fmt: skip


def _read_open_clip_image(visual: nn.Module, image_BCHW: torch.Tensor, positions: bool) -> torch.Tensor:
    if positions:  # the patches after the last layer, or of the last map, before pooling and projection
        out = visual.forward_intermediates(image_BCHW, indices=1, intermediates_only=True)
        return out["image_intermediates"][-1].flatten(2).mT
    out = visual(image_BCHW)
    return out[0] if isinstance(out, tuple) else out  # CoCa's tower gives its tokens too


def build_open_clip_text(name: str, config: Any, padding: int, load_pretrained: bool) -> Backbone:
    """The text tower of the open_clip model `name` with its projection; `padding` is the tokenizer's id."""
    full, model, about = create_open_clip(name, config.text_weights, "text_weights", load_pretrained)
    text = model.text
    _check_positions(full, text.context_length, config.max_tokens)
    identity = f"{full} quick_gelu text" if about.get("quick_gelu") else f"{full} text"
    read = partial(_read_open_clip_text, padding=padding)
    return Backbone(full, text, read, layer_blocks(text), identity, ids=text.vocab_size)


def _read_open_clip_text(
    text: nn.Module, tokens_BL: torch.Tensor, length_B: torch.Tensor, padding: int
) -> torch.Tensor:
    real_BL, length_B = real_positions(tokens_BL, length_B)
    if hasattr(text, "config"):  # a transformers model, which masks its own padding id
        return text(tokens_BL.masked_fill(~real_BL, text.config.pad_token_id))
    if text.attn_mask is None or text.cls_emb is not None or text.pool_type not in ("argmax", "eos"):
        # It reads padding as it did when it was trained.
        tokens_BL = F.pad(tokens_BL, (0, text.context_length - tokens_BL.shape[1]), value=padding)
        out = text(tokens_BL)
        return out[0] if isinstance(out, tuple) else out
    # No token of a causal tower sees what follows the last real one: there is no need for its full length.
    L, project = tokens_BL.shape[1], text.text_projection
    x_BLF = text.token_embedding(tokens_BL) + text.positional_embedding[:L]
    x_BLF = text.ln_final(text.transformer(x_BLF, attn_mask=text.attn_mask[:L, :L]))
    end_BF = x_BLF[torch.arange(x_BLF.shape[0], device=x_BLF.device), length_B - 1]
    if project is None:
        return end_BF
    return project(end_BF) if isinstance(project, nn.Linear) else end_BF @ project


def _check_positions(full: str, positions: int | None, max_tokens: int) -> None:
    if positions and 0 < positions < max_tokens:
        raise ParameterError(f"max_tokens: {full} has {positions} positions, found {max_tokens}")


def build_hf_text(name: str, settings: Any, load_pretrained: bool, architecture: dict | None) -> Backbone:
    """The transformers model `name`: a name on the hub, or a folder (relative ones from the root).

    Args:
        name: see above; a tag of its weights is a revision of the hub.
        settings: the config.
        load_pretrained: whether weights are loaded at all.
        architecture: of an encoder that was built before; neither folder nor network are then needed
            unless weights are loaded.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    full, weights = f"hf:{name}", settings.text_weights
    is_loaded = load_pretrained and weights != "none" and not is_file(weights)
    revision = weights if is_loaded and weights != "default" else "main"
    folder, instead = files.from_root(name), "text_encoder=hf:<folder>"
    source, hub = (str(folder), False) if folder.is_dir() else (name, True)
    if architecture is None:
        with downloading(full, "config.json", instead, hub):
            config = AutoConfig.from_pretrained(source, revision=revision)
            pooling = _pooling(source, revision)
        architecture = {"config": json.loads(config.to_json_string(use_diff=False)), "pooling": pooling}
    stored = dict(architecture["config"])
    config = AutoConfig.for_model(stored.pop("model_type"), **stored)
    if is_loaded:
        disable_progress_bar()  # it would stand in notebooks and logs
        with downloading(full, f"weights {weights!r}", instead, hub):
            model, report = AutoModel.from_pretrained(
                source, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
            )
        # transformers only warns of these, and leaves them random.
        if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
            raise ValueError(f"the weights of {full} lack what its config asks for: {', '.join(missing[:3])}")
    else:
        model = AutoModel.from_config(config, dtype=torch.float32)
    model = model.get_encoder() if config.is_encoder_decoder else model
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # a layer on the first token that served the pretraining task
    if load_pretrained and is_file(weights):
        load_file(model, full, weights, ("pooler", "decoder"))
    _check_positions(full, _positions(model), settings.max_tokens)
    pooling, ids = architecture["pooling"], model.get_input_embeddings().num_embeddings
    return Backbone(
        full, model, partial(_read_hf, pooling=pooling), layer_blocks(model), " ".join([full, *pooling]),
        ids=ids, architecture=architecture,
    )  # fmt: skip


def _pooling(source: str, revision: str) -> list[str]:
    """How token vectors become one, `mean` where nothing lies with the model that says otherwise."""
    from transformers.utils import cached_file

    file = cached_file(source, POOLING_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    said = files.read_json(Path(file)) if file else {}
    older = sorted(key for key in said if key.startswith("pooling_mode_") and said[key])
    older = [key.removeprefix("pooling_mode_").removesuffix("s").removesuffix("_token") for key in older]
    modes = said.get("pooling_mode") or older or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ParameterError(
            f"hf:{source}: {POOLING_FILE} asks for pooling {unknown[0]!r}, known are {', '.join(POOLINGS)}"
        )
    return modes


def _positions(model: nn.Module) -> int | None:
    """How many tokens the model can read; None: any number."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding id.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return limit


def _read_hf(
    model: nn.Module, tokens_BL: torch.Tensor, length_B: torch.Tensor, pooling: list[str]
) -> torch.Tensor:
    """Pooled vectors, (B, F) for each way of pooling, joined."""
    real_BL, length_B = real_positions(tokens_BL, length_B)
    x_BLF = model(input_ids=tokens_BL, attention_mask=real_BL.long()).last_hidden_state
    return torch.cat([POOLINGS[mode](x_BLF, real_BL, length_B) for mode in pooling], dim=-1)


# Token vectors (B, L, F), real positions (B, L) and lengths (B,) to (B, F): sentence-transformers' modes.
POOLINGS = {
    "mean": lambda x, real, length: (x * real[..., None]).sum(1) / length[:, None],
    "cls": lambda x, real, length: x[:, 0],
    "max": lambda x, real, length: x.masked_fill(~real[..., None], torch.finfo(x.dtype).min).amax(1),
}
