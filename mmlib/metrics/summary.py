"""From ranks to the numbers of a report: recalls with hits, interval and chance, medians, rsum.

All recalls are fractions; `rsum` is the sum of all recalls of both directions, so 0..6 for three K.
"""

from functools import lru_cache

import numpy as np

from mmlib.metrics.intervals import recall_interval
from mmlib.metrics.protocols import check_protocol, recall_ceiling
from mmlib.metrics.ranks import RetrievalRanks

DIRECTIONS = ("i2t", "t2i")


def recall_at_k(ranks, k: int) -> float:
    """Share of queries whose best positive is among the first k, 0..1.

    This is the field's R@K, "hit rate" elsewhere; not the share of a query's positives found.

    Args:
        ranks: 1-based ranks of one direction.
        k: at least 1.

    Raises:
        ValueError: no ranks, ranks below 1, or k below 1.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks) or ranks.min() < 1:
        raise ValueError(
            f"ranks: expected 1-based ranks of one direction, found shape {ranks.shape}"
            + (f" with smallest {ranks.min()}" if ranks.size else "")
        )
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    return float((ranks <= k).mean())


def summarise(ranks: RetrievalRanks, *, protocol: str | None = None, ks=(1, 5, 10)) -> dict:
    """Everything that a report says of one evaluation, ready for JSON.

    Args:
        ranks: from `retrieval_ranks` (protocol `standard`) or `paired_ranks` (`paired`).
        protocol: a name of `mmlib.metrics.protocols.PROTOCOLS`; None takes that of the ranks.
        ks: the K of R@K.

    Returns:
        `{"protocol", "rsum", "mean_r1", "i2t": {...}, "t2i": {...}, "ceiling"}`.  A direction has
        `n`, `gallery`, `median_rank`, `mean_rank`, `mrr`, `tied` (queries with a tie) and, for
        each K, `r<K>` with `value`, `hits`, `low` and `high` (95 %, `recall_interval`), `chance`
        (a random ranking) and `best_case` (the value if ties went the model's way).  `ceiling`
        gives what a perfect model reaches, by `<direction>_r<K>`, or None where that is 1.

    Raises:
        ValueError: a protocol that these ranks were not computed under, or bad ks.
    """
    protocol = check_protocol(ranks, protocol)
    if not ks or len(set(ks)) != len(ks):
        raise ValueError(f"ks: expected one or more different K, found {ks}")
    summary = {"protocol": protocol}
    summary["rsum"] = sum(recall_at_k(ranks.of(d), k) for d in DIRECTIONS for k in ks)
    summary["mean_r1"] = sum(recall_at_k(ranks.of(d), 1) for d in DIRECTIONS) / 2
    for direction in DIRECTIONS:
        rank_Q = ranks.of(direction)
        summary[direction] = {
            "n": len(rank_Q),
            "gallery": gallery_size(ranks, direction),
            **{f"r{k}": _recall(ranks, direction, k) for k in ks},
            "median_rank": float(np.median(rank_Q)),
            "mean_rank": float(rank_Q.mean()),
            "mrr": float((1 / rank_Q).mean()),
            "tied": int((rank_Q > ranks.best_case(direction)).sum()),
        }
    ceiling = {f"{d}_r{k}": recall_ceiling(ranks, d, k) for d in DIRECTIONS for k in ks}
    summary["ceiling"] = ceiling if min(ceiling.values()) < 1 else None
    return summary


def gallery_size(ranks: RetrievalRanks, direction: str) -> int:
    """Items that were ranked for one query of this direction."""
    return ranks.gallery_i2t if direction == "i2t" else ranks.gallery_t2i


def chance_recall(ranks: RetrievalRanks, direction: str, k: int) -> float:
    """Expected R@K of a ranking in random order, exact.

    A query with c positives in a gallery of G misses with probability C(G-c, k) / C(G, k)
    (hypergeometric, no positive drawn); averaged over queries, whose c may differ.
    """
    if direction == "i2t" and ranks.protocol == "standard":
        positives_Q = np.bincount(ranks.image_of_text_M)
    else:
        positives_Q = np.ones(len(ranks.of(direction)), dtype=np.int64)
    gallery = gallery_size(ranks, direction)
    counts, times = np.unique(positives_Q, return_counts=True)
    chances = [_chance_of_hit(gallery, int(count), k) for count in counts]
    return float(np.average(chances, weights=times))


@lru_cache(maxsize=1024)
def _chance_of_hit(gallery: int, positives: int, k: int) -> float:
    miss = 1.0
    for drawn in range(min(k, gallery)):
        miss *= max(gallery - positives - drawn, 0) / (gallery - drawn)
    return 1 - miss


def _recall(ranks: RetrievalRanks, direction: str, k: int) -> dict:
    rank_Q = ranks.of(direction)
    image_Q = ranks.image_of_query(direction)
    # One query per image is a sample of independent queries; several of one image are a cluster.
    low, high = recall_interval(rank_Q <= k, image_Q if len(rank_Q) > ranks.images else None)
    return {
        "value": recall_at_k(rank_Q, k),
        "hits": int((rank_Q <= k).sum()),
        "low": low,
        "high": high,
        "chance": chance_recall(ranks, direction, k),
        "best_case": recall_at_k(ranks.best_case(direction), k),
    }
