"""The arms of an ablation below each other, with their intervals, their seeds and the level of chance."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib.reporting.ablation import ablation_scope
from mmlib.reporting.dots import dot_handles, draw_dot
from mmlib.reporting.style import DIRECTIONS, INK, SHADE, SOFT, new_figure, styled

_OFFSET = {"i2t": -0.22, "t2i": 0.22}  # of the two directions around a row's middle, in rows
_SEED = {
    "linestyle": "none",
    "markersize": 3,
    "alpha": 0.6,
    "markeredgewidth": 0.8,
    "markerfacecolor": "none",
}


@styled
def ablation_figure(record: dict) -> Figure:
    """R@1 and R@10 of every arm, both directions, with 95 % intervals; seeds as small marks.

    Args:
        record: of `mmlib.training.ablation`.
    """
    arms = record["arms"]
    kinds = [kind for kind in dict.fromkeys(arm["interval"] for arm in arms) if kind]
    figure = new_figure(
        "What the arms bring",
        f"{ablation_scope(record)} · 95 % intervals over {' or '.join(kinds) or 'nothing'}",
        f"Forest plot of recall at 1 and at 10 for the arms {', '.join(arm['name'] for arm in arms)}, both"
        " directions, each with its interval and its single seeds, and the chance level.",
        height=0.75 + 0.62 * len(arms),
        legend=_handles(several=any(len(arm["runs"]) > 1 for arm in arms)),
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, k in zip(panels, (1, 10)):
        axes.axhspan(-0.5, 0.5, color=SHADE, linewidth=0, zorder=0)  # the base line
        for direction in DIRECTIONS:
            _column(axes, arms, f"{direction}_r{k}", direction)
            if chance := record["chance"].get(f"{direction}_r{k}"):
                axes.axvline(100 * chance, color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xlabel(f"R@{k} (%)")
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms], color=INK)
    return figure


@styled
def ablation_thumbnail(record: dict) -> Figure:
    """R@1 of every arm, small, for the index over all experiments."""
    arms = record["arms"]
    figure = Figure(figsize=(2.9, max(1.45, 0.3 * len(arms))), layout="constrained")
    figure.set_label(
        f"Small forest plot of recall at 1 for the arms {', '.join(arm['name'] for arm in arms)}, image to"
        " text as circles and text to image as squares."
    )
    axes = figure.add_subplot()
    for direction in DIRECTIONS:
        _column(axes, arms, f"{direction}_r1", direction, named=False)
    axes.set_xlim(left=0)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms], color=INK)
    axes.set_xlabel("R@1 (%)", fontsize=7.5)
    axes.tick_params(labelsize=7)
    return figure


def _column(axes: Axes, arms: list[dict], metric: str, direction: str, named: bool = True) -> None:
    look = DIRECTIONS[direction]
    for row, arm in enumerate(arms):
        y = row + _OFFSET[direction]
        if not arm["metrics"]:
            if named and direction == "i2t":
                axes.annotate(
                    "failed", (0, row), xytext=(4, 0), textcoords="offset points", va="center", color=SOFT
                )
            continue
        found = arm["metrics"][metric]
        draw_dot(axes, found["low"], found["mean"], found["high"], y, direction, named)
        if len(found["values"]) > 1:
            seeds = [100 * value for value in found["values"]]
            axes.plot(seeds, [y + 0.13] * len(seeds), marker=look["marker"], color=look["color"], **_SEED)


def _handles(several: bool) -> list[Line2D]:
    return [
        *dot_handles(),
        *([Line2D([], [], marker="o", color=SOFT, **_SEED, label="single seeds")] if several else []),
        Line2D([], [], color=SOFT, linestyle=":", label="chance"),
    ]
