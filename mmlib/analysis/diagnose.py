"""What an evaluation keeps for the analysis of errors: numbers of groups, never a caption or an image.

`diagnosis.json` may be published with a run.  `queries.json` lists the captions and image names of the
queries, for tables of single queries; it shares the licence of the data set.

Shapes: N images, M captions, D width, Q queries of one direction.
"""

import numpy as np

from mmlib.analysis.groups import recall_by_groups, recall_of
from mmlib.analysis.people import EmbedCaptions, agreement_with_people
from mmlib.data import Dataset
from mmlib.data.judgements import JudgementFiles
from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.ranks import UnitRows, checked_map
from mmlib.metrics.summary import DIRECTIONS

HUB_K = 10


MARGIN_BINS = 10


SIMILARITY_BINS = 60
MOST_SCORES = 2**25  # held at a time: 256 MiB in float64


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


def hubness(query_QD, gallery_GD, *, k: int = 10, chunk: int = 1024) -> dict:
    """How often each gallery item is among the first k of all queries.

    Radovanović et al. (2010): hubs are items that many queries retrieve whatever they ask. The
    skewness of the counts is 0 where they are symmetric around k Q / G, large where hubs rule.

    Returns:
        `count_G` (int64 array), `skewness`, `never` (share of items never retrieved), `largest`.

    Raises:
        ValueError: k outside 1..G, or embeddings refused by `retrieval_ranks`.
    """
    from scipy.stats import skew

    query, gallery = UnitRows(query_QD, "query_QD"), UnitRows(gallery_GD, "gallery_GD")
    items = len(gallery)
    if not 1 <= k <= items:
        raise ValueError(f"k: expected 1..{items}, the size of the gallery, found {k}")
    count_G = np.zeros(items, dtype=np.int64)
    for _, score_qG in _score_blocks(query, gallery, chunk):
        count_G += np.bincount(score_qG.topk(k, dim=1).indices.flatten().cpu().numpy(), minlength=items)
    varies = np.ptp(count_G) > 0
    return {
        "count_G": count_G,
        "skewness": float(skew(count_G)) if varies else 0.0,
        "never": float((count_G == 0).mean()),
        "largest": int(count_G.max()),
    }


def top1_margin(query_QD, gallery_GD, *, chunk: int = 1024) -> np.ndarray:
    """Cosine of each query's first item minus that of its second, float32 (Q,); >= 0.

    Raises:
        ValueError: fewer than two gallery items, or embeddings refused by `retrieval_ranks`.
    """
    query, gallery = UnitRows(query_QD, "query_QD"), UnitRows(gallery_GD, "gallery_GD")
    if len(gallery) < 2:
        raise ValueError("gallery_GD: expected two items or more for a margin, found 1")
    margins = []
    for _, score_qG in _score_blocks(query, gallery, chunk):
        first_q2 = score_qG.topk(2, dim=1).values
        margins.append((first_q2[:, 0] - first_q2[:, 1]).float().cpu().numpy())
    return np.concatenate(margins)


def calibration(margin_Q, hit_Q, *, bins: int = 10, cluster_Q=None) -> list[dict]:
    """R@1 by margin, in `bins` of equally many queries: does a wide margin mean a right answer?

    Returns:
        A row per bin, from narrow to wide margins: `margin_low`, `margin_high`, and the fields of
        `recall_by_group`.

    Raises:
        ValueError: shapes that differ, or bins outside 1..Q.
    """
    margin_Q, hit_Q = np.asarray(margin_Q), np.asarray(hit_Q, bool)
    if margin_Q.shape != hit_Q.shape or not 1 <= bins <= len(margin_Q):
        raise ValueError(
            "expected one margin and hit per query and 1..queries bins, found shapes"
            f" {margin_Q.shape}, {hit_Q.shape} and {bins} bins"
        )
    rows = []
    for index in np.array_split(np.argsort(margin_Q, kind="stable"), bins):
        ends = {"margin_low": float(margin_Q[index[0]]), "margin_high": float(margin_Q[index[-1]])}
        rows.append(ends | recall_of(hit_Q, index, cluster_Q))
    return rows


def similarity_distributions(image_ND, text_MD, image_of_text_M, *, chunk: int = 1024) -> dict:
    """Cosines of the pairs that belong together, and of each query's hardest negative.

    Returns:
        float32 arrays: `positive_M` (caption with its image), `hardest_i2t_N` (best caption of
        another image), `hardest_t2i_M` (best other image).

    Raises:
        ValueError: fewer than two images, or input refused by `retrieval_ranks`.
    """
    import torch

    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    image_of_text_M = checked_map(image_of_text_M, len(image), len(text))
    if len(image) < 2:
        raise ValueError("image_ND: expected two images or more, found 1; it has no negatives")
    map_M = torch.from_numpy(image_of_text_M).to(image.device)
    hardest_i2t, positive, hardest_t2i = [], [], []
    for start, score_nM in _score_blocks(image, text, chunk):
        row_n = torch.arange(start, start + len(score_nM), device=map_M.device)
        own_nM = row_n[:, None] == map_M[None, :]
        hardest_i2t.append(score_nM.masked_fill(own_nM, -torch.inf).amax(1))
    for start, score_mN in _score_blocks(text, image, chunk):
        own_m1 = map_M[start : start + len(score_mN), None]
        positive.append(score_mN.gather(1, own_m1)[:, 0])
        hardest_t2i.append(score_mN.scatter(1, own_m1, -torch.inf).amax(1))
    names = ("positive_M", "hardest_i2t_N", "hardest_t2i_M")
    return {
        n: torch.cat(v).float().cpu().numpy() for n, v in zip(names, (positive, hardest_i2t, hardest_t2i))
    }


def changed_queries(rank_a_Q, rank_b_Q, *, k: int = 1) -> dict[str, np.ndarray]:
    """Queries that the second run wins or loses against the first, largest change of rank first.

    Returns:
        `gained` (hit at k in b alone) and `lost` (in a alone): int64 query indices.

    Raises:
        ValueError: shapes that differ.
    """
    rank_a_Q, rank_b_Q = np.asarray(rank_a_Q), np.asarray(rank_b_Q)
    if rank_a_Q.shape != rank_b_Q.shape:
        raise ValueError(
            f"expected ranks of the same queries, found shapes {rank_a_Q.shape} and {rank_b_Q.shape}"
        )
    order = np.argsort(-np.abs(rank_b_Q - rank_a_Q), kind="stable")
    hit_a_Q, hit_b_Q = rank_a_Q[order] <= k, rank_b_Q[order] <= k
    return {"gained": order[hit_b_Q & ~hit_a_Q], "lost": order[hit_a_Q & ~hit_b_Q]}


def _score_blocks(query: UnitRows, gallery: UnitRows, chunk: int):
    """Yields the first query's number and `score_qG`, cosines of up to `chunk` queries with all items."""
    gallery_GD = gallery[:]
    step = max(1, min(chunk, MOST_SCORES // len(gallery)))
    for start in range(0, len(query), step):
        yield start, query[start : start + step] @ gallery_GD.T
