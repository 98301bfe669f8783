"""Claims of the form "this arm beats that one", judged on the ranks of both under the same seeds."""

from mmlib.metrics import RetrievalRanks
from mmlib.metrics.compare import ALPHA, compare_seeds, holm

VERDICTS = ("supported", "contradicted", "no evidence", "not judged")
DECIDES = "mean_r1"  # the one figure that decides, named before anything is measured


def judge_claims(
    claims: list[dict[str, str]], ranks: dict[str, dict[int, RetrievalRanks]], resamples: int = 10_000
) -> list[dict]:
    """A verdict for each claim, from R@1 averaged over both directions.

    A claim is supported only where two things agree: the test over queries, its p corrected over all
    claims (Holm 1979), is below 0.05; and the interval of the difference, which covers seeds too where
    there are several, lies above zero.  Below zero it is contradicted.  Anything else is no evidence,
    for or against.

    Args:
        claims: each with `claim`, `arm` and `over`.
        ranks: by arm and seed, of the runs that are complete.
        resamples: of bootstrap and permutation test.

    Returns:
        Each claim with `verdict`, one of `VERDICTS`, `seeds` (those that both arms have), and, where it
        was judged, `interval`, `metrics` (of `compare_seeds`), `p_holm` and `judged`, the number of
        claims that p was corrected over.
    """
    judged = []
    for claim in claims:
        arm, over = ranks[claim["arm"]], ranks[claim["over"]]
        seeds = [seed for seed in over if seed in arm]
        found = {}
        if seeds:
            found = compare_seeds(
                [over[seed] for seed in seeds], [arm[seed] for seed in seeds], resamples=resamples
            )
        judged.append({**claim, **found, "seeds": seeds, "verdict": "not judged"})
    compared = [claim for claim in judged if claim["seeds"]]
    for claim, p in zip(compared, holm([claim["metrics"][DECIDES]["p"] for claim in compared])):
        difference = claim["metrics"][DECIDES]
        claim |= {"p_holm": float(p), "judged": len(compared)}
        claim["verdict"] = _verdict(difference["low"], difference["high"], float(p))
    return judged


def _verdict(low: float, high: float, p: float) -> str:
    if p >= ALPHA or low <= 0 <= high:
        return "no evidence"
    return "supported" if low > 0 else "contradicted"
