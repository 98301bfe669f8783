"""Image backbones of timm and torchvision: every classification model, cut before their classifiers.

The pooled features are the model's own (global average, class token, …).  Of torchvision's models, layers
between that average and the classifier, as the hidden layer of MobileNetV3, are cut off with it.

Shapes: B images, F feature channels, P positions, H, W positions of a map.
"""

import re

import torch
from torch import nn
from torch.nn import functional as F

from mmlib.config import ParameterError
from mmlib.model.encoders import unknown_name
from mmlib.model.pretrained import (
    Backbone,
    NamedBlocks,
    downloading,
    fit,
    is_file,
    is_loaded,
    layer_blocks,
    positions,
    read_weights,
    wrong_size,
)


def build_timm(name: str, weights: str, image_size: int, pooling: str, load_pretrained: bool) -> Backbone:
    """The timm model `name` with `weights`, a pretrained tag.

    Raises:
        ParameterError: unknown name or tag, a model without weights, or an image size that it cannot
            take.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        ValueError: a file that does not fit.
    """
    import timm

    full, (architecture, _, own_tag) = f"timm:{name}", name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models())
    tagged = f"{architecture}.{_tag(full, architecture, own_tag, weights)}".rstrip(".")
    is_pretrained = is_loaded(weights, load_pretrained)
    cfg = timm.models.get_pretrained_cfg(tagged)
    hub = bool(is_pretrained and cfg and cfg.hf_hub_id)
    with downloading(full, f"weights {weights!r}", "image_weights=<path>", hub):
        model = timm.create_model(tagged, pretrained=is_pretrained, num_classes=0)
    cfg = model.pretrained_cfg
    takes = _check_size(full, cfg, image_size)
    if load_pretrained and is_file(weights):
        classifier = cfg.get("classifier") or ()
        cut = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        fit(model, read_weights(weights), weights, cut)
    data = timm.data.resolve_model_data_config(model)
    return Backbone(
        full, model, _positions if pooling == "attention" else _pooled, timm_blocks(model),
        mean=tuple(data["mean"]), std=tuple(data["std"]), takes=takes,
    )  # fmt: skip


def _tag(full: str, architecture: str, own_tag: str, weights: str) -> str:
    """The pretrained tag that weights come from; for `none` and files, the one that describes the input."""
    from timm.models import get_arch_pretrained_cfgs

    tags = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(architecture)]
    is_tag = weights not in ("none", "default") and not is_file(weights)
    if own_tag and is_tag and own_tag != weights:
        raise ParameterError(f"{full} names the tag {own_tag!r} already: found image_weights {weights!r} too")
    tag = weights if is_tag else own_tag
    if tag and tag not in tags:
        raise unknown_name(f"weights of timm:{architecture}", tag, tags)
    if weights == "default" and not any(
        _has_source(c) for c in get_arch_pretrained_cfgs(architecture).values()
    ):
        raise ParameterError(f"timm has no weights for {full}: use image_weights 'none' or a file")
    return tag


def _has_source(cfg) -> bool:
    return bool(cfg.url or cfg.file or cfg.hf_hub_id)


def _check_size(full: str, cfg: dict, image_size: int) -> str:
    """The sizes that the model takes, in words."""
    trained = cfg["input_size"][-1]
    least = (cfg.get("min_input_size") or (3, 1, 1))[-1]
    if cfg.get("fixed_input_size"):
        takes, right = f"images of {trained} pixels", image_size == trained
    else:
        takes = f"images of at least {least} pixels" if least > 1 else f"images of its own {trained} pixels"
        right = image_size >= least
    if not right:
        raise wrong_size(full, image_size, takes)
    return takes


def _pooled(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    return model.forward_head(model.forward_features(image_BCHW), pre_logits=True)


def _positions(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    x = model.forward_features(image_BCHW)
    if x.ndim != 4:
        return x  # tokens (B, P, F)
    is_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return x.flatten(1, 2) if is_last else positions(x)


def timm_blocks(model: nn.Module, prefix: str = "") -> NamedBlocks:
    """Blocks by the model's own grouping for layer-wise rates; a last norm belongs to the block before it."""
    from timm.models import group_parameters

    parameters, blocks = dict(model.named_parameters()), []
    for _, names in sorted(group_parameters(model, model.group_matcher(coarse=False)).items()):
        full = [f"{prefix}{name}" for name in names]
        if blocks and all(parameters[name].ndim == 1 for name in names):
            blocks[-1][1].extend(full)
        else:
            blocks.append((_block_name(full[0]), full))
    return blocks


def _block_name(parameter: str) -> str:
    """`blocks.6.0` of `blocks.6.0.conv_pw.weight`, and the first module where there is no number."""
    numbered = re.match(r"(.*\.\d+)\.", parameter)
    return numbered[1] if numbered else parameter.split(".")[0]


# Modules of torchvision's classification models that come after the last map or beside the way to it.
CUT = ("avgpool", "flatten", "dropout", "classifier", "fc", "head", "heads", "AuxLogits", "aux1", "aux2")
INCEPTIONS = ("googlenet", "inception_v3")  # they renormalise their input where they have weights


def build_torchvision(
    name: str, weights: str, image_size: int, pooling: str, load_pretrained: bool
) -> Backbone:
    """The torchvision model `name` with `weights`, a name of its weights enum.

    Raises:
        ParameterError: unknown name or weights, or an image size that it cannot take.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        ValueError: a file that does not fit.
    """
    from torchvision import models

    full, known = f"torchvision:{name}", models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    entries, is_vit = models.get_model_weights(name), name.startswith("vit_")
    is_entry = weights not in ("none", "default") and not is_file(weights)
    if is_entry and weights not in entries.__members__:
        raise unknown_name(f"weights of {full}", weights, entries.__members__)
    entry = entries[weights] if is_entry else entries.DEFAULT
    data, least = entry.transforms(), max(entry.meta["min_size"])
    is_fixed = is_vit or name == "maxvit_t"
    takes = f"images of {'' if is_fixed else 'at least '}{least} pixels"
    options = {"image_size": image_size} if is_vit else {}
    is_pretrained = is_loaded(weights, load_pretrained)
    if name in INCEPTIONS and not is_pretrained:
        options = {"init_weights": False, "aux_logits": False, "transform_input": weights != "none"}
    try:
        if is_pretrained:
            with downloading(full, f"weights {weights!r}", "image_weights=<path>"):
                model = models.get_model(name, weights=entry, progress=False, **options)
        else:
            model = models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:  # a ViT's positions are those of one size
        raise wrong_size(full, image_size, takes) from error
    for child in CUT:
        if hasattr(model, child):
            delattr(model, child)
    if load_pretrained and is_file(weights):
        fit(model, read_weights(weights), weights, CUT)
    read = (_vit_class, _vit_tokens) if is_vit else (_average, _map_positions)
    return Backbone(
        full, model, read[pooling == "attention"], _vit_blocks(model) if is_vit else cnn_blocks(model),
        mean=tuple(data.mean), std=tuple(data.std), takes=takes,
    )  # fmt: skip


def trunk(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    """The last map (B, F, H, W) of a convolutional or windowed model that was cut."""
    from torchvision import models

    x = model._transform_input(image_BCHW) if hasattr(model, "_transform_input") else image_BCHW
    for child in model.children():
        for part in child if isinstance(child, nn.ModuleList) else (child,):
            x = part(x)
    # DenseNet applies this one outside its modules.
    return F.relu(x) if isinstance(model, models.DenseNet) else x


def _average(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    return trunk(model, image_BCHW).mean((2, 3))


def _map_positions(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    return positions(trunk(model, image_BCHW))


def _vit_tokens(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    patch_BPF = model._process_input(image_BCHW)
    class_B1F = model.class_token.expand(len(patch_BPF), -1, -1)
    return model.encoder(torch.cat([class_B1F, patch_BPF], dim=1))


def _vit_class(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    return _vit_tokens(model, image_BCHW)[:, 0]


def _vit_blocks(model: nn.Module) -> NamedBlocks:
    return layer_blocks(model, "encoder.layers", lambda name: name.startswith("encoder.ln."))


def cnn_blocks(model: nn.Module) -> NamedBlocks:
    """Blocks of a cut model: its residual blocks where it has some, else its layers.

    A norm that stands by itself belongs to the layer before it.
    """
    blocks: NamedBlocks = []
    for name, module in _units(model, ""):
        names = [f"{name}.{key}" for key, _ in module.named_parameters()]
        is_norm = all(p.ndim == 1 for p in module.parameters())
        if names and is_norm and blocks:
            blocks[-1][1].extend(names)
        elif names:
            blocks.append((name, names))
    return blocks


def _units(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Modules in the order of the data, lists and plain sequences of composite modules opened."""
    units = []
    for key, child in module.named_children():
        name = f"{prefix}{key}"
        has_parts = any(next(part.children(), None) is not None for part in child.children())
        is_list = type(child) in (nn.Sequential, nn.ModuleList)
        if name in ("features", "layers") or (is_list and has_parts):
            units += _units(child, f"{name}.")
        else:
            units.append((name, child))
    return units
