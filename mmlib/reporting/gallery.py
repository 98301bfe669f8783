"""What the model retrieves and reads: galleries of queries, samples, and memory slots."""

import json
import textwrap
from collections.abc import Mapping

import numpy as np
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator

from mmlib.data import Dataset
from mmlib.metrics.summary import DIRECTION_NAMES
from mmlib.reporting.results import result_scope
from mmlib.reporting.style import BAR, HIT, INK, MISS, SOFT, guide, new_figure, show, styled
from mmlib.reporting.tables import Table

PICTURE_DPI = 110  # pictures weigh much and gain little from a sharper page
SAMPLE_PIXELS = 160  # side at which a data set that draws its images draws a sample
EVEN = 0.99  # entropy over its maximum from which a block reads all slots alike
SLOTS_HEADING = (
    "### What the memory is read for\n\nAttention of images and captions on the slots of each memory, and the"
    " words whose items read a slot more than others do (1.0 is the average)."
)
BLOCKS = {
    "image": "image memory, read by images",
    "text": "text memory, read by captions",
    "central_image": "central memory, read by images",
    "central_text": "central memory, read by captions",
}


@styled
def gallery_figures(gallery: Mapping[str, np.ndarray], result: dict) -> dict[str, Figure]:
    """Two figures, `t2i` and `i2t`: each query with its five best results and the rank of the first hit.

    Args:
        gallery: arrays of `gallery.npz`.  `t2i_query` (Q,) captions, `t2i_thumbs` (Q, 5, H, W, 3)
            uint8, `t2i_hit` (Q, 5) bool, `t2i_rank` (Q,) 1-based; `i2t_query` (Q, H, W, 3) uint8,
            `i2t_captions` (Q, 5), `i2t_hit` (Q, 5) bool, `i2t_rank` (Q,).
        result: the run's `results.json`.
    """
    return {"t2i": _images_for_captions(gallery, result), "i2t": _captions_for_images(gallery, result)}


def _images_for_captions(gallery: Mapping[str, np.ndarray], result: dict) -> Figure:
    queries = gallery["t2i_query"]
    figure = _gallery_figure("t2i", "a caption", "its five best images", len(queries), result)
    grid = figure.add_gridspec(len(queries), 6, width_ratios=[2.0, 1, 1, 1, 1, 1])
    for row, caption in enumerate(queries):
        axes = _bare_axes(figure, grid[row, 0])
        text = textwrap.fill(textwrap.shorten(str(caption), 150, placeholder=" …"), 30)
        axes.text(0, 0.97, text, va="top", fontsize=8.5, linespacing=1.3)
        _rank_below(axes, gallery["t2i_rank"][row], loc="left")
        for place, (image, hit) in enumerate(zip(gallery["t2i_thumbs"][row], gallery["t2i_hit"][row]), 1):
            axes = _bare_axes(figure, grid[row, place], image)
            for spine in axes.spines.values():
                spine.set(visible=True, color=HIT if hit else MISS, linewidth=3.4 if hit else 1)
            look = {"color": HIT, "fontweight": "bold"} if hit else {"color": SOFT}
            axes.set_xlabel(f"{place}{' ✓ match' if hit else ''}", fontsize=8, labelpad=3, **look)
    return figure


def _captions_for_images(gallery: Mapping[str, np.ndarray], result: dict) -> Figure:
    queries = gallery["i2t_query"]
    figure = _gallery_figure("i2t", "an image", "its five best captions", len(queries), result)
    grid = figure.add_gridspec(len(queries), 2, width_ratios=[1, 5.4])
    for row, image in enumerate(queries):
        _rank_below(_bare_axes(figure, grid[row, 0], image), gallery["i2t_rank"][row])
        axes = _bare_axes(figure, grid[row, 1])
        for place, (caption, hit) in enumerate(zip(gallery["i2t_captions"][row], gallery["i2t_hit"][row])):
            text = textwrap.shorten(str(caption), 88, placeholder=" …")
            line = f"{place + 1}  {'✓' if hit else '·'}  {text}"
            look = {"color": HIT, "fontweight": "bold"} if hit else {}
            axes.text(0, 0.9 - 0.2 * place, line, va="center", fontsize=8.5, **look)
    return figure


def _gallery_figure(direction: str, query: str, answers: str, rows: int, result: dict) -> Figure:
    figure = new_figure(
        f"{DIRECTION_NAMES[direction].capitalize()}: {query} and {answers}",
        f"{result['run']} · {result_scope(result)} · {rows} of the queries; a tick and green mark a match",
        f"Gallery of queries: {query} on the left, {answers} by rank on the right, matches ticked.",
        height=0.85 * rows,
    )
    figure.set_dpi(PICTURE_DPI)
    return figure


def _rank_below(axes: Axes, rank: int, loc: str = "center") -> None:
    axes.set_xlabel(f"first match: rank {rank:,}", fontsize=7.5, color=SOFT, labelpad=3, loc=loc)


def _bare_axes(figure: Figure, place: SubplotSpec, image=None) -> Axes:
    """Axes without anything, or with a picture."""
    axes = figure.add_subplot(place)
    if image is not None:
        axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


@styled
def samples_figure(dataset: Dataset, count: int = 8) -> Figure:
    """Training images with the captions of each, evenly spread over the split."""
    split = dataset.splits["train"]
    count = min(count, len(split.images))
    chosen = np.linspace(0, len(split.images) - 1, count).astype(int)
    columns, rows = 2, -(-count // 2)
    figure = new_figure(
        "What the model learns from",
        f"{dataset.name} · training split · {count} of {len(split.images):,} images with their captions",
        "Sample of training images, each with its captions beside it.",
        height=1.75 * rows,
    )
    figure.set_dpi(PICTURE_DPI)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1, 1.5] * columns)
    for place, image in enumerate(chosen):
        row, column = divmod(place, columns)
        _bare_axes(figure, grid[row, 2 * column], dataset.source.load(split.images[image], SAMPLE_PIXELS))
        captions = [split.captions[m] for m in np.flatnonzero(split.image_of_caption_M == image)[:5]]
        short = [textwrap.shorten(caption, 80, placeholder=" …") for caption in captions]
        text = "\n".join(textwrap.fill(caption, 32, subsequent_indent="  ") for caption in short)
        axes = _bare_axes(figure, grid[row, 2 * column + 1])
        axes.text(0, 1, text, va="top", fontsize=7, linespacing=1.25)
    return figure


def slots_section(slots: Mapping[str, np.ndarray], result: dict) -> None:
    """Displays what a memory is read for: a figure of the blocks that are not read evenly, and a sentence.

    Nothing for a run without a memory.

    Args:
        slots: see `slots_figure`.
        result: the run's `results.json`.
    """
    if not slots:
        return
    blocks = [block for block in BLOCKS if f"{block}_weight" in slots]
    even = [BLOCKS[block] for block in blocks if _evenness(slots, block) >= EVEN]
    display(Markdown(SLOTS_HEADING))
    if len(even) < len(blocks):
        show(slots_figure(slots, result), "slots")
    if even:
        said = f"Read evenly, slot by slot, and so the same for everything: {'; '.join(even)}."
        display(Table(sentences=(said,)))


def _evenness(slots: Mapping[str, np.ndarray], block: str) -> float:
    """Mean entropy of a read over its maximum; for older runs that of the mean attention."""
    if f"{block}_sharpness" in slots:
        return float(slots[f"{block}_sharpness"][0])
    weight_S = np.asarray(slots[f"{block}_weight"], dtype=np.float64)
    used = weight_S[weight_S > 0]
    return float(-(used * np.log(used)).sum() / np.log(len(weight_S)))


@styled
def slots_figure(slots: Mapping[str, np.ndarray], result: dict) -> Figure:
    """Mean attention of each memory slot, and the words whose captions read the top slots most.

    Blocks that read all slots alike are left out.

    Args:
        slots: arrays of `slots.npz`, see `mmlib.analysis.slot_readers`, for some of the `BLOCKS`.
        result: the run's `results.json`.
    """
    blocks = [block for block in BLOCKS if f"{block}_weight" in slots]
    blocks = [block for block in blocks if _evenness(slots, block) < EVEN] or blocks
    figure = new_figure(
        "Which memory slots are read, and by what",
        f"{result['run']} · {result['data']['name']} · {result['split']} split"
        f" · {result_scope(result).rsplit(' · ', 1)[-1]}"
        " · a word's factor: attention of the items with that word over that of all",
        "Bar charts of mean attention per memory slot, sorted, each beside the words that go with its"
        " most read slots.",
        height=1.6 * len(blocks),
    )
    grid = figure.add_gridspec(len(blocks), 2, width_ratios=[1, 1.15])
    for row, block in enumerate(blocks):
        weight_S = np.sort(np.asarray(slots[f"{block}_weight"], dtype=np.float64))[::-1]
        said = f"{len(weight_S)} slots, most read first; entropy {_evenness(slots, block):.2f} of its maximum"
        if f"{block}_sharpness" in slots:
            said += f"; {slots[f'{block}_sharpness'][1]:.0f} are read"
        axes = figure.add_subplot(grid[row, 0])
        axes.bar(np.arange(1, len(weight_S) + 1), 100 * weight_S, width=0.85, color=BAR)
        guide(axes, 100 / len(weight_S), "even reading")
        axes.set_title(BLOCKS[block])
        axes.set_xlabel(said)
        axes.set_ylabel("attention (%)")
        axes.set_xlim(0.3, len(weight_S) + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x", visible=False)
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
        axes.text(0.255, y, words, fontsize=8.5, va="center")
