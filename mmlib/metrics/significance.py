"""Tests of a difference between two runs on the same queries, and their correction for number.

Shapes: Q queries, N images, S scores.
"""

import numpy as np

FLIPS_CHUNK = 1000  # sign vectors held at a time


def mcnemar(hit_a_Q, hit_b_Q) -> dict:
    """Exact McNemar (1947) test: of the queries that changed, did as many turn good as bad?

    For independent queries (i2t).  Captions of one image are not independent: there it
    finds differences too readily, and `sign_flip_test` is the one to trust.

    Returns:
        `only_a` and `only_b`, queries that one run alone hits; `p`, two-sided.

    Raises:
        ValueError: shapes that differ.
    """
    from scipy.stats import binomtest

    hit_a_Q, hit_b_Q = np.asarray(hit_a_Q, bool), np.asarray(hit_b_Q, bool)
    if hit_a_Q.shape != hit_b_Q.shape:
        raise ValueError(
            f"expected hits of the same queries, found shapes {hit_a_Q.shape} and {hit_b_Q.shape}"
        )
    only_a, only_b = int((hit_a_Q & ~hit_b_Q).sum()), int((hit_b_Q & ~hit_a_Q).sum())
    changed = only_a + only_b
    p = float(binomtest(only_a, changed).pvalue) if changed else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


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


def holm(p_values) -> np.ndarray:
    """Adjusted p-values of Holm (1979): the chance of any false alarm among them stays at alpha.

    Raises:
        ValueError: a p outside 0..1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: expected numbers in 0..1, found {p_values}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted
