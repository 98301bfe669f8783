"""Two evaluations: may they stand side by side, is there a difference, how large, and how sure is it?

`why_not_comparable` decides the first for every table, figure, verdict, ablation and command.
"""

import math

import numpy as np

from mmlib.metrics.ranks import RetrievalRanks
from mmlib.metrics.resampling import KS, LEVEL, TAILS, permutation_p, values_and_resamples
from mmlib.metrics.summary import DIRECTIONS, exact_binomial_interval

ALPHA = 0.05

_IN_WORDS = {"data": "data set", "images": "image queries", "captions": "caption queries"}


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
        a, b: what each was measured on: `measured_on` of its `results.json`, or any facts by name.  What
            one of them names, the other must name equally.
        ranks_a, ranks_b: the ranks of both, if there are any: protocol, gallery sizes, number of
            captions and map of captions to images must be equal.
    """
    a, b = {**(a or {}), **_of_ranks(ranks_a)}, {**(b or {}), **_of_ranks(ranks_b)}
    reasons = []
    for key in {**a, **b}:
        name = _IN_WORDS.get(key, key)
        if (key in a) != (key in b):
            known, unknown = ("first", "second") if key in a else ("second", "first")
            reasons.append(f"{name} is given for the {known} only, unknown for the {unknown}")
        elif a[key] != b[key]:
            x, y = (f"{v:,}" if isinstance(v, int) else v for v in (a[key], b[key]))
            reasons.append(f"{name} {'differ' if name.endswith('queries') else 'differs'} ({x} vs {y})")
    maps = [ranks.image_of_text_M for ranks in (ranks_a, ranks_b) if ranks is not None]
    if not reasons and maps and not np.array_equal(*maps):
        reasons.append("captions belong to different images")
    return reasons


def check_comparable(
    results: list[dict], protocol: str = "standard", ranks: list[RetrievalRanks] | None = None
) -> None:
    """Passes if these runs may stand side by side.

    Args:
        results: `results.json` of each, with this protocol.
        ranks: of each, if they are compared query by query.

    Raises:
        ValueError: two of them may not; names both and the reasons.
    """
    facts = [measured_on(result, protocol) for result in results]
    ranks = ranks or [None] * len(results)
    for result, fact, of_run in zip(results[1:], facts[1:], ranks[1:]):
        if reasons := why_not_comparable(facts[0], fact, ranks[0], of_run):
            raise ValueError(
                f"runs {results[0]['run']!r} and {result['run']!r} cannot be compared: {'; '.join(reasons)};"
                " evaluate both on the same data, or show them apart"
            )


def _of_ranks(ranks: RetrievalRanks | None) -> dict:
    if ranks is None:
        return {}
    return {
        "ranking": ranks.protocol,
        "i2t gallery": ranks.gallery_i2t,
        "t2i gallery": ranks.gallery_t2i,
        "number of captions": len(ranks.image_of_text_M),
    }


def compare_runs(
    ranks_a: RetrievalRanks,
    ranks_b: RetrievalRanks,
    *,
    provenance_a: dict | None = None,
    provenance_b: dict | None = None,
    resamples: int = 10_000,
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
        resamples: bootstrap resamples, and sign vectors of the permutation test.
        seed: the same seed gives the same result.

    Returns:
        `{"comparable", "verdict"}` and, if comparable, `metrics` (by name: `a`, `b`,
        `difference`, `differences` (a list of one), `low`, `high`, `p`, `p_holm`; no p for median ranks,
        which are no mean over images), `r1` (by direction: `n`, `hits_a`, `hits_b`, and McNemar's
        `only_a`, `only_b`, `p`), `evidence` in words, and `level`.
    """
    if reasons := why_not_comparable(provenance_a, provenance_b, ranks_a, ranks_b):
        return {"comparable": False, "verdict": f"not comparable: {'; '.join(reasons)}"}
    metrics = _differences([ranks_a], [ranks_b], resamples, seed, medians=True)
    family = [f"{d}_r{k}" for d in DIRECTIONS for k in KS]
    for name, p in zip(family, holm([metrics[name]["p"] for name in family])):
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
    verdict = verdict_in_words(main["difference"], main["low"], main["high"], main["p"], evidence)
    return {
        "comparable": True, "verdict": verdict, "evidence": evidence, "level": LEVEL, "metrics": metrics,
        "r1": r1,
    }  # fmt: skip


def compare_pairs(
    runs: list[tuple[RetrievalRanks, dict | None]], pairs: list[tuple[int, int]], **given
) -> list[dict]:
    """`compare_runs` of several pairs, judged together.

    Args:
        runs: of each its ranks and what they were measured on, see `why_not_comparable`.
        pairs: places in `runs`, the second of which is judged against the first.
        given: `resamples` and `seed` of `compare_runs`.

    Returns:
        For each pair what `compare_runs` gives, and `p_holm`: that of the mean R@1, corrected by Holm over
        all pairs that can be compared, which decides the verdict; `better`: the place of the better run, None
        where there is no evidence or no comparison.
    """
    found = []
    for a, b in pairs:
        (ranks_a, facts_a), (ranks_b, facts_b) = runs[a], runs[b]
        found.append(
            compare_runs(ranks_a, ranks_b, provenance_a=facts_a, provenance_b=facts_b, **given)
            | {"better": None, "p_holm": None}
        )
    compared = [(pair, result) for pair, result in zip(pairs, found) if result["comparable"]]
    corrected = holm([result["metrics"]["mean_r1"]["p"] for _, result in compared])
    for ((a, b), result), p in zip(compared, corrected):
        main = result["metrics"]["mean_r1"]
        result["p_holm"] = float(p)
        change, low, high = main["difference"], main["low"], main["high"]
        result["verdict"] = verdict_in_words(change, low, high, float(p), result["evidence"])
        if p < ALPHA and not low <= 0 <= high:
            result["better"] = b if change > 0 else a
    return found


def compare_seeds(
    before: list[RetrievalRanks],
    after: list[RetrievalRanks],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """The second side against the first, run s of one beside run s of the other.

    Two things must be ruled out before a difference may be claimed, and each has its own number.
    That it comes from these seeds: the interval.  It is the wider of two: Student's t over the S
    differences; and one whose variance is theirs, s² / S, plus that of the queries, as in
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
        resamples: bootstrap resamples, and sign vectors of the permutation test.
        seed: of both; the same seed gives the same result.

    Returns:
        `seeds` (S), `interval` (what it covers, in words) and `metrics`: by name `a` and `b` (means
        over the seeds), `difference`, `differences` (one a seed), `low`, `high`, `p`.

    Raises:
        ValueError: no ranks, other numbers of seeds, or ranks that may not be compared.
    """
    if not before or len(before) != len(after):
        raise ValueError(
            f"expected the ranks of as many seeds on both sides, found {len(before)} and {len(after)}"
        )
    _check_same_queries([*before, *after])
    metrics = _differences(before, after, resamples, seed)
    interval = "queries" if len(before) == 1 else "seeds and queries"
    return {"seeds": len(before), "interval": interval, "metrics": metrics}


def summarise_seeds(runs: list[RetrievalRanks], *, resamples: int = 2000, seed: int = 0) -> dict:
    """Mean and standard deviation over seeds, with an interval over seeds and queries together.

    The variance of the mean is that of the seeds, s² / S, plus that of the queries, from a
    bootstrap over images that are the same for all seeds; the part that depends on both enters
    twice, so that the interval errs on the wide side.  Student's t with the degrees of freedom of
    Satterthwaite (1946), clipped to what the metric can be.

    Args:
        runs: ranks of S >= 2 seeds on the same queries.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.

    Returns:
        By metric: `mean`, `sd` (over seeds), `values` (one per seed), `low`, `high`.

    Raises:
        ValueError: fewer than two runs; runs over different queries.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: expected the ranks of two seeds or more, found {len(runs)}")
    _check_same_queries(runs)
    value, value_B = values_and_resamples(runs, resamples, seed)
    summary = {}
    for name, value_S in value.items():
        half = _half_widths(value_S, value_B[name], runs[0].images)[0]
        least, most = (1.0, math.inf) if name.endswith("rank") else (0.0, 6.0 if name == "rsum" else 1.0)
        mean = value_S.mean()
        summary[name] = {
            "mean": float(mean),
            "sd": float(value_S.std(ddof=1)),
            "values": value_S.tolist(),
            "low": float(max(mean - half, least)),
            "high": float(min(mean + half, most)),
        }
    return summary


def _differences(before, after, resamples: int, seed: int, medians: bool = False) -> dict:
    """Every metric of two sides of S runs each, and their difference with interval and p."""
    (a, a_B), (b, b_B) = (values_and_resamples(side, resamples, seed, medians) for side in (before, after))
    p = permutation_p(before, after, resamples, seed)
    metrics = {}
    for name in a:
        difference_S, difference_B = b[name] - a[name], b_B[name] - a_B[name]
        difference = float(difference_S.mean())
        if len(before) == 1:
            low, high = np.quantile(difference_B, TAILS)
        else:
            half = max(_half_widths(difference_S, difference_B, before[0].images))
            low, high = difference - half, difference + half
        metrics[name] = {
            "a": float(a[name].mean()),
            "b": float(b[name].mean()),
            "difference": difference,
            "differences": difference_S.tolist(),
            "low": float(low),
            "high": float(high),
            "p": p.get(name),
        }
    return metrics


def _half_widths(value_S: np.ndarray, value_B: np.ndarray, images: int) -> tuple[float, float]:
    """Of two intervals of the mean over S seeds: over seeds and queries (Satterthwaite), over seeds alone."""
    from scipy.stats import t

    seeds = len(value_S)
    of_seeds, of_queries = value_S.var(ddof=1) / seeds, value_B.var()
    variance = of_seeds + of_queries
    if not variance:
        return 0.0, 0.0
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_queries**2 / max(images - 1, 1))
    return t.ppf(TAILS[1], freedom) * variance**0.5, t.ppf(TAILS[1], seeds - 1) * of_seeds**0.5


def _check_same_queries(runs: list[RetrievalRanks]) -> None:
    for run in runs[1:]:
        if reasons := why_not_comparable(None, None, runs[0], run):
            raise ValueError(
                f"expected ranks over the same queries, found that {'; '.join(reasons)}; evaluate all runs"
                " on one split"
            )


def mcnemar(hit_a_Q, hit_b_Q) -> dict:
    """Exact McNemar (1947) test: of the queries that changed, did as many turn good as bad?

    For independent queries (i2t).  Captions of one image are not independent: there it
    finds differences too readily, and `sign_flip_test` is the one to trust.

    Returns:
        `only_a` and `only_b`, queries that one run alone hits; `p`, two-sided.
    """
    from scipy.stats import binomtest

    hit_a_Q, hit_b_Q = np.asarray(hit_a_Q, bool), np.asarray(hit_b_Q, bool)
    only_a, only_b = int((hit_a_Q & ~hit_b_Q).sum()), int((hit_b_Q & ~hit_a_Q).sum())
    changed = only_a + only_b
    p = float(binomtest(only_a, changed).pvalue) if changed else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p}


def holm(p_values) -> np.ndarray:
    """Adjusted p-values of Holm (1979): the chance of any false alarm among them stays at alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def verdict_in_words(difference: float, low: float, high: float, p: float, evidence: str) -> str:
    """One sentence on a difference of recalls (fractions), second run against first.

    A difference is claimed only where the test and the interval agree on it.

    Args:
        difference: second minus first.
        low, high: its interval.
        p: of the test that decides.
        evidence: the counts, for example "17 vs 18 hits of 5,000".
    """
    if p >= ALPHA or low <= 0 <= high:
        return f"no evidence of a difference ({evidence}; {p_in_words(p)})"
    word, low, high = ("better", low, high) if difference > 0 else ("worse", -high, -low)
    return (
        f"{word} by {100 * abs(difference):.2f} points"
        f" ({100 * LEVEL:g} % {100 * low:.2f} to {100 * high:.2f}; {evidence}; {p_in_words(p)})"
    )


def p_in_words(p: float) -> str:
    """`p = 0.032`, and `p < 0.001` where digits would say more than they know."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def verdict_from_counts(hits_a: int, hits_b: int, n: int) -> dict:
    """What two published hit counts on n queries each can show, when nothing else is known.

    Fisher's exact test, and the interval of the difference by Newcombe's (1998) combination of
    the two exact binomial intervals.  Without the ranks neither the pairing of queries nor their
    clustering by image can be used: pairing would sharpen, clustering blunt the result.

    Returns:
        `difference`, `low`, `high`, `p`, `verdict`.

    Raises:
        ValueError: counts outside 0..n, or n below 1.
    """
    from scipy.stats import fisher_exact

    a, b = hits_a / n, hits_b / n
    (low_a, high_a), (low_b, high_b) = (exact_binomial_interval(h, n) for h in (hits_a, hits_b))
    low = b - a - math.hypot(b - low_b, high_a - a)
    high = b - a + math.hypot(high_b - b, a - low_a)
    p = float(fisher_exact([[hits_a, n - hits_a], [hits_b, n - hits_b]]).pvalue)
    verdict = verdict_in_words(b - a, low, high, p, f"{hits_a:,} vs {hits_b:,} hits of {n:,}")
    return {"difference": b - a, "low": low, "high": high, "p": p, "verdict": verdict}
