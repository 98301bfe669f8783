"""One look for every figure: sizes, colours, and a heading that says what is shown.

Figures are built without pyplot, so that drawing one changes nothing outside it.  The alt text
travels as the figure's label (`alt_text` reads it) and holds no measured number: notebooks compare
it between runs.
"""

import textwrap

from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure

WIDTH = 8.0  # inches; the width of a report's text column
DPI = 160  # twice a screen's, so that figures stay sharp on dense displays

INK = "#1f2933"
SOFT = "#5b6770"
GRID = "#e4e7eb"
SHADE = "#f3f5f7"
HIT = "#00845a"
MISS = "#b8c0c8"
BAR = "#6b8fb3"

# Okabe and Ito's palette, told apart with every common colour vision; line style and marker say
# the same again, so that colour is never the only carrier.
DIRECTIONS = {
    "i2t": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    "t2i": {"color": "#D55E00", "linestyle": (0, (4, 2)), "marker": "s"},
}
DIRECTION_NAMES = {"i2t": "image → text", "t2i": "text → image"}

# A person's own settings change no figure: all that is not set here is as matplotlib brings it.
_RC = {name: value for name, value in rcParamsDefault.items() if not name.startswith("backend")} | {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so figures agree on every machine
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a person's name for something is no formula
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
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
    "figure.facecolor": "white",
    "savefig.dpi": DPI,
    "savefig.facecolor": "white",
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


def alt_text(figure: Figure) -> str:
    """The alt text that a figure was drawn with.

    Raises:
        ValueError: the figure has none.
    """
    text = str(figure.get_label() or "").strip()
    if not text:
        raise ValueError(
            "this figure has no alt text: expected a description for readers who cannot see it; set it"
            " with figure.set_label('…'), without measured numbers"
        )
    return text
