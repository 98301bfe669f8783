"""Text backbones of transformers: any model that `AutoModel` knows, by its name or folder.

Shapes: B captions, L tokens, F feature channels.

Its vectors are pooled by the mean over real tokens, or as the sentence-transformers configuration
that lies with the model says.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mmlib import paths
from mmlib.config import ParameterError
from mmlib.files import read_json
from mmlib.model.encoders import real_positions
from mmlib.model.pretrained import Backbone, NamedBlocks, is_loaded
from mmlib.model.weights import downloading, fit, is_file, read_weights

POOLING_FILE = "1_Pooling/config.json"
LEGACY = {  # names in older pooling files, in the order in which several are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",  # this and those below are refused
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


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
    if (folder := paths.from_root(name)).is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"hf:{name}: expected a folder, found nothing at {paths.shown(folder)}")
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
