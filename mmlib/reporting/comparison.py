"""Test results side by side: between runs, and beside published systems."""

from textwrap import shorten

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib.reporting.dots import dot_handles, draw_dot
from mmlib.reporting.published import GROUPS, PUBLISHED, check_publishable, group_of
from mmlib.reporting.scope import check_one_scope, result_scope, summary_of
from mmlib.reporting.style import DIRECTIONS, INK, SHADE, SOFT, new_figure, styled

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
    ks = [k for k in summaries[0]["i2t"] if k[0] == "r" and k[1:].isdigit()]
    runs = [result["run"] for result in results]
    figure = new_figure(
        "Recall on the test split" if results[0]["split"] == "test" else "Recall",
        f"{result_scope(results[0], protocol)} · best checkpoint of each run, 95 % intervals",
        f"Dot plots of recall at {', '.join(k[1:] for k in ks)} for {', '.join(runs)}, both directions, each"
        " with its interval, and the chance level.",
        height=0.75 + 0.62 * len(results),
        legend=[*dot_handles(), Line2D([], [], color=SOFT, linestyle=":", label="chance")],
    )
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    for axes, k in zip(panels, ks, strict=True):
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
