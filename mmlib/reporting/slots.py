"""How the memory is read: which slots get the attention, and by which words."""

import json
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmlib.reporting.scope import result_scope
from mmlib.reporting.style import BAR, INK, SOFT, new_figure, styled

BLOCKS = {
    "image": "image memory, read by images",
    "text": "text memory, read by captions",
    "central_image": "central memory, read by images",
    "central_text": "central memory, read by captions",
}


@styled
def slots_figure(slots: Mapping[str, np.ndarray], result: dict) -> Figure:
    """Mean attention of each memory slot, and the words whose captions read the top slots most.

    Args:
        slots: arrays of `slots.npz`; for each block `<block>_weight` (S,), mean attention per slot
            that sums to 1, and `<block>_top`, JSON: `[{"slot", "share", "read_by": [(word, lift)]}]`.
            Empty for a run without a memory; the figure then says so.
        result: the run's `results.json`.

    The number of slots in use is exp(entropy of the mean attention): S when all are read alike.
    """
    if not slots:
        return new_figure(
            "No memory, so no slots",
            f"{result['run']} · memory_slots 0: the two encoders alone",
            "A title that says that this run has no memory.",
            height=0.8,
        )
    figure = new_figure(
        "Which memory slots are read, and by what",
        f"{result['run']} · {result['data']['name']} · {result['split']} split"
        f" · {result_scope(result).rsplit(' · ', 1)[-1]}"
        " · a word's factor: attention of the items with that word over that of all",
        "Four bar charts of mean attention per memory slot, sorted, each beside the words that go with its"
        " most read slots.",
        height=2.0 * len(BLOCKS),
    )
    grid = figure.add_gridspec(len(BLOCKS), 2, width_ratios=[1, 1.15])
    for row, (block, title) in enumerate(BLOCKS.items()):
        weight_S = np.sort(np.asarray(slots[f"{block}_weight"], dtype=np.float64))[::-1]
        used = weight_S[weight_S > 0]
        in_use = float(np.exp(-(used * np.log(used)).sum()))
        axes = figure.add_subplot(grid[row, 0])
        axes.bar(np.arange(1, len(weight_S) + 1), 100 * weight_S, width=0.85, color=BAR)
        axes.axhline(100 / len(weight_S), color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_title(title)
        axes.set_xlabel(f"slots, most read first ({in_use:.0f} of {len(weight_S)} in use)")
        axes.set_ylabel("attention (%)")
        axes.set_xlim(0.3, len(weight_S) + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
        axes.annotate(
            "even reading", (1, 100 / len(weight_S)), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=7.5, color=SOFT,
        )  # fmt: skip
        _words(figure.add_subplot(grid[row, 1]), json.loads(str(slots[f"{block}_top"])))
    return figure


def _words(axes, top: list[dict]) -> None:
    axes.set_axis_off()
    axes.set_title("slot     read      where captions say", color=SOFT, fontweight="normal", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for place, entry in enumerate(top[:6]):
        y = 0.92 - place * 0.165
        words = ",  ".join(f"{word} ×{lift:.2f}" for word, lift in entry["read_by"][:3])
        axes.text(0.0, y, f"{entry['slot']}", fontsize=8.5, va="center", fontweight="bold", color=INK)
        axes.text(0.105, y, f"{100 * entry['share']:.1f} %", fontsize=8.5, va="center", color=SOFT)
        axes.text(0.255, y, words, fontsize=8.5, va="center", parse_math=False)
