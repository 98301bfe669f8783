"""Values with their intervals as dots with bars, a mark for each direction: what forest plots are of."""

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mmlib.reporting.scope import percent
from mmlib.reporting.style import DIRECTION_NAMES, DIRECTIONS


def draw_dot(
    axes: Axes, low: float, value: float, high: float, y: float, direction: str, named: bool = False
) -> None:
    """A value and its interval, both fractions, in percent along x.

    Args:
        axes: drawn into.
        low, value, high: the value and the ends of its interval.
        y: height.
        direction: `i2t` or `t2i`.
        named: write the value above the dot.
    """
    look = DIRECTIONS[direction]
    _, _, (bar,) = axes.errorbar(
        100 * value, y, xerr=[[100 * max(value - low, 0)], [100 * max(high - value, 0)]],
        fmt=look["marker"], color=look["color"], markersize=5.5, elinewidth=1.6, capsize=2.5,
    )  # fmt: skip
    bar.set_linestyle(look["linestyle"])
    if named:
        axes.annotate(
            percent(value), (100 * value, y), xytext=(0, 4.5), textcoords="offset points", ha="center",
            fontsize=7.5, color=look["color"],
        )  # fmt: skip


def dot_handles() -> list[Line2D]:
    """The two directions for a legend."""
    return [
        Line2D([], [], **look, markersize=5.5, linewidth=1.6, label=DIRECTION_NAMES[direction])
        for direction, look in DIRECTIONS.items()
    ]
