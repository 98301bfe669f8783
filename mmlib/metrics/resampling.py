"""Resampling by image: bootstrap intervals and permutation tests, of one run, of two, and of several seeds.

A resample draws N images with replacement and takes with each image its own query and those of
all its captions, in both directions at once: queries of one image succeed and fail together, and
a sum over both directions (rsum) gets its interval with their correlation.

Shapes: N images, Q queries of one direction, B resamples, S scores.
"""

import numpy as np

from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.summary import DIRECTIONS

KS = (1, 5, 10)
LEVEL = 0.95
TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
CHUNK = 500  # resamples held at a time: 500 x 5,000 weights are 10 MB


def bootstrap_intervals(ranks: RetrievalRanks, *, resamples: int = 10_000, seed: int = 0) -> dict:
    """Percentile interval of every metric, 95 %, clustered by image (Efron & Tibshirani 1993, ch. 13).

    Serves rsum, mean and median rank, MRR.  A single R@K is better served by `recall_interval`,
    which is what `summarise` shows: with a handful of hits the percentiles of a bootstrap are too
    narrow, and with none they are a point.

    Args:
        ranks: one evaluation.
        resamples: of its images.
        seed: the same seed gives the same intervals.

    Returns:
        `{metric: {"value", "low", "high"}}`, metrics named as by `metric_values`.
    """
    value, value_B = values_and_resamples([ranks], resamples, seed)
    low, high = np.quantile(list(value_B.values()), TAILS, axis=1)
    return {
        name: {"value": float(value[name][0]), "low": float(low[i]), "high": float(high[i])}
        for i, name in enumerate(value)
    }


def image_weights(images: int, resamples: int, seed: int):
    """Yields `(B, N)` int32 arrays, `resamples` rows in all: how often each image was drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.int32)


def values_and_resamples(
    runs: list[RetrievalRanks], resamples: int, seed: int, medians: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every metric of each run, and the runs' mean in each resample: arrays by name, (runs,) and (B,).

    The same seed draws the same images for all runs of one set of queries.
    """
    images = runs[0].images
    once = [metric_values(run, np.ones((1, images), np.int32), medians) for run in runs]
    chunks = [
        [metric_values(run, weight_BN, medians) for run in runs]
        for weight_BN in image_weights(images, resamples, seed)
    ]
    value = {name: np.array([of_run[name][0] for of_run in once]) for name in once[0]}
    value_B = {
        name: np.concatenate([np.mean([v[name] for v in c], axis=0) for c in chunks]) for name in value
    }
    return value, value_B


def metric_values(
    ranks: RetrievalRanks, weight_BN: np.ndarray, medians: bool = True
) -> dict[str, np.ndarray]:
    """Every metric, once per row of image weights.

    Returns:
        `rsum`, `mean_r1` and, for both directions d, `<d>_r<K>`, `<d>_mean_rank`,
        `<d>_mrr` and, if asked for, `<d>_median_rank`: arrays of shape (B,).
    """
    values = {}
    for d in DIRECTIONS:
        image_Q = ranks.image_of_query(d)
        queries_B = weight_BN @ np.bincount(image_Q, minlength=ranks.images)
        for name, sum_N in image_sums(ranks, d).items():
            values[name] = weight_BN.astype(np.float64) @ sum_N / queries_B
        if medians:
            values[f"{d}_median_rank"] = _weighted_medians(ranks.of(d), image_Q, weight_BN, queries_B)
    return with_both_directions(values)


def image_sums(ranks: RetrievalRanks, direction: str) -> dict[str, np.ndarray]:
    """Sums over each image's queries of what the metrics average: arrays (N,) by name."""
    rank_Q, image_Q = ranks.of(direction), ranks.image_of_query(direction)
    score_Q = {f"r{k}": rank_Q <= k for k in KS} | {"mean_rank": rank_Q, "mrr": 1 / rank_Q}
    return {
        f"{direction}_{name}": np.bincount(image_Q, weights=score, minlength=ranks.images)
        for name, score in score_Q.items()
    }


def with_both_directions(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the two metrics that sum over directions."""
    rsum = sum(values[f"{d}_r{k}"] for d in DIRECTIONS for k in KS)
    return values | {"rsum": rsum, "mean_r1": (values["i2t_r1"] + values["t2i_r1"]) / 2}


def permutation_p(
    before: list[RetrievalRanks], after: list[RetrievalRanks], flips: int, seed: int
) -> dict[str, float]:
    """p of the mean difference over pairs of runs, for each metric that is a mean over queries."""
    pairs = []
    for a, b in zip(before, after, strict=True):
        difference = {}
        for d in DIRECTIONS:
            sum_a, sum_b = image_sums(a, d), image_sums(b, d)
            difference |= {name: (sum_b[name] - sum_a[name]) / len(a.of(d)) for name in sum_a}
        pairs.append(with_both_directions(difference))
    difference_NS = np.stack([np.mean([pair[name] for pair in pairs], axis=0) for name in pairs[0]], axis=1)
    return dict(zip(pairs[0], sign_flip_test(difference_NS, flips=flips, seed=seed).tolist()))


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
    for start in range(0, flips, CHUNK):
        shape = (min(CHUNK, flips - start), len(difference_NS))
        sign = rng.integers(0, 2, shape, dtype=np.int8).astype(np.float64) * 2 - 1
        as_large_S += (np.abs(sign @ difference_NS) >= observed_S - slack_S).sum(0)
    return as_large_S / (flips + 1)


def _weighted_medians(rank_Q, image_Q, weight_BN, queries_B) -> np.ndarray:
    order = np.argsort(rank_Q, kind="stable")
    sorted_rank_Q = rank_Q[order]
    upto_BQ = np.cumsum(weight_BN[:, image_Q[order]], axis=1, dtype=np.int32)
    # Between the two middle queries where their number is even, as numpy.median.
    lower_B = np.argmax(upto_BQ >= ((queries_B + 1) // 2)[:, None], axis=1)
    upper_B = np.argmax(upto_BQ >= (queries_B // 2 + 1)[:, None], axis=1)
    return (sorted_rank_Q[lower_B] + sorted_rank_Q[upper_B]) / 2
