"""Embeddings of anyone's model, from files: read them, evaluate them by a named protocol, print the result.

Shapes: N images, M captions, D embedding width.
"""

import re
from pathlib import Path

import numpy as np

from mmlib.arrays import npz_names, open_npy, read_npz, refused
from mmlib.metrics.protocols import first_captions, fold_ranks, protocol_named
from mmlib.metrics.ranks import checked_map, paired_ranks, retrieval_ranks
from mmlib.metrics.resampling import bootstrap_intervals
from mmlib.metrics.summary import DIRECTION_NAMES, DIRECTIONS, ceilings_in_words, summarise, summarise_folds

SUFFIXES = (".npy", ".npz", ".safetensors")
MOST_NAMES = 20  # of the arrays of a file, that an error lists

_NAMED = re.compile(r"(?P<file>.+\.(?:npy|npz|safetensors)):(?P<name>.+)", re.DOTALL)


def read_array(place: str):
    """An array from `file.npy`, `file.npz`, `file.safetensors`, or `file.npz:name` for one of several.

    Nothing in a file is executed: pickled objects are refused.  `.npy` and `.safetensors` are
    memory-mapped; of an `.npz` the named array alone is read.

    Args:
        place: a path, `:name` behind it where the file holds more than one array.

    Returns:
        A numpy array, or a tensor (`.safetensors`, and bfloat16 of any file).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown ending; a damaged file; pickled objects; a name that the file has
            not; several arrays and no name.
    """
    named = None if Path(place).is_file() else _NAMED.fullmatch(place)
    path, name = (Path(named["file"]), named["name"]) if named else (Path(place), None)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{place}: expected a file that ends in {', '.join(SUFFIXES)}; convert it to one")
    if path.suffix == ".npy" and name is not None:
        raise ValueError(f"{place}: an .npy file holds one array without a name; leave out ':{name}'")
    if path.suffix == ".npy":
        return _numeric(open_npy(path))
    return (_read_npz if path.suffix == ".npz" else _read_safetensors)(path, name)


def evaluate_embeddings(
    image_ND,
    text_MD,
    image_of_text_M,
    *,
    protocol: str = "standard",
    seed: int = 0,
):
    """Ranks and summary of embeddings under a protocol of `mmlib.metrics.protocols.PROTOCOLS`.

    Args:
        image_ND, text_MD, image_of_text_M: as for `retrieval_ranks`.
        protocol: `single_caption` keeps the first caption of each image; `coco_1k_folds` takes
            five folds in order; the others rank all that is given.
        seed: of the bootstrap.

    Returns:
        The `RetrievalRanks` (None of folds: they have no common gallery) and a dict ready for JSON:
        that of `summarise`, with `width` (D), and `intervals` (`bootstrap_intervals`: rsum, mean
        R@1, mean and median rank, MRR) where there are ranks.

    Raises:
        ValueError: an unknown protocol or another number of images than its name promises; input
            refused by `retrieval_ranks`.
    """
    way = protocol_named(protocol)
    if way.folds > 1:
        folds = fold_ranks(image_ND, text_MD, image_of_text_M, folds=way.folds)
        return None, summarise_folds(folds, protocol=protocol) | {"width": image_ND.shape[1]}
    if way.one_caption:
        first_N = first_captions(checked_map(image_of_text_M, len(image_ND), len(text_MD)))
        text_MD, image_of_text_M = text_MD[first_N], np.arange(len(image_ND))
    rank = paired_ranks if way.ranking == "paired" else retrieval_ranks
    ranks = rank(image_ND, text_MD, image_of_text_M)
    summary = summarise(ranks, protocol=protocol)
    # A single R@K has a better interval in the summary: see bootstrap_intervals.
    intervals = {
        name: interval
        for name, interval in bootstrap_intervals(ranks, seed=seed).items()
        if not re.fullmatch("(i2t|t2i)_r[0-9]+", name)
    }
    return ranks, summary | {"width": image_ND.shape[1], "intervals": intervals}


def results_text(summary: dict, data: str) -> str:
    """The result as plain text: R@K of both directions with interval, hits and n, and what they mean.

    Args:
        summary: from `evaluate_embeddings`.
        data: data set and split, as they stand beside the numbers.
    """
    ks = [int(key[1:]) for key in summary["i2t"] if re.fullmatch("r[0-9]+", key)]
    rows = [["", *(f"R@{k}, 95 %, hits/n" for k in ks), "chance R@1", "median rank", "MRR", "tied"]]
    for direction in DIRECTIONS:
        part = summary[direction]
        recalls = [f"{_interval_text(part[f'r{k}'])} {part[f'r{k}']['hits']:,}/{part['n']:,}" for k in ks]
        median = f"{part['median_rank']:g} of {part['gallery']:,.0f}"
        chance = f"{100 * part['r1']['chance']:.2f} %"
        rows.append(
            [DIRECTION_NAMES[direction], *recalls, chance, median, f"{part['mrr']:.3f}", f"{part['tied']:,}"]
        )
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip() for row in rows]
    rsum = summary.get("intervals", {}).get("rsum")
    lines.append("rsum " + (_interval_text(rsum) if rsum else f"{100 * summary['rsum']:.2f} %"))
    folds = f" · mean over {summary['folds']} folds" if summary.get("folds") else ""
    lines.append(
        f"{data} · protocol {summary['protocol']} · {summary['i2t']['n']:,} image and"
        f" {summary['t2i']['n']:,} caption queries{folds} · {summary['width']} dimensions"
        " · ties count against the model"
    )
    return "\n".join([*lines, *ceilings_in_words(summary)])


def _interval_text(metric: dict) -> str:
    return f"{100 * metric['value']:.2f} % ({100 * metric['low']:.2f}–{100 * metric['high']:.2f})"


def _read_npz(path: Path, name: str | None):
    name = _chosen(path, name, npz_names(path))
    return _numeric(read_npz(path, [name])[name])


def _read_safetensors(path: Path, name: str | None):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as archive:
            return archive.get_tensor(_chosen(path, name, list(archive.keys())))
    except (SafetensorError, OSError, RuntimeError, TypeError, AttributeError) as error:
        raise refused(path, error) from error


def _chosen(path: Path, name: str | None, names: list[str]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return name
    asked = "one array or the name of one" if name is None else f"an array {name!r}"
    there = ", ".join(names[:MOST_NAMES]) or "none"
    more = f" and {len(names) - MOST_NAMES:,} more" if names[MOST_NAMES:] else ""
    raise ValueError(f"{path}: expected {asked}, found {there}{more}; name it as {path}:NAME")


def _numeric(array: np.ndarray):
    """The array; bfloat16, which numpy knows only as two bytes without a meaning, as a tensor."""
    if array.dtype != np.dtype("V2"):
        return array
    import torch

    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
