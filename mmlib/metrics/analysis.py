"""Where a model is right and wrong: small pure functions from embeddings and ranks.

Shapes: N images, M captions, Q queries, G gallery items.
"""

import numpy as np

from mmlib.metrics.intervals import recall_interval
from mmlib.metrics.ranks import checked_map
from mmlib.metrics.scores import score_blocks, unit_rows


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

    query, gallery = unit_rows(query_QD, "query_QD"), unit_rows(gallery_GD, "gallery_GD")
    items = len(gallery)
    if not 1 <= k <= items:
        raise ValueError(f"k: expected 1..{items}, the size of the gallery, found {k}")
    count_G = np.zeros(items, dtype=np.int64)
    for _, score_qG in score_blocks(query, gallery, chunk):
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
    query, gallery = unit_rows(query_QD, "query_QD"), unit_rows(gallery_GD, "gallery_GD")
    if len(gallery) < 2:
        raise ValueError("gallery_GD: expected two items or more for a margin, found 1")
    margins = []
    for _, score_qG in score_blocks(query, gallery, chunk):
        first_q2 = score_qG.topk(2, dim=1).values
        margins.append((first_q2[:, 0] - first_q2[:, 1]).cpu().numpy())
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
        rows.append(ends | _recall_of(hit_Q, index, cluster_Q))
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

    image, text = unit_rows(image_ND, "image_ND"), unit_rows(text_MD, "text_MD")
    image_of_text_M = checked_map(image_of_text_M, len(image), len(text))
    if len(image) < 2:
        raise ValueError("image_ND: expected two images or more, found 1; it has no negatives")
    map_M = torch.from_numpy(image_of_text_M).to(image.device)
    hardest_i2t, positive, hardest_t2i = [], [], []
    for start, score_nM in score_blocks(image, text, chunk):
        row_n = torch.arange(start, start + len(score_nM), device=map_M.device)
        own_nM = row_n[:, None] == map_M[None, :]
        hardest_i2t.append(score_nM.masked_fill(own_nM, -torch.inf).amax(1))
    for start, score_mN in score_blocks(text, image, chunk):
        own_m1 = map_M[start : start + len(score_mN), None]
        positive.append(score_mN.gather(1, own_m1)[:, 0])
        hardest_t2i.append(score_mN.scatter(1, own_m1, -torch.inf).amax(1))
    names = ("positive_M", "hardest_i2t_N", "hardest_t2i_M")
    return {n: torch.cat(v).cpu().numpy() for n, v in zip(names, (positive, hardest_i2t, hardest_t2i))}


def recall_by_group(rank_Q, group_Q, *, k: int = 1, cluster_Q=None) -> list[dict]:
    """R@K for each group of queries: caption length, object word, image cluster.

    Args:
        rank_Q: 1-based ranks of one direction.
        group_Q: the group of each query, numbers or words; a row for each, in sorted order.
        k: the K of R@K.
        cluster_Q: the image of each query, where several belong to one.

    Returns:
        Rows of `group`, `n`, `hits`, `value`, `low`, `high` (95 %).

    Raises:
        ValueError: shapes that differ.
    """
    rank_Q, group_Q = np.asarray(rank_Q), np.asarray(group_Q)
    if rank_Q.shape != group_Q.shape:
        raise ValueError(f"group_Q: expected a group per query, shape {rank_Q.shape}, found {group_Q.shape}")
    return [
        {"group": group.item()} | _recall_of(rank_Q <= k, np.flatnonzero(group_Q == group), cluster_Q)
        for group in np.unique(group_Q)
    ]


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


def _recall_of(hit_Q, index, cluster_Q) -> dict:
    hit = hit_Q[index]
    low, high = recall_interval(hit, None if cluster_Q is None else np.asarray(cluster_Q)[index])
    return {"n": len(hit), "hits": int(hit.sum()), "value": float(hit.mean()), "low": low, "high": high}
