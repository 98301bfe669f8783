"""Bootstrap over images: intervals for metrics that have no exact one.

A resample draws N images with replacement and takes with each image its own query and those of
all its captions, in both directions at once: queries of one image succeed and fail together, and
a sum over both directions (rsum) gets its interval with their correlation.

Shapes: N images, Q queries of one direction, B resamples.
"""

import numpy as np

from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.summary import DIRECTIONS

CHUNK = 500  # resamples held at a time: 500 x 5,000 weights are 10 MB


def bootstrap_intervals(
    ranks: RetrievalRanks, *, ks=(1, 5, 10), resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> dict:
    """Percentile interval of every metric, clustered by image (Efron & Tibshirani 1993, ch. 13).

    Serves rsum, mean and median rank, MRR.  A single R@K is better served by `recall_interval`,
    which is what `summarise` shows: with a handful of hits the percentiles of a bootstrap are too
    narrow, and with none they are a point.

    Args:
        ranks: one evaluation.
        ks: the K of R@K.
        resamples: at least 100.
        level: confidence level.
        seed: the same seed gives the same intervals.

    Returns:
        `{metric: {"value", "low", "high"}}`, metrics named as by `metric_values`.

    Raises:
        ValueError: fewer than 100 resamples, or a level outside (0, 1).
    """
    tails = interval_tails(level, resamples)
    value = metric_values(ranks, np.ones((1, ranks.images), np.int32), ks)
    chunks = [metric_values(ranks, weight, ks) for weight in image_weights(ranks.images, resamples, seed)]
    intervals = {}
    for name in value:
        low, high = np.quantile(np.concatenate([chunk[name] for chunk in chunks]), tails)
        intervals[name] = {"value": float(value[name][0]), "low": float(low), "high": float(high)}
    return intervals


def interval_tails(level: float, resamples: int) -> tuple[float, float]:
    """The two quantiles of a central interval, arguments checked."""
    if resamples < 100:
        raise ValueError(f"resamples: expected at least 100, found {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a confidence level between 0 and 1, found {level}")
    return (1 - level) / 2, (1 + level) / 2


def image_weights(images: int, resamples: int, seed: int):
    """Yields `(B, N)` int32 arrays, `resamples` rows in all: how often each image was drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.int32)


def metric_values(ranks: RetrievalRanks, weight_BN: np.ndarray, ks=(1, 5, 10)) -> dict[str, np.ndarray]:
    """Every metric, once per row of image weights.

    Returns:
        `rsum`, `mean_r1` and, for both directions d, `<d>_r<K>`, `<d>_mean_rank`, `<d>_mrr`,
        `<d>_median_rank`: arrays of shape (B,).
    """
    values = {}
    for d in DIRECTIONS:
        rank_Q, image_Q = ranks.of(d), ranks.image_of_query(d)
        names, score_NS = image_scores(ranks, d, ks)
        total_B = weight_BN @ np.bincount(image_Q, minlength=ranks.images)
        mean_BS = weight_BN.astype(np.float64) @ score_NS / total_B[:, None]
        values |= dict(zip(names, mean_BS.T))
        values[f"{d}_median_rank"] = _weighted_medians(rank_Q, image_Q, weight_BN, total_B)
    values["rsum"] = sum(values[f"{d}_r{k}"] for d in DIRECTIONS for k in ks)
    if 1 in ks:
        values["mean_r1"] = (values["i2t_r1"] + values["t2i_r1"]) / 2
    return values


def image_scores(ranks: RetrievalRanks, direction: str, ks) -> tuple[list[str], np.ndarray]:
    """Sums over each image's queries of what the metrics average: names (S) and scores (N, S)."""
    rank_Q, image_Q = ranks.of(direction), ranks.image_of_query(direction)
    score_SQ = [rank_Q <= k for k in ks] + [rank_Q, 1 / rank_Q]
    names = [f"{direction}_r{k}" for k in ks] + [f"{direction}_mean_rank", f"{direction}_mrr"]
    score_SN = [np.bincount(image_Q, weights=score_Q, minlength=ranks.images) for score_Q in score_SQ]
    return names, np.stack(score_SN, axis=1)


def _weighted_medians(rank_Q, image_Q, weight_BN, total_B) -> np.ndarray:
    order = np.argsort(rank_Q, kind="stable")
    sorted_rank_Q = rank_Q[order]
    upto_BQ = np.cumsum(weight_BN[:, image_Q[order]], axis=1, dtype=np.int32)
    # Between the two middle queries where their number is even, as numpy.median.
    lower_B = np.argmax(upto_BQ >= ((total_B + 1) // 2)[:, None], axis=1)
    upper_B = np.argmax(upto_BQ >= (total_B // 2 + 1)[:, None], axis=1)
    return (sorted_rank_Q[lower_B] + sorted_rank_Q[upper_B]) / 2


FLIPS_CHUNK = 1000  # sign vectors held at a time


def sign_flip_test(difference_NS: np.ndarray, *, flips: int = 10_000, seed: int = 0) -> np.ndarray:
    """Permutation test of paired differences, clustered by image; two-sided p for each score.

    If two runs differ only by luck, exchanging all results of an image between them changes
    nothing: the sign of an image's difference is a coin toss.  p is the share of sign vectors,
    the observed one among them, whose sum is as large (Phipson & Smyth 2010): never 0, and at
    most alpha with probability alpha, whatever the clusters.

    Args:
        difference_NS: b - a per image, summed over the queries of the image.
        flips: random sign vectors.
        seed: the same seed gives the same p.
    """
    rng = np.random.default_rng(seed)
    observed_S = np.abs(difference_NS.sum(0))
    # Sums of the same numbers in another order may differ by rounding; they count as equal.
    slack_S = 1e-10 * np.abs(difference_NS).sum(0)
    as_large_S = np.ones(difference_NS.shape[1])
    for start in range(0, flips, FLIPS_CHUNK):
        shape = (min(FLIPS_CHUNK, flips - start), len(difference_NS))
        sign = rng.integers(0, 2, shape, dtype=np.int8).astype(np.float64) * 2 - 1
        as_large_S += (np.abs(sign @ difference_NS) >= observed_S - slack_S).sum(0)
    return as_large_S / (flips + 1)
