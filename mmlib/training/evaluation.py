"""Evaluating a finished run on a split: results, per-query ranks, a gallery, and who reads which slot.

Everything lands in the run folder, so that the analysis needs neither model nor data set.

Shapes: N images, M captions, D width, S slots, Q queries, K retrieved items, H = W pixels.
"""

import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmlib.analysis import diagnose, nearest_neighbours, queries_of, slot_readers
from mmlib.analysis.people import find_judgements
from mmlib.config import DataConfig, EvaluateConfig, ParameterError, TrainConfig, build, unread
from mmlib.data import Dataset, Split, Tokenizer, load_dataset
from mmlib.files import InUse
from mmlib.metrics import RetrievalRanks, paired_ranks, retrieval_ranks, summarise
from mmlib.metrics.compare import held_out_fingerprint
from mmlib.metrics.protocols import fold_ranks, protocols_of
from mmlib.metrics.summary import summarise_folds
from mmlib.model import DualEncoder, build_model
from mmlib.training.card import write_card
from mmlib.training.checkpoint import (
    check_fits,
    check_same_data,
    evaluated_weights,
    load_checkpoint,
    load_weights,
    tokenizer_of,
)
from mmlib.training.embed import embed_captions, embed_split, page_tower
from mmlib.training.inputs import split_tensors
from mmlib.training.processes import build_fabric
from mmlib.training.runs import (
    open_run,
    pretrained_encoders,
    require_complete,
    run_folder,
    stored_config,
    stored_environment,
    traces,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts

GALLERY_K = 5  # retrieved items shown per query
GALLERY_PIXELS = 128  # side of a gallery picture, where the source can draw or has it


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to embed."""

    config: TrainConfig
    model: DualEncoder
    tokenizer: Tokenizer
    epoch: int  # at whose end the weights were
    traces: dict[str, tuple]  # of its folder when it was read


def load_run(run: str, checkpoint: str, device: torch.device, wise_ft: float = 1.0) -> LoadedRun:
    """The model of a complete run.

    Args:
        run: its name.
        checkpoint: `best` or `last`.
        device: where the model goes.
        wise_ft: share of the run's own weights; the rest are those that it started from: its parent's, or
            the pretrained ones (Wortsman et al. 2022).

    Raises:
        FileNotFoundError: no such run, or a file of it is missing.
        ValueError: the run is not complete, or its checkpoint is damaged or of another model.
        ParameterError: `wise_ft` for a run that started from random weights.
    """
    require_complete(run)
    there = traces(run)
    config = stored_config(run)
    path = run_folder(run) / f"{checkpoint}.pt"
    content = load_checkpoint(path)
    check_fits(path, content, config.model_dump())
    tokenizer = tokenizer_of(path, content)
    model = build_model(
        config, tokenizer.size, tokenizer.padding_id,
        load_pretrained=False, architecture=content["architecture"],
    )  # fmt: skip
    weights = evaluated_weights(content)
    if wise_ft < 1:
        weights = interpolate_weights(_first_weights(run, config, tokenizer), weights, wise_ft)
    load_weights(path, model, weights)
    return LoadedRun(config, model.to(device).eval(), tokenizer, content["position"]["epoch"] - 1, there)


def _first_weights(run: str, config: TrainConfig, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """The weights that a run was started with, as far as they were not random."""
    if parent := stored_environment(run)["parent"]:
        return evaluated_weights(load_checkpoint(run_folder(parent["run"]) / f"{parent['checkpoint']}.pt"))
    if not (sides := list(pretrained_encoders(config))):
        raise ParameterError(
            f"wise_ft needs a run that started from trained weights: {run!r} has no parent and no pretrained"
            " encoder; use wise_ft 1"
        )
    started = build_model(config, tokenizer.size, tokenizer.padding_id).state_dict()
    backbones = tuple(f"{side}_encoder.backbone." for side in sides)
    return {name: weight for name, weight in started.items() if name.startswith(backbones)}


def evaluate(config: EvaluateConfig) -> list[dict]:
    """Evaluates each run; what it finds goes into the run's folder.

    `results.json` (metrics), `ranks.npz` (per query), `diagnosis.json` (groups, hubs, agreement with
    people), `slots.npz` (use of the memory); and, with data of the data set itself, `gallery.npz`
    and `queries.json`.

    Returns:
        The content of each `results.json`, in the order of `config.runs`.

    Raises:
        FileNotFoundError, ValueError: a run that is missing, not complete or damaged, or data that are
            not those of the run.
        InUse: a run is at work, or was trained anew meanwhile.
    """
    fabric = build_fabric(config)
    loaded = {run: load_run(run, config.checkpoint, fabric.device, config.wise_ft) for run in config.runs}
    moved = [parts.config.model_copy(update={"data_root": config.data_root}) for parts in loaded.values()]
    if config.data_root is not None and all(ignored := [unread(c).get("data_root") for c in moved]):
        raise ParameterError(f"{ignored[0]}; leave it out")
    datasets: dict[str, Dataset] = {}
    return [_evaluate_run(run, parts, config, datasets, fabric) for run, parts in loaded.items()]


def joined_ranks(config: EvaluateConfig, datasets: dict[str, Dataset]) -> RetrievalRanks:
    """Ranks of an ensemble: the unit embeddings of all runs side by side, so its similarity is their mean.

    Args:
        config: its runs, their checkpoint and the split.
        datasets: what was loaded before, to be shared between ensembles; what is loaded here is added.

    Raises:
        FileNotFoundError, ValueError: as `evaluate`.
    """
    fabric = build_fabric(config)
    images, texts = [], []
    for run in config.runs:
        parts = load_run(run, config.checkpoint, fabric.device)
        dataset = _dataset_of(run, parts.config, config.data_root, datasets)
        data = split_tensors(parts.config, dataset, parts.tokenizer, parts.model, config.split, fabric)
        for found, embedded in zip((images, texts), embed_split(parts.model, data, config.eval_batch_size)):
            found.append(torch.nn.functional.normalize(embedded, dim=-1))
    return retrieval_ranks(torch.cat(images, 1), torch.cat(texts, 1), data.split.image_of_caption_M)


def _dataset_of(run: str, config: TrainConfig, data_root: str | None, loaded: dict[str, Dataset]) -> Dataset:
    """The data set of a run, loaded once for all runs that share it."""
    if data_root is not None:
        config = build(TrainConfig, {**config.model_dump(), "data_root": data_root})
    key = json.dumps([getattr(config, name) for name in DataConfig.model_fields])
    if config.dataset == "shards":  # the training shards need not be here, and may be many
        config = config.model_copy(update={"train_shards": []})
    dataset = loaded.get(key) or load_dataset(config)
    loaded[key] = dataset
    there = stored_environment(run)["data"]
    if config.dataset == "shards":
        there = {**there, "fingerprint": held_out_fingerprint(there)}
    check_same_data(run, dataset.name, dataset.fingerprint, there)
    return dataset


def _evaluate_run(
    run: str, parts: LoadedRun, config: EvaluateConfig, datasets: dict[str, Dataset], fabric: "Fabric"
) -> dict:
    trained, model = parts.config, parts.model
    dataset = _dataset_of(run, trained, config.data_root, datasets)
    if config.wise_ft < 1:  # the features on the disk are those of other weights
        trained = build(TrainConfig, {**trained.model_dump(), "cache_features": False})
    data = split_tensors(trained, dataset, parts.tokenizer, model, config.split, fabric)
    if trained.memory_write:
        # The test-time write changes the slots; the analysis below wants them as trained.
        model = copy.deepcopy(model)
    image_ND, text_MD = embed_split(model, data, config.eval_batch_size, write=trained.memory_write)
    image_of_text_M = data.split.image_of_caption_M
    ranks = retrieval_ranks(image_ND, text_MD, image_of_text_M)
    paired = paired_ranks(image_ND, text_MD, image_of_text_M)
    named = {}
    for protocol in protocols_of(trained.dataset, config.split, ranks.images):
        if protocol.folds == 1:
            named[protocol.name] = summarise(ranks, protocol=protocol.name)
        else:
            folds = fold_ranks(image_ND, text_MD, image_of_text_M, folds=protocol.folds)
            named[protocol.name] = summarise_folds(folds, protocol=protocol.name)
    result = {
        "run": run,
        "checkpoint": config.checkpoint,
        "select_by": trained.select_by,
        "epoch": parts.epoch,
        "split": config.split,
        "data": dataset.identity,
        "pretraining": "; ".join(
            f"{side}: {learned}" for side, learned in pretrained_encoders(trained).items()
        )
        or "none",
        "wise_ft": config.wise_ft,
        "protocols": {r.protocol: summarise(r) for r in (ranks, paired)} | named,
    }
    arrays = {
        "gallery": _gallery(dataset, data.split, ranks, image_ND, text_MD, config.gallery_queries),
        "neighbours": nearest_neighbours(dataset, config.split, image_ND, text_MD),
        "slots": slot_readers(parts.model, data, config.eval_batch_size),
        "ranks": vars(ranks),
    }
    if arrays["neighbours"] and not trained.memory_write:  # a page does not write
        tower = page_tower(model, parts.tokenizer, trained.max_tokens, image_ND)
        arrays["neighbours"] |= tower
    data_root = trained.folder if config.data_root is None else config.data_root
    diagnosis = diagnose(
        dataset,
        config.split,
        image_ND.cpu().numpy(),
        text_MD.cpu().numpy(),
        ranks,
        find_judgements(data_root) if trained.dataset == "flickr8k" else None,
        lambda captions: embed_captions(model, parts.tokenizer, captions, trained.max_tokens).cpu().numpy(),
    )
    require_complete(run)  # a run that was deleted meanwhile must not come back as an empty folder
    with open_run(run) as folder:
        if traces(run) != parts.traces:
            raise InUse(
                f"run {run!r} was trained anew while it was evaluated; nothing was written: evaluate it again"
            )
        # Results that are there say that the rest is of the same evaluation, so they go first and come last.
        (folder.path / "results.json").unlink(missing_ok=True)
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **values)
            folder.write(f"{name}.npz", buffer.getbuffer())
        folder.write_json("queries.json", queries_of(dataset, config.split))
        folder.write_json("diagnosis.json", diagnosis)
        folder.write_json("results.json", result)
        write_card(folder)
    return result


def _gallery(
    dataset: Dataset,
    split: Split,
    ranks: RetrievalRanks,
    image_ND: torch.Tensor,
    text_MD: torch.Tensor,
    queries: int,
) -> dict[str, np.ndarray]:
    """Queries with their top results: half hits at rank 1, half misses, drawn with a fixed seed."""
    unit_ND, unit_MD = (torch.nn.functional.normalize(x_D, dim=-1) for x_D in (image_ND, text_MD))
    t2i, i2t = _hits_and_misses(ranks.t2i_M, queries), _hits_and_misses(ranks.i2t_N, queries)

    def top(query_QD: torch.Tensor, gallery_GD: torch.Tensor) -> np.ndarray:
        return (query_QD @ gallery_GD.T).topk(min(GALLERY_K, len(gallery_GD))).indices.cpu().numpy()

    t2i_top_QK, i2t_top_QK = top(unit_MD[t2i], unit_ND), top(unit_ND[i2t], unit_MD)
    image_of_M, text_M = split.image_of_caption_M, np.array(split.captions, dtype=np.str_)
    shown = np.unique(np.concatenate([t2i_top_QK.ravel(), i2t]))
    pixels = np.empty((len(shown), GALLERY_PIXELS, GALLERY_PIXELS, 3), dtype=np.uint8)
    for place, image in enumerate(shown):
        picture = dataset.source.load(split.images[image], GALLERY_PIXELS).convert("RGB")
        pixels[place] = picture.resize((GALLERY_PIXELS, GALLERY_PIXELS))
    return {
        "t2i_query": text_M[t2i],
        "t2i_thumbs": pixels[np.searchsorted(shown, t2i_top_QK)],
        "t2i_hit": t2i_top_QK == image_of_M[t2i][:, None],
        "t2i_rank": ranks.t2i_M[t2i],
        "i2t_query": pixels[np.searchsorted(shown, i2t)],
        "i2t_captions": text_M[i2t_top_QK],
        "i2t_hit": image_of_M[i2t_top_QK] == i2t[:, None],
        "i2t_rank": ranks.i2t_N[i2t],
        "redistributable": np.array(dataset.redistributable),
    }


def _hits_and_misses(rank_Q: np.ndarray, queries: int) -> np.ndarray:
    """Indices of up to `queries` queries, half of them at rank 1 where there are so many."""
    generator = np.random.default_rng(0)
    hits = generator.permutation(np.flatnonzero(rank_Q == 1))
    misses = generator.permutation(np.flatnonzero(rank_Q > 1))
    take = min(len(hits), max(queries // 2, queries - len(misses)))
    return np.concatenate([hits[:take], misses[: queries - take]]).astype(int)


def interpolate_weights(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """(1 − share)·start + share·end, for every weight that both have in one shape.

    Wortsman et al. 2022 (WiSE-FT), eq. 1: between the pretrained and the fine-tuned weights lie some
    that are better than either, on shifted data above all.  What only `end` has, what has another
    shape there, and whatever is not a floating-point number (counters, ids) is as in `end`.

    Args:
        start: state dict of the pretrained model or the parent.
        end: state dict of the trained model; its keys, dtypes and devices are those of the result.
        share: of `end`, in [0, 1].

    Returns:
        A new state dict; no tensor of it is shared with the two.
    """
    mixed = {}
    for name, weight in end.items():
        first = start.get(name)
        if first is None or first.shape != weight.shape or not weight.is_floating_point():
            mixed[name] = weight.clone()
        else:
            between = torch.lerp(first.to(weight.device).float(), weight.float(), share)
            mixed[name] = between.to(weight.dtype)
    return mixed
