"""Evaluating a finished run on a split: results, per-query ranks, a gallery, and who reads which slot.

Everything lands in the run folder, so that the analysis needs neither model nor data set.

Shapes: N images, M captions, D width, S slots, Q queries, K retrieved items, H = W pixels.
"""

import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmlib.config import DataConfig, EvaluateConfig, TrainConfig, build
from mmlib.data import Dataset, Tokenizer, load_dataset, open_store
from mmlib.data.batches import SplitTensors
from mmlib.data.judgements import find_judgements
from mmlib.metrics import RetrievalRanks, paired_ranks, retrieval_ranks, summarise
from mmlib.model import MemoryNetwork, build_model
from mmlib.training.checkpoint import (
    check_fits,
    evaluated_weights,
    load_checkpoint,
    load_weights,
    write_bytes_atomic,
)
from mmlib.training.diagnose import diagnose, write_diagnosis, write_queries
from mmlib.training.embed import embed_captions, embed_split
from mmlib.training.runs import read_json, require_complete, run_folder, stored_config, write_json
from mmlib.training.slots import slot_readers
from mmlib.training.start import build_fabric

GALLERY_K = 5  # retrieved items shown per query
GALLERY_PIXELS = 128  # side of a gallery picture, where the source can draw or has it


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to embed."""

    config: TrainConfig
    model: MemoryNetwork
    tokenizer: Tokenizer
    epoch: int  # at whose end the weights were


def load_run(run: str, checkpoint: str, device: torch.device) -> LoadedRun:
    """The model of a complete run.

    Raises:
        FileNotFoundError: no such run, or a file of it is missing.
        ValueError: the run is not complete, or its checkpoint is damaged or of another model.
    """
    require_complete(run)
    config = stored_config(run)
    tokenizer = Tokenizer.from_state(read_json(run_folder(run) / "tokenizer.json"))
    path = run_folder(run) / f"{checkpoint}.pt"
    content = load_checkpoint(path)
    check_fits(path, content, config.model_dump(), tokenizer.fingerprint)
    model = build_model(config, tokenizer.size, load_pretrained=False)
    load_weights(path, model, evaluated_weights(content))
    return LoadedRun(config, model.to(device).eval(), tokenizer, content["position"]["epoch"] - 1)


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
    """
    fabric = build_fabric(config)
    loaded = {run: load_run(run, config.checkpoint, fabric.device) for run in config.runs}
    datasets: dict[str, Dataset] = {}
    results = []
    for run, parts in loaded.items():
        dataset = _dataset_of(run, parts.config, config.data_root, datasets)
        store = open_store(dataset, parts.config.image_size, parts.config.resize)
        data = SplitTensors(
            dataset, store, parts.tokenizer, config.split, parts.config.max_tokens,
            parts.config.padding_mask, fabric.device,
        )  # fmt: skip
        data_root = parts.config.folder if config.data_root is None else config.data_root
        results.append(_evaluate_run(run, parts, data, dataset, config, data_root))
    return results


def _dataset_of(run: str, config: TrainConfig, data_root: str | None, loaded: dict[str, Dataset]) -> Dataset:
    """The data set of a run, loaded once for all runs that share it."""
    if data_root is not None:
        config = build(TrainConfig, {**config.model_dump(), "data_root": data_root})
    key = json.dumps([getattr(config, name) for name in DataConfig.model_fields])
    dataset = loaded.get(key) or load_dataset(config)
    loaded[key] = dataset
    there = read_json(run_folder(run) / "environment.json")["data"]
    if there["fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"run {run!r} was trained on other data: {there['name']} with fingerprint {there['fingerprint']}"
            f" there, {dataset.name} with {dataset.fingerprint} here; bring those data back"
        )
    return dataset


def _evaluate_run(
    run: str,
    parts: LoadedRun,
    data: SplitTensors,
    dataset: Dataset,
    config: EvaluateConfig,
    data_root: str,
) -> dict:
    model = parts.model
    if parts.config.memory_write:
        # The test-time write changes the slots; the analysis below wants them as trained.
        model = copy.deepcopy(model)
    image_ND, text_MD = embed_split(model, data, config.eval_batch_size, write=parts.config.memory_write)
    image_of_text_M = data.split.image_of_caption_M
    ranks = retrieval_ranks(image_ND, text_MD, image_of_text_M)
    paired = paired_ranks(image_ND, text_MD, image_of_text_M)
    result = {
        "run": run,
        "checkpoint": config.checkpoint,
        "epoch": parts.epoch,
        "split": config.split,
        "data": dataset.identity,
        "pretraining": "none",
        "protocols": {r.protocol: summarise(r) for r in (ranks, paired)},
    }
    folder = run_folder(run)
    gallery = _gallery(dataset, data, ranks, image_ND, text_MD, config.gallery_queries)
    _write_npz(folder / "gallery.npz", gallery)
    _write_npz(folder / "slots.npz", slot_readers(parts.model, data, config.eval_batch_size))
    judgements = find_judgements(data_root) if parts.config.dataset == "flickr8k" else None
    diagnosis = diagnose(
        dataset,
        config.split,
        image_ND.cpu().numpy(),
        text_MD.cpu().numpy(),
        ranks,
        judgements,
        lambda captions: (
            embed_captions(model, parts.tokenizer, captions, parts.config.max_tokens).cpu().numpy()
        ),
    )
    ranks.save(folder / "ranks.npz")
    write_queries(run, dataset, config.split)
    write_diagnosis(run, diagnosis)
    write_json(folder / "results.json", result)
    return result


def _write_npz(path: Path, arrays: dict) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes_atomic(path, buffer.getbuffer())


def _gallery(
    dataset: Dataset,
    data: SplitTensors,
    ranks: RetrievalRanks,
    image_ND: torch.Tensor,
    text_MD: torch.Tensor,
    queries: int,
) -> dict[str, np.ndarray]:
    """Queries with their top results: half hits at rank 1, half misses, drawn with a fixed seed."""
    images, captions, image_of_M = data.split.images, data.split.captions, data.split.image_of_caption_M
    thumbs: dict[int, np.ndarray] = {}

    def thumb(image: int) -> np.ndarray:
        if image not in thumbs:
            picture = dataset.source.load(images[image], GALLERY_PIXELS).convert("RGB")
            thumbs[image] = np.asarray(picture.resize((GALLERY_PIXELS, GALLERY_PIXELS)))
        return thumbs[image]

    unit_ND = torch.nn.functional.normalize(image_ND, dim=-1)
    unit_MD = torch.nn.functional.normalize(text_MD, dim=-1)

    def top(query_QD: torch.Tensor, gallery_GD: torch.Tensor) -> np.ndarray:
        return (query_QD @ gallery_GD.T).topk(min(GALLERY_K, len(gallery_GD))).indices.cpu().numpy()

    t2i = _hits_and_misses(ranks.t2i_M, queries)
    i2t = _hits_and_misses(ranks.i2t_N, queries)
    t2i_top_QK = top(unit_MD[t2i], unit_ND)
    i2t_top_QK = top(unit_ND[i2t], unit_MD)
    text = np.array(captions, dtype=np.str_)
    pixels = (GALLERY_PIXELS, GALLERY_PIXELS, 3)
    return {
        "t2i_query": text[t2i],
        "t2i_thumbs": np.array([[thumb(i) for i in row] for row in t2i_top_QK], dtype=np.uint8).reshape(
            *t2i_top_QK.shape, *pixels
        ),
        "t2i_hit": t2i_top_QK == image_of_M[t2i][:, None],
        "t2i_rank": ranks.t2i_M[t2i],
        "i2t_query": np.array([thumb(i) for i in i2t], dtype=np.uint8).reshape(len(i2t), *pixels),
        "i2t_captions": text[i2t_top_QK],
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
