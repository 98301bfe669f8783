"""Two evaluations: may they stand side by side, is there a difference, how large, and how sure is it?

`why_not_comparable` decides the first for every table, figure, verdict, ablation and command.
"""

import math

import numpy as np

from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.resampling import (
    image_scores,
    image_weights,
    interval_tails,
    metric_values,
    sign_flip_test,
)
from mmlib.metrics.summary import DIRECTIONS, exact_binomial_interval

ALPHA = 0.05

_IN_WORDS = {"data": "data set", "images": "image queries", "captions": "caption queries"}
_DIFFER_IN_WORDS = {"query_ids": "query ids differ", "image_of_text_M": "captions belong to different images"}


def measured_on(result: dict, protocol: str = "standard") -> dict:
    """What a run was evaluated on, from its `results.json`: the facts that two runs must share.

    Returns:
        `data` (name), `fingerprint` (of what is evaluated, see `held_out_fingerprint`), `split`,
        `protocol`, `images` and `captions` (queries of each direction).
    """
    summary = result["protocols"][protocol]
    return {
        "data": result["data"]["name"],
        "fingerprint": held_out_fingerprint(result["data"]),
        "split": result["split"],
        "protocol": protocol,
        "images": summary["i2t"]["n"],
        "captions": summary["t2i"]["n"],
    }


def held_out_fingerprint(data: dict) -> str:
    """Fingerprint of the data that a run holds out, from the identity in its files (`Dataset.identity`).

    What a run trains on does not matter to a comparison.  Where `held_out_fingerprint` is absent (the
    training split is the data set's own, or the file is older than the field), that of all data counts.
    """
    return data.get("held_out_fingerprint") or data["fingerprint"]


def why_not_comparable(
    a: dict | None,
    b: dict | None,
    ranks_a: RetrievalRanks | None = None,
    ranks_b: RetrievalRanks | None = None,
) -> list[str]:
    """The reasons why two evaluations must not stand in one comparison, in words; none if they may.

    Args:
        a, b: what each was measured on: `measured_on` of its `results.json`, or any facts by name, such
            as `query_ids`.  What one of them names, the other must name equally.
        ranks_a, ranks_b: the ranks of both, if there are any: protocol, gallery sizes, number of
            captions and map of captions to images must be equal.
    """
    a, b = {**(a or {}), **_of_ranks(ranks_a)}, {**(b or {}), **_of_ranks(ranks_b)}
    reasons, long = [], []
    for key in {**a, **b}:
        name = _IN_WORDS.get(key, key)
        if (key in a) != (key in b):
            known, unknown = ("first", "second") if key in a else ("second", "first")
            reasons.append(f"{name} is given for the {known} only, unknown for the {unknown}")
        elif hasattr(a[key], "__len__") and not isinstance(a[key], str):
            long.append(key)
        elif a[key] != b[key]:
            reasons.append(f"{name} differs ({a[key]} vs {b[key]})")
    # Long lists say something of their own only where all else agrees.
    return reasons or [
        _DIFFER_IN_WORDS.get(key, f"{key} differs") for key in long if not np.array_equal(a[key], b[key])
    ]


def check_comparable(results: list[dict], protocol: str = "standard") -> None:
    """Passes if these runs may stand side by side.

    Args:
        results: `results.json` of each, with this protocol.

    Raises:
        ValueError: two of them may not; names both and the reasons.
    """
    for other in results[1:]:
        if reasons := why_not_comparable(measured_on(results[0], protocol), measured_on(other, protocol)):
            raise ValueError(
                f"runs {results[0]['run']!r} and {other['run']!r} cannot be compared: {'; '.join(reasons)};"
                " evaluate both on the same data, or show them apart"
            )


def _of_ranks(ranks: RetrievalRanks | None) -> dict:
    return (
        {}
        if ranks is None
        else {
            "ranking": ranks.protocol,
            "i2t gallery": ranks.gallery_i2t,
            "t2i gallery": ranks.gallery_t2i,
            "number of captions": len(ranks.image_of_text_M),
            "image_of_text_M": ranks.image_of_text_M,
        }
    )


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
        provenance_a, provenance_b: what the ranks were measured on, see `why_not_comparable`.
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
    if reasons := why_not_comparable(provenance_a, provenance_b, ranks_a, ranks_b):
        return {"comparable": False, "verdict": f"not comparable: {'; '.join(reasons)}"}

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


def summarise_seeds(
    runs: list[RetrievalRanks], *, ks=(1, 5, 10), resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict:
    """Mean and standard deviation over seeds, with an interval over seeds and queries together.

    The variance of the mean is that of the seeds, s² / S, plus that of the queries, from a
    bootstrap over images that are the same for all seeds; the part that depends on both enters
    twice, so that the interval errs on the wide side.  Student's t with the degrees of freedom of
    Satterthwaite (1946), clipped to what the metric can be.

    Args:
        runs: ranks of S >= 2 seeds on the same queries.
        ks: the K of R@K.
        resamples: of the bootstrap over images.
        level: confidence level.
        seed: of the bootstrap.

    Returns:
        By metric: `mean`, `sd` (over seeds), `values` (one per seed), `low`, `high`.

    Raises:
        ValueError: fewer than two runs; runs over different queries; see `bootstrap_intervals`.
    """
    from scipy.stats import t

    if len(runs) < 2:
        raise ValueError(f"runs: expected the ranks of two seeds or more, found {len(runs)}")
    for run in runs[1:]:
        if reasons := why_not_comparable(None, None, runs[0], run):
            raise ValueError(
                f"runs: expected ranks over the same queries, found that {'; '.join(reasons)};"
                " evaluate all seeds on one split"
            )
    tails = interval_tails(level, resamples)
    seeds, images = len(runs), runs[0].images
    once = np.ones((1, images), np.int32)
    values = [metric_values(run, once, ks) for run in runs]
    means = []
    for weight in image_weights(images, resamples, seed):
        of_runs = [metric_values(run, weight, ks) for run in runs]
        means.append({name: np.mean([of_run[name] for of_run in of_runs], axis=0) for name in of_runs[0]})
    summary = {}
    for name in values[0]:
        value_S = np.array([value[name][0] for value in values])
        of_seeds = value_S.var(ddof=1) / seeds
        of_queries = np.concatenate([chunk[name] for chunk in means]).var()
        variance = of_seeds + of_queries
        freedom = of_seeds**2 / (seeds - 1) + of_queries**2 / max(images - 1, 1)
        half = t.ppf(tails[1], variance**2 / freedom) * variance**0.5 if variance else 0.0
        least, most = _bounds(name, len(ks))
        summary[name] = {
            "mean": float(value_S.mean()),
            "sd": float(value_S.std(ddof=1)),
            "values": value_S.tolist(),
            "low": float(max(value_S.mean() - half, least)),
            "high": float(min(value_S.mean() + half, most)),
        }
    return summary


def _bounds(name: str, ks: int) -> tuple[float, float]:
    if name.endswith("rank"):
        return 1.0, np.inf
    return 0.0, 2.0 * ks if name == "rsum" else 1.0


def compare_seeds(
    before: list[RetrievalRanks],
    after: list[RetrievalRanks],
    *,
    ks=(1, 5, 10),
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict:
    """The second side against the first, run s of one beside run s of the other.

    Two things must be ruled out before a difference may be claimed, and each has its own number.
    That it comes from these seeds: the interval.  It is the wider of two: Student's t over the S
    differences; and one whose variance is theirs, s² / S, plus that of the queries, from a bootstrap
    over images of the mean difference, with the degrees of freedom of Satterthwaite (1946), as in
    `summarise_seeds`.  That it comes from these queries: p, a permutation by image
    (`sign_flip_test`) of the mean over the seeds.

    Where both are asked for, arms of one quality were told apart in at most 5 % of 1,500 simulated
    comparisons of 2, 3 and 5 seeds, however far the seeds lie apart; by p alone in up to half of
    them, by p and the second interval alone in up to 13 % (2 seeds).  The price: of a difference
    that 3 seeds show in 87 %, 2 seeds show 37 %.

    With one seed the interval is over queries alone, as in `compare_runs`, and nothing is known of
    other seeds.

    Args:
        before, after: ranks of S >= 1 seeds each, in one order of seeds, all on the same queries.
        ks: the K of R@K, 1 among them.
        resamples: bootstrap resamples, and sign vectors of the permutation test.
        level: confidence level.
        seed: of both; the same seed gives the same result.

    Returns:
        `seeds` (S), `interval` (what it covers, in words) and `metrics`: by name (`<d>_r<K>`,
        `rsum`, `mean_r1`) `a` and `b` (means over the seeds), `difference`, `differences` (one a
        seed), `low`, `high`, `p`.

    Raises:
        ValueError: no ranks, other numbers of seeds, or ranks that may not be compared.
    """
    if not before or len(before) != len(after):
        raise ValueError(
            f"expected the ranks of as many seeds on both sides, found {len(before)} and {len(after)}"
        )
    if 1 not in ks:
        raise ValueError(f"ks: expected 1 among them, found {ks}; the mean R@1 needs it")
    tails = interval_tails(level, resamples)
    for ranks in (*before, *after):
        if reasons := why_not_comparable(None, None, before[0], ranks):
            raise ValueError(f"not comparable: {'; '.join(reasons)}; evaluate all runs on one split")
    if len(before) == 1:
        compared = compare_runs(*before, *after, ks=ks, resamples=resamples, level=level, seed=seed)[
            "metrics"
        ]
        names = (*(f"{d}_r{k}" for d in DIRECTIONS for k in ks), "rsum", "mean_r1")
        metrics = {name: compared[name] | {"differences": [compared[name]["difference"]]} for name in names}
        return {"seeds": 1, "interval": "queries", "metrics": metrics}

    hits_a, hits_b = ([_hits(ranks, ks) for ranks in side] for side in (before, after))
    queries = {d: np.bincount(before[0].image_of_query(d)) for d in DIRECTIONS}
    total = {d: count_N.sum() for d, count_N in queries.items()}
    gain = {d: np.mean([b[d] - a[d] for a, b in zip(hits_a, hits_b)], axis=0) for d in DIRECTIONS}
    values_a, values_b = (
        [_named({d: hit_NK.sum(0) / total[d] for d, hit_NK in hits.items()}, ks) for hits in side]
        for side in (hits_a, hits_b)
    )
    resampled = [
        _named({d: weight_BN @ gain[d] / (weight_BN @ queries[d])[:, None] for d in DIRECTIONS}, ks)
        for weight_BN in image_weights(before[0].images, resamples, seed)
    ]
    of_images = _named({d: gain[d] / total[d] for d in DIRECTIONS}, ks)
    p_values = sign_flip_test(np.stack(list(of_images.values()), axis=1), flips=resamples, seed=seed)
    metrics = {}
    for name, p in zip(of_images, p_values.tolist()):
        a_S, b_S = (np.array([value[name] for value in values]) for values in (values_a, values_b))
        of_queries = np.concatenate([chunk[name] for chunk in resampled]).var()
        half = _half_width(b_S - a_S, of_queries, before[0].images, tails[1])
        difference = float((b_S - a_S).mean())
        metrics[name] = {
            "a": float(a_S.mean()),
            "b": float(b_S.mean()),
            "difference": difference,
            "differences": (b_S - a_S).tolist(),
            "low": difference - half,
            "high": difference + half,
            "p": p,
        }
    return {"seeds": len(before), "interval": "seeds and queries", "metrics": metrics}


def _hits(ranks: RetrievalRanks, ks) -> dict[str, np.ndarray]:
    """Hits of each image's queries at each K, (N, K), by direction."""
    return {d: image_scores(ranks, d, ks)[1][:, : len(ks)] for d in DIRECTIONS}


def _named(recall: dict[str, np.ndarray], ks) -> dict[str, np.ndarray]:
    """Recalls (X, K) by direction as metrics (X,) by name, with the two that sum over directions."""
    named = {f"{d}_r{k}": recall[d][..., place] for d in DIRECTIONS for place, k in enumerate(ks)}
    return named | {
        "rsum": sum(named.values()),
        "mean_r1": (named["i2t_r1"] + named["t2i_r1"]) / 2,
    }


def _half_width(difference_S: np.ndarray, of_queries: float, images: int, tail: float) -> float:
    from scipy.stats import t

    seeds = len(difference_S)
    of_seeds = difference_S.var(ddof=1) / seeds
    variance = of_seeds + of_queries
    if not variance:
        return 0.0
    freedom = of_seeds**2 / (seeds - 1) + of_queries**2 / max(images - 1, 1)
    of_both = t.ppf(tail, variance**2 / freedom) * variance**0.5
    return float(max(of_both, t.ppf(tail, seeds - 1) * of_seeds**0.5))
