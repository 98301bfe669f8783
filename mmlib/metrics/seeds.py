"""One experiment under several seeds: what would another seed, and another test set, give?"""

import numpy as np

from mmlib.metrics.bootstrap import image_weights, interval_tails, metric_values
from mmlib.metrics.compare import why_not_comparable
from mmlib.metrics.ranks import RetrievalRanks


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
