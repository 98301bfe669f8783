"""Training over epochs: loss, validation recall, learning rate; every phase and its border."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmlib.reporting.scope import RECALLS, best_row, phases, scope
from mmlib.reporting.style import DIRECTION_NAMES, DIRECTIONS, INK, SHADE, SOFT, new_figure, styled

_MANY = 40  # epochs from which single points are no longer marked


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
    runs = _phase_names(history)
    figure = new_figure(
        "Training loss by epoch",
        f"{dataset} · training split · mean over the batches of an epoch · {runs}",
        f"Line chart of the training loss by epoch on {dataset}; {runs}.",
        height=2.7,
    )
    axes = figure.add_subplot()
    _line(axes, history, [row["train_loss"] for row in history], color=INK, marker="o")
    axes.set_ylabel("contrastive loss (nats)")
    if batch_size:
        guess = math.log(batch_size)
        axes.axhline(guess, color=SOFT, linestyle=":", linewidth=1.2)
        axes.annotate(
            f"guessing, ln {batch_size}", (1, guess), xycoords=("axes fraction", "data"),
            xytext=(0, -2), textcoords="offset points", ha="right", va="top", fontsize=8, color=SOFT,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    _epoch_axis(axes, history)
    return figure


@styled
def recall_curves(history: list[dict], dataset: str, best_by: str = "rsum") -> Figure:
    """Validation R@1, R@5 and R@10 by epoch, both directions, with 95 % intervals and chance.

    Args:
        history: rows of `history.jsonl`.
        dataset: name of the data set, for the title.
        best_by: validation metric whose best epoch is marked in each phase, `rsum` or `mean_r1`.

    Raises:
        ValueError: the history is empty or has no metric `best_by`.
    """
    best = [best_row(rows, best_by) for rows in phases(history)]
    figure = new_figure(
        "Validation recall by epoch",
        scope(dataset, "val", history[-1]["val"]) + f" · {_phase_names(history)}",
        f"Line charts of validation recall at 1, 5, 10 by epoch on {dataset}, image to"
        f" text solid and text to image dashed, with interval bands, the chance level, and the best epoch"
        f" of each phase; {_phase_names(history)}.",
        height=2.75,
        legend=[*_direction_handles(history), *_mark_handles(best_by)],
    )
    panels = figure.subplots(1, len(RECALLS), sharex=True, squeeze=False)[0]
    epoch = [row["epoch"] for row in history]
    for axes, k in zip(panels, RECALLS, strict=True):
        for direction, look in DIRECTIONS.items():
            recall = [row["val"][direction][k] for row in history]
            low, high = ([100 * r[bound] for r in recall] for bound in ("low", "high"))
            axes.fill_between(epoch, low, high, color=look["color"], alpha=0.14, linewidth=0)
            _line(axes, history, [100 * r["value"] for r in recall], **look)
            axes.axhline(100 * recall[-1]["chance"], color=SOFT, linestyle=":", linewidth=1.2)
            for row in best:
                axes.plot(
                    row["epoch"], 100 * row["val"][direction][k]["value"], "*",
                    color="#ffd23f", markersize=11, markeredgecolor=INK, markeredgewidth=0.8, zorder=5,
                )  # fmt: skip
        axes.set_ylabel(f"R@{k[1:]} (%)")
        axes.set_ylim(bottom=0)
        _epoch_axis(axes, history, short=True)
    return figure


@styled
def lr_curve(history: list[dict]) -> Figure:
    """Learning rate at the first step of each epoch.

    Raises:
        ValueError: the history is empty.
    """
    runs = _phase_names(history)
    figure = new_figure(
        "Learning rate by epoch",
        f"at the first step of each epoch · {runs}",
        f"Line chart of the learning rate at the first step of each epoch; {runs}.",
        height=2.0,
    )
    axes = figure.add_subplot()
    _line(axes, history, [row["lr"] for row in history], color=INK, marker="o")
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.08 * max(row["lr"] for row in history))
    _epoch_axis(axes, history)
    return figure


@styled
def thumbnail(history: list[dict], dataset: str) -> Figure:
    """Validation R@1 of both directions, small, for the index over all experiments.

    Raises:
        ValueError: the history is empty.
    """
    phases(history)
    figure = Figure(figsize=(2.9, 1.45), layout="constrained")
    figure.set_label(
        f"Small line chart of validation recall at 1 by epoch on {dataset}, image to text solid and text to"
        " image dashed, above a dotted chance level."
    )
    axes = figure.add_subplot()
    for direction, look in DIRECTIONS.items():
        recall = [row["val"][direction]["r1"] for row in history]
        _line(axes, history, [100 * r["value"] for r in recall], **look | {"marker": None})
        axes.axhline(100 * recall[-1]["chance"], color=SOFT, linestyle=":", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("R@1 (%)", fontsize=7.5)
    _epoch_axis(axes, history, short=True, named=False)
    axes.xaxis.label.set_fontsize(7.5)
    axes.tick_params(labelsize=7)
    return figure


def _line(axes: Axes, history: list[dict], values: list[float], marker: str | None, **look) -> None:
    axes.plot(
        [row["epoch"] for row in history], values, marker=marker if len(history) < _MANY else None,
        markersize=3.2, **look,
    )  # fmt: skip


def _epoch_axis(axes: Axes, history: list[dict], short: bool = False, named: bool = True) -> None:
    """Names the epoch axis, shades every second phase and draws the borders between phases."""
    first, last = history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5
    parts = phases(history)
    for index, rows in enumerate(parts):
        start = rows[0]["epoch"] - 0.5 if index else first
        end = rows[-1]["epoch"] + 0.5
        if index % 2:
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
        if index:
            axes.axvline(start, color=SOFT, linewidth=1)
        if named and len(parts) > 1:
            name = f"phase {rows[0]['phase']}" + ("" if short else f" · {rows[0]['run']}")
            axes.annotate(
                name, ((start + end) / 2, 1.01), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", fontsize=8, color=SOFT,
            )  # fmt: skip
    axes.set_xlim(first, last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if short else 12, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _direction_handles(history: list[dict]) -> list[Line2D]:
    return [
        Line2D([], [], **look | {"marker": look["marker"] if len(history) < _MANY else None},
               markersize=3.2, label=DIRECTION_NAMES[direction])
        for direction, look in DIRECTIONS.items()
    ]  # fmt: skip


def _mark_handles(best_by: str) -> list:
    star = {"marker": "*", "color": "#ffd23f", "markeredgecolor": INK, "markersize": 10, "linestyle": "none"}
    return [
        Patch(color=SOFT, alpha=0.2, linewidth=0, label="95 % interval"),
        Line2D([], [], color=SOFT, linestyle=":", linewidth=1.2, label="chance"),
        Line2D([], [], **star, label=f"best epoch of the phase, by {best_by}"),
    ]


def _phase_names(history: list[dict]) -> str:
    return ", ".join(f"phase {rows[0]['phase']}: {rows[0]['run']}" for rows in phases(history))
