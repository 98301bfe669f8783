"""Evaluation in folds of the gallery: the mean of five 1K folds of COCO's 5K test split.

Smaller galleries are easier: a folds figure is never comparable with one over the whole split.
"""

import numpy as np

from mmlib.metrics.intervals import recall_interval
from mmlib.metrics.protocols import PROTOCOLS
from mmlib.metrics.ranks import RetrievalRanks, checked_map, retrieval_ranks
from mmlib.metrics.summary import DIRECTIONS, chance_recall, gallery_size, recall_at_k


def fold_ranks(
    image_ND, text_MD, image_of_text_M, *, folds: int = 5, chunk: int = 1024
) -> list[RetrievalRanks]:
    """`standard` ranks in each of `folds` consecutive, equal runs of images, with their captions.

    Arguments and errors are those of `retrieval_ranks`.

    Raises:
        ValueError: images that do not divide into `folds` equal folds.
    """
    images = len(image_ND)
    image_of_text_M = checked_map(image_of_text_M, images, len(text_MD))
    if folds < 1 or images % folds:
        raise ValueError(f"folds: expected a divisor of the {images} images, found {folds}")
    size = images // folds
    ranks = []
    for start in range(0, images, size):
        text_m = np.flatnonzero((image_of_text_M >= start) & (image_of_text_M < start + size))
        image_of_text_m = image_of_text_M[text_m] - start
        ranks.append(
            retrieval_ranks(image_ND[start : start + size], text_MD[text_m], image_of_text_m, chunk=chunk)
        )
    return ranks


def summarise_folds(folds: list[RetrievalRanks], *, protocol: str = "coco_1k_folds", ks=(1, 5, 10)) -> dict:
    """Mean over folds of every metric, in the layout of `summarise`.

    Each R@K is the mean of the folds' (the field's way); its interval is `recall_interval` over
    the queries of all folds, clustered by image; `n` and `hits` count over all folds, `gallery`
    is the mean.

    Raises:
        ValueError: no folds, an unknown protocol, or folds of another size than it promises.
    """
    if not folds:
        raise ValueError("folds: expected the ranks of one fold or more, found none")
    if protocol not in PROTOCOLS or PROTOCOLS[protocol].ranking != "standard":
        raise ValueError(f"protocol: expected one with standard ranking, found {protocol!r}")
    expected, sizes = PROTOCOLS[protocol].images, sorted({fold.images for fold in folds})
    if expected is not None and sizes != [expected]:
        raise ValueError(f"protocol {protocol!r}: expected folds of {expected:,} images, found {sizes}")
    summary = {"protocol": protocol, "folds": len(folds)}
    for d in DIRECTIONS:
        rank_Q = np.concatenate([fold.of(d) for fold in folds])
        offset_F = np.cumsum([0] + [fold.images for fold in folds])
        image_Q = np.concatenate([fold.image_of_query(d) + o for fold, o in zip(folds, offset_F)])
        mean = {"median_rank": np.median, "mean_rank": np.mean, "mrr": lambda rank_q: (1 / rank_q).mean()}
        summary[d] = {"n": len(rank_Q), "gallery": float(np.mean([gallery_size(fold, d) for fold in folds]))}
        for k in ks:
            low, high = recall_interval(rank_Q <= k, image_Q if len(rank_Q) > offset_F[-1] else None)
            summary[d][f"r{k}"] = {
                "value": float(np.mean([recall_at_k(fold.of(d), k) for fold in folds])),
                "hits": int((rank_Q <= k).sum()),
                "low": low,
                "high": high,
                "chance": float(np.mean([chance_recall(fold, d, k) for fold in folds])),
                "best_case": float(np.mean([recall_at_k(fold.best_case(d), k) for fold in folds])),
            }
        summary[d] |= {name: float(np.mean([f(fold.of(d)) for fold in folds])) for name, f in mean.items()}
        summary[d]["tied"] = int(sum((fold.of(d) > fold.best_case(d)).sum() for fold in folds))
    summary["rsum"] = sum(summary[d][f"r{k}"]["value"] for d in DIRECTIONS for k in ks)
    summary["mean_r1"] = float(np.mean([recall_at_k(fold.of(d), 1) for d in DIRECTIONS for fold in folds]))
    summary["ceiling"] = None
    return summary
