"""From ranks to the numbers of a report: recalls with hits, interval and chance, medians, rsum.

All recalls are fractions; `rsum` is the sum of all recalls of both directions, so 0..6 for three K.
"""

import math

import numpy as np

from mmlib.metrics.protocols import check_protocol, recall_ceiling
from mmlib.metrics.ranks import RetrievalRanks

DIRECTIONS = ("i2t", "t2i")
DIRECTION_NAMES = {"i2t": "image → text", "t2i": "text → image"}
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


def recall_at_k(ranks, k: int) -> float:
    """Share of queries whose best positive is among the first k, 0..1.

    This is the field's R@K, "hit rate" elsewhere; not the share of a query's positives found.
    """
    return float((np.asarray(ranks) <= k).mean())


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
        ValueError: a protocol that these ranks were not computed under.
    """
    protocol = check_protocol(ranks, protocol)
    ceiling = {f"{d}_r{k}": recall_ceiling(ranks, d, k) for d in DIRECTIONS for k in ks}
    summary = {"protocol": protocol, **_mean_over([ranks], ks)}
    return summary | {"ceiling": ceiling if min(ceiling.values()) < 1 else None}


def ceilings_in_words(summary: dict) -> list[str]:
    """`a perfect model reaches 20.0 % image → text R@1`, for each recall of a summary that has a ceiling."""
    below = {name: ceiling for name, ceiling in (summary.get("ceiling") or {}).items() if ceiling < 1}
    return [
        f"a perfect model reaches {100 * ceiling:.1f} % {DIRECTION_NAMES[name[:3]]} R@{name[5:]}"
        for name, ceiling in below.items()
    ]


def chance_recall(ranks: RetrievalRanks, direction: str, k: int) -> float:
    """Expected R@K of a ranking in random order, exact.

    A query with c positives in a gallery of G misses with probability C(G-c, k) / C(G, k)
    (hypergeometric, no positive drawn); averaged over queries, whose c may differ.
    """
    positives_Q = np.ones(len(ranks.of(direction)), dtype=np.int64)
    if direction == "i2t" and ranks.protocol == "standard":
        positives_Q = np.bincount(ranks.image_of_text_M)
    gallery, (counts, times) = ranks.gallery(direction), np.unique(positives_Q, return_counts=True)
    chances = [
        1 - math.prod(max(gallery - count - drawn, 0) / (gallery - drawn) for drawn in range(min(k, gallery)))
        for count in counts.tolist()
    ]
    return float(np.average(chances, weights=times))


def summarise_folds(folds: list[RetrievalRanks], *, protocol: str = "coco_1k_folds") -> dict:
    """Mean over folds of every metric, in the layout of `summarise`.

    Each R@K is the mean of the folds' (the field's way); its interval is `recall_interval` over
    the queries of all folds, clustered by image; `n` and `hits` count over all folds, `gallery`
    is the mean.

    Raises:
        ValueError: an unknown protocol, or folds of another size than it promises.
    """
    for fold in folds:
        check_protocol(fold, protocol)
    return {"protocol": protocol, "folds": len(folds), **_mean_over(folds, (1, 5, 10)), "ceiling": None}


def _mean_over(folds: list[RetrievalRanks], ks) -> dict:
    """The numbers of `summarise`: metrics as means over folds, counts over the queries of all folds."""

    def mean(values) -> float:
        return float(np.mean(list(values)))

    summary = {}
    first_image_F = np.cumsum([0, *(fold.images for fold in folds)])
    for d in DIRECTIONS:
        rank_Q = np.concatenate([fold.of(d) for fold in folds])
        best_Q = np.concatenate([fold.best_case(d) for fold in folds])
        image_Q = np.concatenate([fold.image_of_query(d) + i for fold, i in zip(folds, first_image_F)])
        gallery = mean(fold.gallery(d) for fold in folds)
        summary[d] = {
            "n": len(rank_Q),
            "gallery": int(gallery) if gallery.is_integer() else gallery,
            "median_rank": mean(np.median(fold.of(d)) for fold in folds),
            "mean_rank": mean(fold.of(d).mean() for fold in folds),
            "mrr": mean((1 / fold.of(d)).mean() for fold in folds),
            "tied": int((rank_Q > best_Q).sum()),
        }
        for k in ks:
            # One query per image is a sample of independent queries; several of one image are a cluster.
            independent = len(rank_Q) == first_image_F[-1]
            summary[d][f"r{k}"] = recall_with_interval(rank_Q <= k, None if independent else image_Q) | {
                "value": mean(recall_at_k(fold.of(d), k) for fold in folds),
                "chance": mean(chance_recall(fold, d, k) for fold in folds),
                "best_case": mean(recall_at_k(fold.best_case(d), k) for fold in folds),
            }
    summary["rsum"] = sum(summary[d][f"r{k}"]["value"] for d in DIRECTIONS for k in ks)
    summary["mean_r1"] = mean(recall_at_k(fold.of(d), 1) for d in DIRECTIONS for fold in folds)
    return summary


def recall_with_interval(hit_Q, cluster_Q=None) -> dict:
    """`value`, `hits`, `low` and `high` (95 %, `recall_interval`) of one recall, ready for JSON."""
    low, high = recall_interval(hit_Q, cluster_Q)
    return {"value": float(np.mean(hit_Q)), "hits": int(np.sum(hit_Q)), "low": low, "high": high}


# Weight of a prior cluster in which all queries agree, in clusters.  Without it the estimated
# design effect, drawn from a handful of images with a hit, falls short too often: coverage at
# p = 0.3 % with strongly clustered captions drops to 92 %.
PRIOR_CLUSTERS = 1


def recall_interval(hit_Q, cluster_Q=None, level: float = 0.95) -> tuple[float, float]:
    """Interval for a recall, right from 3 hits in a thousand to nearly all.

    Independent queries: Clopper & Pearson (1934), exact binomial.  Queries that cluster (the
    captions of one image succeed or fail together): Korn & Graubard (1998), the exact binomial
    interval at the effective sample size n / deff.  The design effect `deff` is the
    between-cluster (linearised) variance of the mean over its binomial variance, held between 1
    (never narrower than the exact interval of independent queries) and its value for clusters
    whose queries all agree, and shrunk towards that value by `PRIOR_CLUSTERS` against the number
    of clusters that show both a hit and, elsewhere, a miss.

    In 2,000 simulated runs each (1,000 images x 5 captions, p from 0.3 % to 80 %, intra-image
    correlation 0 to 1) the 95 % interval covers at least 94 %; see tests/metrics/test_coverage.py.

    Args:
        hit_Q: booleans, one per query.
        cluster_Q: integers >= 0, the cluster of each query; None where queries are independent.
        level: confidence level, between 0 and 1.

    Returns:
        Low and high ends, as fractions.

    Raises:
        ValueError: no queries, or a level outside (0, 1).
    """
    hit_Q = np.asarray(hit_Q, dtype=bool)
    hits, queries = int(hit_Q.sum()), len(hit_Q)
    if cluster_Q is None:
        return exact_binomial_interval(hits, queries, level)
    _, cluster_Q = np.unique(cluster_Q, return_inverse=True)
    effective = queries / design_effect(hit_Q, cluster_Q)
    return exact_binomial_interval(hits / queries * effective, effective, level)


def exact_binomial_interval(hits: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval for `hits` of `n`; both may be fractional (effective sample sizes).

    Raises:
        ValueError: not 0 <= hits <= n with n > 0, or a level outside (0, 1).
    """
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    if not (n > 0 and 0 <= hits <= n):
        raise ValueError(f"expected 0 <= hits <= n with n > 0, found {hits} hits of {n}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a confidence level between 0 and 1, found {level}")
    tail = (1 - level) / 2
    low = betaincinv(hits, n - hits + 1, tail) if hits > 0 else 0.0
    high = betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
    return float(low), float(high)


def design_effect(hit_Q: np.ndarray, cluster_Q: np.ndarray) -> float:
    """How many times larger the variance of the recall is than that of independent queries.

    Shrunk and bounded as `recall_interval` says.  `cluster_Q` counts from 0 without gaps.
    """
    queries = len(hit_Q)
    size_C = np.bincount(cluster_Q)
    hits_C = np.bincount(cluster_Q, weights=hit_Q)
    clusters, recall = len(size_C), hits_C.sum() / queries
    largest = float((size_C**2).sum() / queries)
    if clusters < 2 or recall in (0, 1):
        return largest
    variance = clusters / (clusters - 1) * ((hits_C - recall * size_C) ** 2).sum() / queries**2
    estimate = np.clip(variance * queries / (recall * (1 - recall)), 1, largest)
    informative = min((hits_C > 0).sum(), (hits_C < size_C).sum())
    prior = PRIOR_CLUSTERS / (PRIOR_CLUSTERS + informative)
    return float(prior * largest + (1 - prior) * estimate)


# --- in text


def percent(fraction: float, like: float | None = None) -> str:
    """`12.3`, or `0.34` below one percent; `like` gives the number whose decimals to follow."""
    follow = fraction if like is None else like
    return f"{100 * fraction:.{2 if 0 < follow < 0.01 else 1}f}"


def recall_text(recall: dict) -> str:
    """`12.4 % (8.9–17.1)`: an R@K with its 95 % interval."""
    value = recall["value"]
    low, high = (percent(recall[bound], like=value) for bound in ("low", "high"))
    return f"{percent(value)}\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}({low}–{high})"


def recall_cells(part: dict) -> dict[str, str]:
    """The cells of one direction's recalls: value, interval, hits and n at K = 1, 5 and 10.

    Where K items are the whole gallery, every model reaches 100 %, and the cell says so.
    """
    return {
        f"R@{k}": "100 % by chance"
        if part.get("gallery", k + 1) <= k
        else f"{recall_text(part[f'r{k}'])}, {part[f'r{k}']['hits']:,}/{part['n']:,}"
        for k in (1, 5, 10)
    }


def scope(dataset: str, split: str, summary: dict) -> str:
    """`shapes · test split · protocol standard · 250 image and 1,250 caption queries`.

    No split is named where the data's own words say all that is known.
    """
    folds = f" · mean over {summary['folds']} folds" if summary.get("folds") else ""
    dataset += f" · {SPLIT_NAMES.get(split, split)} split" if split else ""
    return (
        f"{dataset} · protocol {summary['protocol']}"
        f" · {summary['i2t']['n']:,} image and {summary['t2i']['n']:,} caption queries{folds}"
    )


def result_rows(run: str, summary: dict) -> list[dict]:
    """The rows of a table for one run: both directions of a summary."""
    rows = []
    for direction in DIRECTIONS:
        part = summary[direction]
        rows.append(
            {"run": run, "direction": DIRECTION_NAMES[direction]}
            | recall_cells(part)
            | {"chance R@1": f"{percent(part['r1']['chance'])} %"}
            | {"median rank": f"{part['median_rank']:g} of {part['gallery']:,}"}
            | {"tied": f"{part['tied']:,}", "rsum": percent(summary["rsum"])}
        )
    return rows
