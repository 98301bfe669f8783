"""People's judgements beside the standard: scores of the pairs they judged, and recall that heeds them.

Shapes: N images, M captions, D width, J judgements, Q queries of one direction.
"""

import numpy as np

from mmlib.metrics.both_ways import Queries, ranks_both_ways
from mmlib.metrics.intervals import recall_interval
from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.scores import score_blocks, unit_rows
from mmlib.metrics.summary import DIRECTIONS


def pair_scores(image_ND, text_MD, image_J, text_J, *, chunk: int = 1024) -> np.ndarray:
    """Cosine of each pair (image_J[j], text_J[j]), float32 (J,); equal rows give equal scores.

    CLIPScore (Hessel et al. 2021, eq. 1) is 2.5 times this, cut off at 0.  Kendall's tau knows
    order alone; the cut would only tie pairs that the model does tell apart.

    Raises:
        ValueError: indices out of range or of unequal number, or embeddings refused by
            `retrieval_ranks`.
    """
    image, text = unit_rows(image_ND, "image_ND"), unit_rows(text_MD, "text_MD")
    image_J, text_J = _checked_pairs(image_J, text_J, len(image), len(text))
    score_J = np.empty(len(image_J), dtype=np.float32)
    for start, score_nM in score_blocks(image, text, chunk):
        here = np.flatnonzero((image_J >= start) & (image_J < start + len(score_nM)))
        score_J[here] = score_nM.cpu().numpy()[image_J[here] - start, text_J[here]]
    return score_J


def human_aware_recall(
    image_ND,
    text_MD,
    ranks: RetrievalRanks,
    image_J,
    text_J,
    rating_J,
    *,
    threshold: float = 4.0,
    ks=(1, 5, 10),
    chunk: int = 1024,
) -> dict:
    """Recall where a pair that people rate well counts as a hit beside an image's own captions.

    Ratings of one pair are averaged; from `threshold` on the pair is right, in both directions.
    People judged a small part of all pairs, so this corrects the standard recall in part: it is
    never below it, and how far true recall lies above it stays unknown.

    Args:
        image_ND, text_MD: the embeddings that the ranks are of.
        ranks: `standard` ranks, for the captions' images and the recalls to compare with.
        image_J, text_J: rows of each judged pair, one entry per rating.
        rating_J: Flickr8k-Expert: 1 (unrelated) to 4 (describes without errors).
        threshold: least mean rating of a hit.
        ks: the K of R@K.
        chunk: images scored at a time, at most.

    Returns:
        `threshold`, `pairs` (pairs that became right) and per direction `n`, `judged` (queries
        of the judged pairs), `extended` (queries that gained a right answer) and for each K
        `r<K>` with `value`, `hits`, `low`, `high` (95 %) and `standard_hits`.

    Raises:
        ValueError: ranks of another protocol or of other embeddings, ratings that are not finite
            or not one per pair, indices out of range.
    """
    image, text = unit_rows(image_ND, "image_ND"), unit_rows(text_MD, "text_MD")
    images, texts = len(image), len(text)
    if ranks.protocol != "standard" or (ranks.images, len(ranks.t2i_M)) != (images, texts):
        raise ValueError(
            f"ranks: expected standard ranks of these {images} images and {texts} captions, found"
            f" {ranks.protocol} ranks of {ranks.images} and {len(ranks.t2i_M)}; rank these embeddings"
        )
    image_J, text_J = _checked_pairs(image_J, text_J, images, texts)
    rating_J = np.asarray(rating_J, dtype=np.float64)
    if rating_J.shape != image_J.shape or not np.isfinite(rating_J).all():
        raise ValueError(
            f"rating_J: expected one finite rating per judged pair, shape {image_J.shape}, found shape"
            f" {rating_J.shape}" + (" with NaN or infinity" if rating_J.shape == image_J.shape else "")
        )
    own_P = ranks.image_of_text_M * texts + np.arange(texts)  # a pair is one number: image * M + caption
    pair_P, of_pair_J = np.unique(image_J * texts + text_J, return_inverse=True)
    mean_P = np.bincount(of_pair_J, weights=rating_J) / np.bincount(of_pair_J)
    added_P = np.setdiff1d(pair_P[mean_P >= threshold], own_P)
    right_image_P, right_text_P = divmod(np.concatenate([own_P, added_P]), texts)
    found = ranks_both_ways(
        image,
        text,
        Queries(np.arange(images), right_image_P, right_text_P),
        Queries(np.arange(texts), right_text_P, right_image_P),
        chunk,
    )
    result = {"threshold": threshold, "pairs": len(added_P)}
    for direction, (rank_Q, _) in zip(DIRECTIONS, found):
        i2t = direction == "i2t"
        result[direction] = {
            "n": len(rank_Q),
            "judged": len(np.unique(image_J if i2t else text_J)),
            "extended": len(np.unique(added_P // texts if i2t else added_P % texts)),
            **{f"r{k}": _recall(rank_Q, ranks, direction, k) for k in ks},
        }
    return result


def _recall(rank_Q: np.ndarray, ranks: RetrievalRanks, direction: str, k: int) -> dict:
    hit_Q = rank_Q <= k
    # One query per image is a sample of independent queries; several of one image are a cluster.
    low, high = recall_interval(
        hit_Q, ranks.image_of_query(direction) if len(rank_Q) > ranks.images else None
    )
    return {
        "value": float(hit_Q.mean()),
        "hits": int(hit_Q.sum()),
        "low": low,
        "high": high,
        "standard_hits": int((ranks.of(direction) <= k).sum()),
    }


def _checked_pairs(image_J, text_J, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    image_J, text_J = np.asarray(image_J, dtype=np.int64), np.asarray(text_J, dtype=np.int64)
    if image_J.ndim != 1 or image_J.shape != text_J.shape:
        raise ValueError(
            "image_J and text_J: expected one image and caption row per judgement, found shapes"
            f" {image_J.shape} and {text_J.shape}"
        )
    for name, row_J, rows in (("image_J", image_J, images), ("text_J", text_J, texts)):
        if len(row_J) and not 0 <= row_J.min() <= row_J.max() < rows:
            raise ValueError(
                f"{name}: expected rows in 0..{rows - 1}, found {row_J.min()}..{row_J.max()};"
                " they count embeddings from 0"
            )
    return image_J, text_J
