"""Training over epochs: loss, validation recall, learning rate; every phase and its border."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmlib.files import printable
from mmlib.metrics.summary import scope
from mmlib.reporting.style import DIRECTIONS, INK, SHADE, SOFT, guide, legend, new_figure, styled
from mmlib.training.card import best_row, phases

_MANY = 40  # epochs from which single points are no longer marked
_STAR = {"marker": "*", "color": "#ffd23f", "markeredgecolor": INK, "linestyle": "none"}

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#6b6b6b")
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")


@styled
def loss_curves(history: list[dict], dataset: str, batch_size: int | None = None) -> Figure:
    """Training loss by epoch.

    Args:
        history: rows of `history.jsonl`.
        dataset: name of the data set, for the title.
        batch_size: pairs a step; given, the loss of a guess, ln(batch size), is drawn for
            orientation (InfoNCE over a batch, van den Oord et al. 2018, §2.3).

    Raises:
        ValueError: the history is empty.
    """
    axes = _curve(
        history, [row["train_loss"] for row in history], "Training loss by epoch",
        f"{dataset} · training split · mean over the batches of an epoch",
        f"the training loss by epoch on {dataset}", "loss (nats)", height=1.4,
    )  # fmt: skip
    if batch_size:
        guide(axes, math.log(batch_size), f"guessing, ln {batch_size}", below=True)
    axes.set_ylim(bottom=0)
    return axes.figure


@styled
def lr_curve(history: list[dict]) -> Figure:
    """Learning rate at the first step of each epoch.

    Raises:
        ValueError: the history is empty.
    """
    rates, where = [row["lr"] for row in history], "at the first step of each epoch"
    drawn = f"the learning rate {where}"
    axes = _curve(history, rates, "Learning rate by epoch", where, drawn, "learning rate", height=1.6)
    axes.set_ylim(0, 1.08 * max(rates))
    return axes.figure


@styled
def recall_curves(history: list[dict], dataset: str, best_by: str = "rsum") -> Figure:
    """Validation R@1, R@5 and R@10 by epoch, both directions, with 95 % intervals and chance.

    Args:
        history: rows of `history.jsonl`.
        dataset: name of the data set, for the title.
        best_by: validation metric whose best epoch is marked in each phase, `rsum` or `mean_r1`, or `last`.

    Raises:
        ValueError: the history is empty or has no metric `best_by`.
    """
    best = [best_row(rows, best_by) for rows in phases(history)]
    chosen = "epoch that is kept: the last" if best_by == "last" else f"best epoch of the phase, by {best_by}"
    runs = _phase_names(history)
    figure = new_figure(
        "Validation recall by epoch",
        f"{scope(dataset, 'val', history[-1]['val'])} · {runs}",
        f"Line charts of validation recall at 1, 5, 10 by epoch on {dataset}, image to text solid and text to"
        f" image dashed, with interval bands, the chance level, and the best epoch of each phase; {runs}.",
        height=1.95,
        legend=[
            *legend(markersize=3.2, linewidth=1.9, **_marks(history)),
            Patch(color=SOFT, alpha=0.2, linewidth=0, label="95 % interval"),
            Line2D([], [], **_STAR, markersize=10, label=chosen),
        ],
    )
    epoch = [row["epoch"] for row in history]
    for axes, k in zip(figure.subplots(1, 3, sharex=True), ("r1", "r5", "r10")):
        for direction, look in DIRECTIONS.items():
            recall = [row["val"][direction][k] for row in history]
            low, high = ([100 * r[bound] for r in recall] for bound in ("low", "high"))
            axes.fill_between(epoch, low, high, color=look["color"], alpha=0.14, linewidth=0)
            axes.plot(epoch, [100 * r["value"] for r in recall], **look | _marks(history), markersize=3.2)
            guide(axes, 100 * recall[-1]["chance"])
            for row in best:
                value = 100 * row["val"][direction][k]["value"]
                axes.plot(row["epoch"], value, **_STAR, markersize=11, markeredgewidth=0.8, zorder=5)
        axes.set_ylabel(f"R@{k[1:]} (%)")
        axes.set_ylim(bottom=0)
        _epoch_axis(axes, history, short=True)
    return figure


def _marks(history: list[dict]) -> dict:
    return {"marker": None} if len(history) >= _MANY else {}


def _curve(
    history: list[dict], values: list[float], title: str, where: str, drawn: str, name: str, height: float
) -> Axes:
    """The axes of a figure of their own, with one value an epoch."""
    runs = _phase_names(history)
    alt = f"Line chart of {drawn}; {runs}."
    axes = new_figure(title, f"{where} · {runs}", alt, height=height).add_subplot()
    look = {"color": INK, "marker": "o", "markersize": 3.2} | _marks(history)
    axes.plot([row["epoch"] for row in history], values, **look)
    axes.set_ylabel(name)
    _epoch_axis(axes, history)
    return axes


def _epoch_axis(axes: Axes, history: list[dict], short: bool = False) -> None:
    """Names the epoch axis, shades every second phase and draws the borders between phases."""
    parts = phases(history)
    for index, rows in enumerate(parts):
        start, end = rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5
        if index % 2:
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
        if index:
            axes.axvline(start, color=SOFT, linewidth=1)
        if len(parts) > 1:
            name = f"phase {rows[0]['phase']}" + ("" if short else f" · {rows[0]['run']}")
            axes.annotate(
                name, ((start + end) / 2, 1.01), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", fontsize=8, color=SOFT,
            )  # fmt: skip
    axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if short else 12, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _phase_names(history: list[dict]) -> str:
    return ", ".join(f"phase {rows[0]['phase']}: {rows[0]['run']}" for rows in phases(history))


@styled
def compared_curves(histories: dict[str, list[dict]], data: str, what: str) -> Figure:
    """Training loss or validation mean R@1 of several runs by epoch.

    Args:
        histories: rows of `history.jsonl` by run, of one data set.
        data: its name.
        what: `loss` or `recall`.
    """
    runs = ", ".join(histories)
    if what == "loss":
        title, where, label = "Training loss by epoch", f"{data} · training split", "loss (nats)"
    else:
        last = next(iter(histories.values()))[-1]
        title, where = "Validation recall by epoch", scope(data, "val", last["val"])
        label = "mean R@1 (%)"
    figure = new_figure(title, where, f"Line chart, {title.lower()}, of {runs}.", height=2.7)
    axes = figure.subplots()
    for number, (run, rows) in enumerate(histories.items()):
        values = [row["train_loss"] if what == "loss" else 100 * row["val"]["mean_r1"] for row in rows]
        axes.plot(
            [row["epoch"] for row in rows], values, label=printable(run),
            color=_COLOURS[number % len(_COLOURS)], linestyle=_STYLES[number % len(_STYLES)],
            marker="o" if len(rows) < 3 else None,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), labelcolor=SOFT)
    return figure
