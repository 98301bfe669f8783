"""Image backbones of timm: every model that it registers, cut before its classifier.

Shapes: B images, F feature channels, P positions, H, W positions of a map.

The pooled features are the model's own (global average, class token, …), as timm gives them with
`num_classes=0`.
"""

import re

import torch
from torch import nn

from mmlib.config import ParameterError
from mmlib.model.encoders.backbone import Backbone, NamedBlocks, is_loaded, positions, wrong_size
from mmlib.model.encoders.weights import downloading, fit, is_file, read_weights, unknown_name


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
