"""The look of all figures, their dots and legends, and how a notebook shows them."""

import base64
import contextlib
import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from IPython.display import display
from PIL import Image

from mmlib.files import checked_name, printable
from mmlib.metrics.summary import DIRECTION_NAMES, percent
from mmlib.reporting.tables import MARK

# matplotlib reads a matplotlibrc of the current folder before any other, and modules can be imported from
# there: it is imported from a folder of ours without Python files, before all that imports it.
with contextlib.chdir(Path(__file__).parent / "templates"):
    import matplotlib.pyplot as plt
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.colors import to_hex, to_rgb, to_rgba_array
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

WIDTH = 8.0  # inches; the width of a report's text column
DPI = 160  # twice a screen's, so that figures stay sharp on dense displays

INK = "#1f2933"
SOFT = "#5b6770"
GRID = "#e4e7eb"
SHADE = "#f3f5f7"
HIT = "#00845a"
MISS = "#b8c0c8"
BAR = "#6b8fb3"
EDGE = "#9aa5b1"

# Okabe and Ito's palette, told apart with every common colour vision; line style and marker say
# the same again, so that colour is never the only carrier.
DIRECTIONS = {
    "i2t": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "t2i": {"color": "#D55E00", "linestyle": (0, (4, 2)), "marker": "s"},
}

# What these become on a dark page; every other colour, a photo's too, stays as it is.
_DARK = {
    "#ffffff": "#14181d", "#000000": "#e4e8ec", INK: "#e4e8ec", SOFT: "#9aa7b3", GRID: "#2a323a",
    SHADE: "#1c2229", EDGE: "#66727d", HIT: "#4fc497", MISS: "#56616b", "#0072b2": "#5cb3f0",
    "#d55e00": "#f08a4b",
}  # fmt: skip

# A person's own settings change no figure: all that is not set here is as matplotlib brings it.
_RC = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")} | {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so figures agree on every machine
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a person's name for something is no formula
    "axes.labelcolor": INK,
    "axes.edgecolor": EDGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.6,
    "figure.dpi": DPI,
}


def styled(draw):
    """Decorates a drawing function: the style holds inside it and nowhere else."""
    return rc_context(_RC)(draw)


def new_figure(title: str, subtitle: str, alt: str, height: float, legend=None) -> Figure:
    """An empty figure of the fixed width with its heading; axes are laid out below it.

    Args:
        title: what is shown, one line.
        subtitle: the scope (data set, split, protocol, n); long ones are wrapped.
        alt: alt text, free of measured numbers.
        height: inches below the heading.
        legend: handles with labels for one row of legend under the heading, or None.
    """
    lines = textwrap.wrap(subtitle, 122, break_on_hyphens=False)
    heading = 0.36 + 0.17 * len(lines) + (0.27 if legend else 0) + 0.06
    total = height + heading
    figure = Figure(figsize=(WIDTH, total), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.06)
    left = 0.1 / WIDTH
    figure.text(left, 1 - 0.08 / total, title, fontsize=11.5, fontweight="bold", va="top")
    figure.text(
        left, 1 - 0.32 / total, "\n".join(lines), fontsize=8.5, color=SOFT, va="top", linespacing=1.35
    )
    if legend:
        figure.legend(
            handles=legend,
            ncols=len(legend),
            loc="upper left",
            bbox_to_anchor=(0.0, 1 - (heading - 0.33) / total),
        )
    figure.set_label(alt)
    return figure


def draw_dots(
    axes: Axes,
    names: Sequence[str],
    found: dict[str, list[dict | None]],
    offset: float = 0.17,
    named: bool = True,
    size: float = 5.5,
) -> None:
    """A row for each name, the first on top: a dot a direction with its interval, in percent.

    Args:
        axes: drawn into.
        names: of the rows, R of them.
        found: by direction, for each row `value`, `low` and `high` as fractions; None leaves it out.
        offset: of the two directions around a row's middle, in rows.
        named: write the value above each dot.
        size: of the dots, in points.
    """
    for direction, recalls in found.items():
        look, shift = DIRECTIONS[direction], -offset if direction == "i2t" else offset
        shown = [(row + shift, recall) for row, recall in enumerate(recalls) if recall]
        _, _, (bars,) = axes.errorbar(
            [100 * recall["value"] for _, recall in shown], [y for y, _ in shown],
            xerr=error_bars([recall for _, recall in shown]), fmt=look["marker"], color=look["color"],
            markersize=size, elinewidth=0.29 * size, capsize=0.45 * size,
        )  # fmt: skip
        bars.set_linestyle(look["linestyle"])
        for y, recall in shown if named else ():
            axes.annotate(
                percent(recall["value"]), (100 * recall["value"], y), xytext=(0, 4.5), ha="center",
                textcoords="offset points", fontsize=7.5, color=look["color"],
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.4, -0.62)
    axes.grid(axis="y", visible=False)


def error_bars(recalls: list[dict]) -> np.ndarray:
    """Lengths below and above the values (2, R), in percent, of R recalls with `value`, `low` and `high`."""
    value, low, high = (np.array([recall[name] for recall in recalls]) for name in ("value", "low", "high"))
    return 100 * np.maximum([value - low, high - value], 0)


def guide(
    axes: Axes, level: float, name: str = "", vertical: bool = False, color: str = SOFT, below: bool = False
) -> None:
    """A dotted line to compare with (chance, a guess, all queries), its name at the right end."""
    (axes.axvline if vertical else axes.axhline)(level, color=color, linestyle=":", linewidth=1.2)
    if name:
        axes.annotate(
            name, (1, level), xycoords=("axes fraction", "data"), xytext=(0, -2 if below else 2), ha="right",
            va="top" if below else "bottom", textcoords="offset points", fontsize=7.5, color=color,
        )  # fmt: skip


def legend(line: str = "chance", **look) -> list[Line2D]:
    """The two directions, and what a dotted line stands for, for a legend."""
    look = {"markersize": 5.5, "linewidth": 1.6} | look
    return [
        *(Line2D([], [], **DIRECTIONS[d] | look, label=DIRECTION_NAMES[d]) for d in DIRECTIONS),
        *([Line2D([], [], color=SOFT, linestyle=":", linewidth=1.2, label=line)] if line else []),
    ]


def show(figure: Figure, name: str, private: bool = False) -> None:
    """Displays a figure as a PNG with alt text and closes it; beside it lies one for dark pages.

    The text form names the figure and describes it without measured numbers, so that
    `pytest --nbval`, which never compares pixels, still sees that the figure is there.

    Args:
        figure: with its alt text as the label, without measured numbers.
        name: of the PNG that a report writes beside its page.
        private: the figure shows data whose licence does not allow passing them on; reports leave
            it out of the page that can be shared.

    Raises:
        ValueError: the figure has no alt text, or the name cannot be part of a file name.
    """
    checked_name(name, "figure name")
    alt = str(figure.get_label() or "").strip()
    if not alt:
        raise ValueError(
            "this figure has no alt text: expected a description for readers who cannot see it; set it"
            " with figure.set_label('…'), without measured numbers"
        )
    png, dark = in_both_schemes(figure)
    mark = {"name": name, "private": bool(private), "dark": base64.b64encode(dark).decode()}
    display(
        {"image/png": png, "text/plain": f"[figure: {name} — {alt}]"},
        raw=True,
        metadata={"image/png": {"alt": alt}, MARK: mark},
    )


def in_both_schemes(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as a PNG for light pages and as one for dark pages; it is closed."""
    light = figure_png(figure)
    _darken(figure)
    dark = figure_png(figure)
    plt.close(figure)
    return light, dark


def _darken(figure: Figure) -> None:
    """Gives all that was drawn the colours of a dark page."""
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = [part for axis in axes for tick in axis.majorTicks for part in tick.findobj()]  # kept ones too
    for artist in (*figure.findobj(), *ticks):
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            if hasattr(artist, f"get_{part}") and hasattr(artist, f"set_{part}"):
                old = to_rgba_array(getattr(artist, f"get_{part}")())
                new = [(*to_rgb(_DARK.get(to_hex(rgba), to_hex(rgba))), rgba[3]) for rgba in old]
                if new:
                    getattr(artist, f"set_{part}")(new if isinstance(artist, Collection) else new[0])


@styled
def figure_png(figure: Figure) -> bytes:
    """The figure with 256 colours: a third of the bytes, and no difference that an eye finds.

    Foreign text in it is made printable; a letter that the font lacks, as an emoji, is a box.
    """
    for text in figure.findobj(Text):
        if (shown := printable(text.get_text())) != text.get_text():
            text.set_text(shown)
    # The figure's own resolution: matplotlib's default is the one that it was made with.
    drawn, small = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(drawn, format="png", dpi=figure.dpi)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
