"""What a person sees of a training: a bar, lines, curves in a watched notebook, a tracker's log."""

import contextlib
import html
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from mmlib.config import TrainConfig
from mmlib.files import explained
from mmlib.metrics.summary import DIRECTIONS
from mmlib.output import progress
from mmlib.training.runs import RunFolder, remove

_KS = ("r1", "r5", "r10")
_COLOURS = dict(zip(DIRECTIONS, ("#0072B2", "#D55E00")))  # as the pages' figures have them
_AS_PRINTED = "margin:0;padding:0;font-size:var(--jp-code-font-size,inherit);line-height:1.3"
_DASHES = dict(zip(DIRECTIONS, ("none", "5 3")))


def is_watched() -> bool:
    """Whether the code runs in a notebook's cell that a person has started in a live front end.

    JupyterLab, Notebook 7 and VS Code name the cell in the metadata of what they ask the kernel to execute
    (`cellId`, which ipykernel reads from there too).  nbclient, and so papermill, `nbconvert --execute` and
    nbval, asks for code alone; and a terminal has no such request.  In doubt it is False, which costs no
    more than the curves.
    """
    ipython = sys.modules.get("IPython")  # there in every kernel, and slow to import where it is not
    parent = getattr(ipython and ipython.get_ipython(), "get_parent", dict)()
    return "cellId" in (parent.get("metadata") or {})


def check_tracker(tracker: str) -> None:
    """Passes if the package that a tracker writes with is installed.

    Raises:
        ModuleNotFoundError: names the extra that brings it.
    """
    if tracker == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tracker tensorboard needs the package tensorboard, found none; install it with"
            " pip install 'mmlib[tensorboard]', or use tracker csv"
        )


class Progress:
    """What a person sees of one training while it runs, beside the history that it leaves.

    A line for each epoch goes to `log`.  Where the caller has left that to be `print` and `is_watched`, the
    lines stand in one output of the cell, under a bar and the curves so far; at the end the lines alone stay,
    also of a training that fails.  Only a kernel that is killed leaves what it showed last.

    A tracker's log lies in the run's folder, `csv/` or `tensorboard/`.  It is made anew from the history
    whenever the run goes on: no epoch is there twice, and none is missing.

    Args:
        config: of the run.
        folder: of the run; where there are several processes, the first one's.
        log: takes the lines.
        is_main: whether this is the first process; the others show and write nothing.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, log: Callable[[str], None], is_main: bool):
        self._config, self._folder, self._print, self._is_main = config, folder, log, is_main
        self._live = is_main and log is print and is_watched()
        self._handle = self._tracker = None
        self._rows, self._lines, self._last_epoch = [], [], 0
        self._bar = {"prefix": "getting ready", "n": 0, "total": 1, "elapsed": 0}

    def start(self, rows: list[dict], last_epoch: int) -> None:
        """Begins to show a run.

        Args:
            rows: its history so far, ancestors included.
            last_epoch: the last one planned.

        Raises:
            OSError: the tracker's log cannot be written.
        """
        self._rows, self._last_epoch = list(rows), last_epoch
        if self._live:
            from IPython.display import display

            self._handle = display(self._looks(), raw=True, display_id=True)
        if self._is_main and self._config.tracker != "none":
            place = self._folder.path / self._config.tracker
            with _explained(place):
                remove(place)
                self._tracker = _open_tracker(self._config.tracker, place)
            self._track(rows)

    def batches(self, batches: Iterable, **options) -> Iterable:
        """The batches, with a bar (tqdm's options) in a terminal or a watched notebook."""
        if self._live:
            return progress(batches, self.draw, mininterval=0.5, **options)
        return tqdm(batches, disable=not (self._is_main and sys.stderr.isatty()), **options)

    def log(self, line: str) -> None:
        """Shows a line."""
        if not self._handle:
            return self._print(line)
        self._lines.append(line)
        return self.draw(self._bar)

    def end_epoch(self, row: dict) -> None:
        """Adds an epoch of the history to curves and log.

        Raises:
            OSError: the tracker's log cannot be written; the run has its checkpoint and goes on from there.
        """
        self._rows.append(row)
        self._track([row])

    def close(self) -> None:
        """Leaves the lines alone in the notebook, and closes the log."""
        if self._handle:
            text = "\n".join(self._lines) or "no epoch was finished"
            self._handle.update({"text/plain": text}, raw=True)
            self._handle = None
        if self._tracker:
            with contextlib.suppress(OSError):  # all that was logged was written, or its error raised
                self._tracker.finalize("")

    def draw(self, bar: dict) -> None:
        """Shows in the notebook how far the epoch is, by `tqdm.format_dict`."""
        self._bar = bar
        if self._handle:
            self._handle.update(self._looks(), raw=True)

    def _looks(self) -> dict[str, str]:
        """The output of the cell while the run is at work, by MIME type."""
        bar, text = self._bar, "\n".join(self._lines)
        how_far = tqdm.format_meter(**bar | {"bar_format": "{n_fmt} of {total_fmt} steps, {remaining} left"})
        now = f"{bar['prefix']}: {how_far}"
        epochs = [row["epoch"] for row in self._rows]
        loss = [("currentColor", "none", "", [row["train_loss"] for row in self._rows])]
        recalls = [
            (
                _COLOURS[direction], _DASHES[direction], f"R@{k[1:]}" if direction == "i2t" else "",
                [100 * row["val"][direction][k]["value"] for row in self._rows],
            )
            for direction in DIRECTIONS
            for k in _KS
        ]  # fmt: skip
        charts = (
            _chart("training loss", epochs, self._last_epoch, loss),
            _chart(
                "validation recall (%): — image → text, - - text → image", epochs, self._last_epoch, recalls
            ),
        )
        done = f'<progress value="{bar["n"]}" max="{bar["total"]}" style="width:16em"></progress>'
        return {
            "text/plain": f"{now}\n{text}".rstrip(),
            "text/html": f'<div style="font-size:13px">{done} {html.escape(now)}</div>'
            f"<div>{''.join(charts)}</div>"
            f'<pre style="{_AS_PRINTED}">{html.escape(text)}</pre>',
        }

    def _track(self, rows: list[dict]) -> None:
        if not self._tracker or not rows:
            return
        with _explained(self._folder.path / self._config.tracker):
            for row in rows:
                self._tracker.log_metrics(scalars(row), row["epoch"])
            self._tracker.save()


def scalars(row: dict) -> dict[str, float]:
    """What a tracker logs of an epoch of the history: losses, rates, recalls (fractions) and health."""
    val, health = row["val"], row.get("health") or {}
    found = {name: row[name] for name in ("train_loss", "lr", "temperature", "seconds", "pairs_per_s")}
    found |= {f"val/{name}": val[name] for name in ("rsum", "mean_r1")}
    found |= {f"val/{d}_{k}": val[d][k]["value"] for d in DIRECTIONS for k in _KS}
    reads = health.get("memory") or {}
    found |= {f"health/{name}": value for name, value in (health | reads).items() if name != "memory"}
    return {name: float(value) for name, value in found.items() if value is not None}


def _open_tracker(tracker: str, place: Path):
    """Fabric's logger into a folder that is not there yet."""
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    kind, own = (CSVLogger, {}) if tracker == "csv" else (TensorBoardLogger, {"purge_step": 0})
    logger = kind(place.parent, name="", version=place.name, **own)
    assert logger.experiment is not None  # makes the folder
    return logger


@contextlib.contextmanager
def _explained(place: Path):
    """`explained`, also of an error that a logger wraps."""
    with explained(place):
        try:
            yield
        except ValueError as error:
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None


def _chart(title: str, epochs: list[int], last: int, curves: list[tuple[str, str, str, list[float]]]) -> str:
    """A small SVG of curves over the epochs, from 0 up, in the colour of the page's text.

    Args:
        title: what stands above.
        epochs: E of them.
        last: the last one planned, where the axis ends.
        curves: of each its colour, dashes, the name at its end, and E values.
    """
    left, right, top, bottom = 34, 320, 22, 130
    high = 1.05 * max((max(values, default=0) for *_, values in curves), default=0) or 1
    first = min(epochs, default=1)
    labels = (
        (left, 12, "start", html.escape(title)), (left - 4, top + 4, "end", f"{high:.3g}"),
        (left - 4, bottom, "end", "0"), (left, bottom + 14, "middle", first),
        (right, bottom + 14, "middle", last), ((left + right) / 2, bottom + 14, "middle", "epoch"),
    )  # fmt: skip
    parts = [f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels]
    for colour, dashes, name, values in curves:
        points = [
            (
                round(left + (right - left) * (epoch - first) / max(last - first, 1), 1),
                round(bottom - (bottom - top) * value / high, 1),
            )
            for epoch, value in zip(epochs, values)
        ]
        for x, y in points[-1:]:
            line = " ".join(f"{x},{y}" for x, y in points)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"'
                f' stroke-dasharray="{dashes}"/><circle cx="{x}" cy="{y}" r="2.2" fill="{colour}"/>'
                f'<text x="{x + 4}" y="{y}">{name}</text>'
            )
    return (
        f'<svg role="img" aria-label="{html.escape(title)}, by epoch" width="360" height="150"'
        ' viewBox="0 0 360 150" fill="currentColor" font-size="10"'
        ' style="max-width:100%;font-family:var(--jp-ui-font-family,sans-serif)">'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="currentColor" opacity=".4"/>'
        f"{''.join(parts)}</svg>"
    )
