"""Two runs on the same queries: is there a difference, how large, and how sure is it?"""

import numpy as np

from mmlib.metrics.bootstrap import image_scores, image_weights, interval_tails, metric_values
from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.significance import holm, mcnemar, sign_flip_test
from mmlib.metrics.summary import DIRECTIONS
from mmlib.metrics.verdict import verdict_in_words, why_not_comparable


def compare_runs(
    ranks_a: RetrievalRanks,
    ranks_b: RetrievalRanks,
    *,
    provenance_a: dict | None = None,
    provenance_b: dict | None = None,
    ks=(1, 5, 10),
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """The second run against the first, ready for JSON; leads with a verdict on the mean R@1.

    Intervals of the differences: percentile bootstrap over images, the same resamples for both
    runs.  p: permutation by image (`sign_flip_test`); `p_holm` corrects it over all R@K of both
    directions.  The verdict claims a difference only where p and interval of `mean_r1`, the one
    figure named in advance, agree.

    Args:
        ranks_a, ranks_b: of one set of queries, under one protocol.
        provenance_a, provenance_b: where the ranks come from, keys `verdict.PROVENANCE`; what
            one of them names, the other must name equally.
        ks: the K of R@K, 1 among them.
        resamples: bootstrap resamples, and sign vectors of the permutation test.
        level: confidence level.
        seed: the same seed gives the same result.

    Returns:
        `{"comparable", "verdict"}` and, if comparable, `metrics` (by name: `a`, `b`,
        `difference`, `low`, `high`, `p`, `p_holm`; no p for median ranks, which are no mean over
        images), `r1` (by direction: `n`, `hits_a`, `hits_b`, and McNemar's `only_a`, `only_b`,
        `p`) and `level`.

    Raises:
        ValueError: 1 is not among ks; fewer than 100 resamples; a level outside (0, 1).
    """
    if 1 not in ks:
        raise ValueError(f"ks: expected 1 among them, found {ks}; the verdict is on R@1")
    tails = interval_tails(level, resamples)
    reasons = why_not_comparable(ranks_a, ranks_b, provenance_a, provenance_b)
    if reasons:
        return {"comparable": False, "verdict": f"not comparable: {reasons}"}

    once = np.ones((1, ranks_a.images), np.int32)
    a, b = metric_values(ranks_a, once, ks), metric_values(ranks_b, once, ks)
    chunks = []
    for weight in image_weights(ranks_a.images, resamples, seed):
        of_a, of_b = metric_values(ranks_a, weight, ks), metric_values(ranks_b, weight, ks)
        chunks.append({name: of_b[name] - of_a[name] for name in of_a})
    p_values = _permutation_p(ranks_a, ranks_b, ks, resamples, seed)
    metrics = {}
    for name in a:
        low, high = np.quantile(np.concatenate([chunk[name] for chunk in chunks]), tails)
        metrics[name] = {
            "a": float(a[name][0]),
            "b": float(b[name][0]),
            "difference": float(b[name][0] - a[name][0]),
            "low": float(low),
            "high": float(high),
            "p": p_values.get(name),
        }
    family = [f"{d}_r{k}" for d in DIRECTIONS for k in ks]
    for name, p in zip(family, holm([p_values[name] for name in family])):
        metrics[name]["p_holm"] = float(p)

    r1 = {}
    for d in DIRECTIONS:
        hit_a, hit_b = ranks_a.of(d) <= 1, ranks_b.of(d) <= 1
        counts = {"n": len(hit_a), "hits_a": int(hit_a.sum()), "hits_b": int(hit_b.sum())}
        r1[d] = counts | mcnemar(hit_a, hit_b)
    evidence = "R@1 " + ", ".join(
        f"{d} {r1[d]['hits_a']:,} vs {r1[d]['hits_b']:,} hits of {r1[d]['n']:,}" for d in DIRECTIONS
    )
    main = metrics["mean_r1"]
    verdict = verdict_in_words(main["difference"], main["low"], main["high"], main["p"], evidence, level)
    return {"comparable": True, "verdict": verdict, "level": level, "metrics": metrics, "r1": r1}


def _permutation_p(ranks_a, ranks_b, ks, flips: int, seed: int) -> dict[str, float]:
    """p by metric, for those that are means over queries."""
    difference = {}
    for d in DIRECTIONS:
        names, score_a_NS = image_scores(ranks_a, d, ks)
        _, score_b_NS = image_scores(ranks_b, d, ks)
        difference |= dict(zip(names, (score_b_NS - score_a_NS).T / len(ranks_a.of(d))))
    difference["rsum"] = sum(difference[f"{d}_r{k}"] for d in DIRECTIONS for k in ks)
    difference["mean_r1"] = (difference["i2t_r1"] + difference["t2i_r1"]) / 2
    p_S = sign_flip_test(np.stack(list(difference.values()), axis=1), flips=flips, seed=seed)
    return dict(zip(difference, p_S.tolist()))
