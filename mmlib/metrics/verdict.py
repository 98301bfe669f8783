"""What may be said of a difference, in words; and what may not be compared at all."""

import math

from mmlib.metrics.intervals import exact_binomial_interval
from mmlib.metrics.ranks import RetrievalRanks

ALPHA = 0.05
# What two evaluations must share beside what their ranks show.
PROVENANCE = ("dataset", "fingerprint", "split", "protocol", "query_ids")


def why_not_comparable(
    ranks_a: RetrievalRanks, ranks_b: RetrievalRanks, provenance_a: dict | None, provenance_b: dict | None
) -> str | None:
    """The reasons why two evaluations must not stand in one comparison, or None.

    Checked are the keys `PROVENANCE` of the two dicts (equal, or absent from both), the ranks'
    protocol, gallery sizes, number of captions and map of captions to images.
    """
    a, b = provenance_a or {}, provenance_b or {}
    reasons = []
    for key in PROVENANCE:
        if (key in a) != (key in b):
            known, unknown = ("first", "second") if key in a else ("second", "first")
            reasons.append(f"{key} is given for the {known} only, unknown for the {unknown}")
        elif key in a and _plain(a[key]) != _plain(b[key]):
            reasons.append(
                "query ids differ" if key == "query_ids" else f"{key} differs ({a[key]} vs {b[key]})"
            )
    for what, of_a, of_b in (
        ("ranking", ranks_a.protocol, ranks_b.protocol),
        ("i2t gallery", ranks_a.gallery_i2t, ranks_b.gallery_i2t),
        ("t2i gallery", ranks_a.gallery_t2i, ranks_b.gallery_t2i),
        ("number of captions", len(ranks_a.image_of_text_M), len(ranks_b.image_of_text_M)),
    ):
        if of_a != of_b:
            reasons.append(f"{what} differs ({of_a} vs {of_b})")
    if not reasons and (ranks_a.image_of_text_M != ranks_b.image_of_text_M).any():
        reasons.append("captions belong to different images")
    return "; ".join(reasons) or None


def verdict_in_words(difference: float, low: float, high: float, p: float, evidence: str, level=0.95) -> str:
    """One sentence on a difference of recalls (fractions), second run against first.

    A difference is claimed only where the test and the interval agree on it.

    Args:
        difference: second minus first.
        low, high: its interval.
        p: of the test that decides.
        evidence: the counts, for example "17 vs 18 hits of 5,000".
        level: of the interval.
    """
    if p >= ALPHA or low <= 0 <= high:
        return f"no evidence of a difference ({evidence}; {p_in_words(p)})"
    word, low, high = ("better", low, high) if difference > 0 else ("worse", -high, -low)
    return (
        f"{word} by {100 * abs(difference):.2f} points"
        f" ({100 * level:g} % {100 * low:.2f} to {100 * high:.2f}; {evidence}; {p_in_words(p)})"
    )


def p_in_words(p: float) -> str:
    """`p = 0.032`, and `p < 0.001` where digits would say more than they know."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def verdict_from_counts(hits_a: int, hits_b: int, n: int, level: float = 0.95) -> dict:
    """What two published hit counts on n queries each can show, when nothing else is known.

    Fisher's exact test, and the interval of the difference by Newcombe's (1998) combination of
    the two exact binomial intervals.  Without the ranks neither the pairing of queries nor their
    clustering by image can be used: pairing would sharpen, clustering blunt the result.

    Returns:
        `hits_a`, `hits_b`, `n`, `difference`, `low`, `high`, `p`, `verdict`.

    Raises:
        ValueError: counts outside 0..n, or n below 1.
    """
    from scipy.stats import fisher_exact

    for name, hits in (("hits_a", hits_a), ("hits_b", hits_b)):
        if n < 1 or not 0 <= hits <= n:
            raise ValueError(f"{name}: expected 0..n hits of n >= 1 queries, found {hits} of {n}")
    a, b = hits_a / n, hits_b / n
    (low_a, high_a), (low_b, high_b) = (exact_binomial_interval(h, n, level) for h in (hits_a, hits_b))
    low = b - a - math.hypot(b - low_b, high_a - a)
    high = b - a + math.hypot(high_b - b, a - low_a)
    p = float(fisher_exact([[hits_a, n - hits_a], [hits_b, n - hits_b]]).pvalue)
    evidence = f"{hits_a:,} vs {hits_b:,} hits of {n:,}"
    return {
        "hits_a": hits_a,
        "hits_b": hits_b,
        "n": n,
        "difference": b - a,
        "low": low,
        "high": high,
        "p": p,
        "verdict": verdict_in_words(b - a, low, high, p, evidence, level),
    }


def _plain(value):
    """Ids may come as array, list or tuple: compared by what they hold."""
    return list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
