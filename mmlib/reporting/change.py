"""The change from one run to another on the same queries: a verdict in words, then the numbers."""

import html
from dataclasses import dataclass

import pandas as pd

from mmlib.metrics import RetrievalRanks, compare_runs, verdict_from_counts
from mmlib.metrics.compare import measured_on
from mmlib.reporting import published
from mmlib.reporting.scope import p_text, result_scope
from mmlib.reporting.tables import Table
from mmlib.training.runs import read_result, run_folder

METRICS = {
    "mean_r1": "mean R@1",
    "i2t_r1": "R@1 image → text",
    "t2i_r1": "R@1 text → image",
    "i2t_r5": "R@5 image → text",
    "t2i_r5": "R@5 text → image",
    "i2t_r10": "R@10 image → text",
    "t2i_r10": "R@10 text → image",
    "rsum": "rsum",
}


@dataclass(frozen=True)
class Change:
    """What one run changed over another: `verdict` in words, and the table behind it (None if refused)."""

    verdict: str
    table: Table | None

    def __repr__(self) -> str:
        return self.verdict + (f"\n{self.table!r}" if self.table else "")

    def _repr_html_(self) -> str:
        table = self.table._repr_html_() if self.table else ""
        return f"<p><strong>{html.escape(self.verdict)}</strong></p>{table}"


def change_between(before: str, after: str) -> Change:
    """Compares the evaluated ranks of two runs, standard protocol, query by query.

    Runs on different data, splits or queries are not compared: the verdict says why.  Nor is a run with
    itself.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: its files are damaged.
    """
    if before == after:
        return Change(f"{after} stands alone: there is no other phase to compare it with", None)
    results = [read_result(run) for run in (before, after)]
    ranks = [RetrievalRanks.load(run_folder(run) / "ranks.npz") for run in (before, after)]
    a, b = (measured_on(result) for result in results)
    comparison = compare_runs(*ranks, provenance_a=a, provenance_b=b)
    verdict = f"{after} against {before}: {comparison['verdict']}"
    if not comparison["comparable"]:
        return Change(verdict, None)
    rows = [_row(METRICS[name], comparison["metrics"][name]) for name in METRICS]
    caption = (
        f"{result_scope(results[0])}. Interval: bootstrap over images, 10,000 resamples; p: permutation by"
        " image; Holm: corrected over the six R@K."
    )
    return Change(verdict, Table(pd.DataFrame(rows), caption))


def reference_claim() -> Change:
    """The reference experiment's announced improvement between its phases, judged from its counts."""
    phases = published.REFERENCE_PHASES
    # Mean R@1 of both directions, in %, over 5,000 queries each.
    n = published.REFERENCE_QUERIES
    before, after = ((phase.validation_i2t[0] + phase.validation_t2i[0]) / 2 / 100 * n for phase in phases)
    verdict = verdict_from_counts(round(before), round(after), n)["verdict"]
    return Change(f"The reference experiment, 30 epochs against 50 more: {verdict}", None)


def _row(name: str, metric: dict) -> dict:
    def points(value: float) -> str:
        return f"{100 * value:+.2f}"

    return {
        "metric": name,
        "before": f"{100 * metric['a']:.2f} %",
        "after": f"{100 * metric['b']:.2f} %",
        "change, points (95 %)": " ".join(
            [points(metric["difference"]), f"({points(metric['low'])} to {points(metric['high'])})"]
        ),
        "p": p_text(metric["p"]),
        "p, Holm": p_text(metric.get("p_holm")),
    }
