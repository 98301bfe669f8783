"""What an evaluation keeps for the analysis of errors: numbers of groups, never a caption or an image.

`diagnosis.json` may be published with a run.  `queries.json` lists the captions and image names of the
queries, for tables of single queries; it shares the licence of the data set.

Shapes: N images, M captions, D width, Q queries of one direction.
"""

import numpy as np

from mmlib.data import Dataset
from mmlib.data.judgements import JudgementFiles
from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.analysis import calibration, hubness, similarity_distributions, top1_margin
from mmlib.metrics.summary import DIRECTIONS
from mmlib.training.people import EmbedCaptions, agreement_with_people
from mmlib.training.query_groups import recall_by_groups
from mmlib.training.runs import read_result, run_folder
from mmlib.training.stored import Stored, read_stored
from mmlib.training.stored_analysis import Diagnosis, Queries

HUB_K = 10
MARGIN_BINS = 10
SIMILARITY_BINS = 60


def diagnose(
    dataset: Dataset,
    split_name: str,
    image_ND,
    text_MD,
    ranks: RetrievalRanks,
    judgements: JudgementFiles | None = None,
    embed_captions: EmbedCaptions | None = None,
) -> dict:
    """Where a model is right and wrong on one split, ready for JSON.

    Args:
        dataset: the data set.
        split_name: the split that was embedded.
        image_ND, text_MD: its embeddings, of two images or more.
        ranks: their standard ranks.
        judgements: people's judgements of this data set (`mmlib.data.judgements.find_judgements`).
        embed_captions: see `agreement_with_people`.

    Returns:
        `data`, `split` and `standard` (as in `results.json`); `groups`, from `recall_by_groups`, at
        K of 1 and 10; `hubness` and `calibration` by direction; `similarity`; `people`, from
        `agreement_with_people`, or None.

    Raises:
        ValueError: ranks of another protocol or split; fewer than two images; see
            `agreement_with_people`.
    """
    split = dataset.splits[split_name]
    if ranks.protocol != "standard" or not np.array_equal(ranks.image_of_text_M, split.image_of_caption_M):
        raise ValueError(
            f"ranks: expected standard ranks of the {split_name} split, {len(split.captions)} captions of"
            f" {len(split.images)} images, found {ranks.protocol} ranks of {len(ranks.t2i_M)} captions of"
            f" {ranks.images}; rank the embeddings that are diagnosed"
        )
    people = None
    if judgements is not None:
        people = agreement_with_people(
            judgements, dataset, split_name, image_ND, text_MD, ranks, embed_captions
        )
    embeddings = {"i2t": (image_ND, text_MD), "t2i": (text_MD, image_ND)}
    return {
        "data": dataset.identity,
        "split": split_name,
        "standard": summarise(ranks),
        "groups": recall_by_groups(split, ranks, image_ND),
        "hubness": {d: _hubness(*embeddings[d]) for d in DIRECTIONS},
        "similarity": _similarity(image_ND, text_MD, ranks),
        "calibration": {d: _calibration(*embeddings[d], ranks, d) for d in DIRECTIONS},
        "people": people,
    }


def read_diagnosis(run: str) -> dict:
    """The diagnosis of a run.

    Raises:
        FileNotFoundError: the run was not evaluated, or before there were diagnoses.
        ValueError: the file is damaged, or of another evaluation than `results.json`.
    """
    result = read_result(run)
    diagnosis = _read(run, "diagnosis.json", Diagnosis)
    here = {"data": result["data"], "split": result["split"], "standard": result["protocols"]["standard"]}
    differs = [key for key, value in here.items() if diagnosis.get(key) != value]
    if differs:
        raise ValueError(
            f"run {run!r}: expected diagnosis.json of the evaluation in results.json, found another"
            f" {', '.join(differs)}; evaluate it again with notebook 03_evaluate"
        )
    return diagnosis


def queries_of(dataset: Dataset, split_name: str) -> dict:
    """The content of `queries.json`: a split's image names and captions, in order."""
    split = dataset.splits[split_name]
    return {
        "fingerprint": dataset.fingerprint,
        "split": split_name,
        "redistributable": dataset.redistributable,
        "images": list(split.images),
        "captions": list(split.captions),
    }


def read_queries(run: str) -> dict:
    """What `queries_of` gave, from the run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or lacks queries that `results.json` counts.
    """
    queries = _read(run, "queries.json", Queries)
    standard = read_result(run)["protocols"]["standard"]
    sizes = {"images": standard["i2t"]["n"], "captions": standard["t2i"]["n"]}
    for name, size in sizes.items():
        if len(queries[name]) != size:
            raise ValueError(
                f"run {run!r}: expected {size:,} {name} in queries.json, as results.json counts, found"
                f" {len(queries[name]):,}; evaluate it again with notebook 03_evaluate"
            )
    return queries


def _read(run: str, name: str, model: type[Stored]) -> dict:
    path = run_folder(run) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"run {run!r}: expected {name} in its folder, found none; evaluate it again with notebook"
            " 03_evaluate"
        )
    return read_stored(path, model, "evaluate the run again")


def _hubness(query_QD, gallery_GD) -> dict:
    k = min(HUB_K, len(gallery_GD))
    found = hubness(query_QD, gallery_GD, k=k)
    count_G = found.pop("count_G")
    queries, gallery = len(query_QD), len(count_G)
    return found | {
        "k": k,
        "queries": queries,
        "gallery": gallery,
        "largest_item": int(count_G.argmax()),
        "expected": k * queries / gallery,
        # If every query drew its k at random.
        "never_by_chance": (1 - k / gallery) ** queries,
    }


def _similarity(image_ND, text_MD, ranks: RetrievalRanks) -> dict:
    """Histograms over common edges."""
    found = similarity_distributions(image_ND, text_MD, ranks.image_of_text_M)
    parts = {
        "positive": found["positive_M"],
        "hardest_i2t": found["hardest_i2t_N"],
        "hardest_t2i": found["hardest_t2i_M"],
    }
    edges = np.histogram_bin_edges(np.concatenate(list(parts.values())).astype(np.float64), SIMILARITY_BINS)
    return {"edges": edges.tolist()} | {
        name: {
            "n": len(values),
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "counts": np.histogram(values, edges)[0].tolist(),
        }
        for name, values in parts.items()
    }


def _calibration(query_QD, gallery_GD, ranks: RetrievalRanks, direction: str) -> list[dict]:
    hit_Q = ranks.of(direction) == 1
    cluster_Q = None if direction == "i2t" else ranks.image_of_text_M
    margin_Q = top1_margin(query_QD, gallery_GD)
    return calibration(margin_Q, hit_Q, bins=min(MARGIN_BINS, len(hit_Q)), cluster_Q=cluster_Q)
