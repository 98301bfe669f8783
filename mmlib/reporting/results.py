"""Results beside each other: of several runs, against a parent, and against published figures."""

import html
from dataclasses import dataclass
from textwrap import shorten

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib.metrics import RetrievalRanks, compare_runs, verdict_from_counts
from mmlib.metrics.compare import measured_on
from mmlib.reporting import published
from mmlib.reporting.published import GROUPS, PUBLISHED, TRAPS, check_publishable, group_of, why_not_published
from mmlib.reporting.scope import RECALLS, check_one_scope, p_text, result_scope, summary_of
from mmlib.reporting.style import (
    DIRECTIONS,
    INK,
    SHADE,
    SOFT,
    dot_handles,
    draw_dot,
    new_figure,
    show,
    styled,
)
from mmlib.reporting.tables import Table, published_table, reference_table
from mmlib.training.runs import read_result, run_folder

TITLE_CHARACTERS = 100  # of a group of systems, that fit into a figure
_OFFSET = {"i2t": -0.17, "t2i": 0.17}  # of the two directions around a row's middle, in rows


@styled
def results_figure(results: list[dict], protocol: str = "standard") -> Figure:
    """Test R@1, R@5 and R@10 of one or more runs with 95 % intervals and chance.

    Args:
        results: `results.json` of each run, all measured on the same data.
        protocol: `standard` or `paired`.

    Raises:
        ValueError: no results, a run without that protocol, or runs measured on different data.
    """
    check_one_scope(results, protocol)
    summaries = [summary_of(result, protocol) for result in results]
    runs = [result["run"] for result in results]
    figure = new_figure(
        "Recall on the test split" if results[0]["split"] == "test" else "Recall",
        f"{result_scope(results[0], protocol)} · best checkpoint of each run, 95 % intervals",
        f"Dot plots of recall at 1, 5, 10 for {', '.join(runs)}, both directions, each"
        " with its interval, and the chance level.",
        height=0.75 + 0.62 * len(results),
        legend=[*dot_handles(), Line2D([], [], color=SOFT, linestyle=":", label="chance")],
    )
    panels = figure.subplots(1, len(RECALLS), sharey=True, squeeze=False)[0]
    for axes, k in zip(panels, RECALLS, strict=True):
        for direction in DIRECTIONS:
            for row, summary in enumerate(summaries):
                recall = summary[direction][k]
                _draw(axes, recall, row + _OFFSET[direction], direction, named=True)
            axes.axvline(100 * summaries[0][direction][k]["chance"], color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xlabel(f"R@{k[1:]} (%)")
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
        axes.set_ylim(len(results) - 0.4, -0.62)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(range(len(runs)), runs, color=INK)
    return figure


@styled
def published_figure(results: list[dict]) -> Figure:
    """Test R@1 of our runs beside published Flickr8k systems, grouped by what they were pretrained on.

    Args:
        results: `results.json` of each run, on Flickr8k's 1,000 test images, protocol `standard`.

    Raises:
        ValueError: no results, or one that may not stand beside them (`published.why_not_published`).
    """
    check_publishable(results)
    rows: list[str | tuple[str, dict | None, object]] = []  # a group's title, or a system of it
    groups = [*GROUPS, *sorted({group_of(r) for r in results} - set(GROUPS))]
    for group in groups:
        systems = [(p.system, None, p) for p in PUBLISHED if p.group == group and p.i2t[0] is not None]
        ours = [(r["run"], summary_of(r, "standard"), None) for r in results if group_of(r) == group]
        if systems or ours:
            title = f"pretrained on {group}" if group in GROUPS else f"ours, pretrained: {group}"
            rows.append(shorten(title, TITLE_CHARACTERS, placeholder=" …"))
            rows += [*sorted(systems, key=lambda s: s[2].i2t[0]), *ours]
    figure = new_figure(
        "Beside published systems",
        f"{result_scope(results[0])} · R@1, ours with 95 % intervals; published rows give none",
        "Dot plot of recall at 1 on the Flickr8k test split for published systems and the runs"
        f" {', '.join(r['run'] for r in results)}, grouped by what each was pretrained on.",
        height=0.6 + 0.24 * len(rows),
        legend=dot_handles(),
    )
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.axhspan(y - 0.5, y + 0.5, color=SHADE, linewidth=0, zorder=0)
            inside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": SOFT}
            axes.text(0.01, y, row, style="italic", **inside)
            continue
        _, ours, published = row
        for direction, look in DIRECTIONS.items():
            if published is None:
                _draw(axes, ours[direction]["r1"], y + _OFFSET[direction] / 2, direction)
            else:
                value = getattr(published, direction)[0]
                height = y + _OFFSET[direction] / 2
                axes.plot(value, height, look["marker"], color=look["color"], markersize=5, mfc="white")
    names = ["" if isinstance(row, str) else row[0] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        ours = not isinstance(row, str) and row[1] is not None
        label.set(color=INK, fontweight="bold" if ours else "normal")
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("R@1 (%)")
    return figure


def _draw(axes: Axes, recall: dict, y: float, direction: str, named: bool = False) -> None:
    draw_dot(axes, recall["low"], recall["value"], recall["high"], y, direction, named)


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


def published_section(results: list[dict]) -> None:
    """Displays the published Flickr8k figures, with ours among them if data, split and protocol agree.

    Otherwise the published figures stand alone, under a sentence saying why ours do not.

    Args:
        results: `results.json` of each run, oldest phase first.
    """
    reasons = [reason for result in results if (reason := why_not_published(result))]
    if reasons:
        display(Markdown(f"Our results do not stand in this table: {reasons[0]}"))
        display(published_table())
    else:
        show(published_figure(results), "published")
        display(published_table(results))
        display(Markdown("The reference experiment, under its own protocol and the standard one:"))
        display(reference_table(results))
    display(Markdown("Traps of these figures:\n\n" + "\n".join(f"- {trap}" for trap in TRAPS)))
