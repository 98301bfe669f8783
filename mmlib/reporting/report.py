"""The report of an experiment: its pages, its figures, and its numbers in one file.

`results.json` keeps what two runs with one seed share (`metrics`) apart from where they ran
(`provenance`) and how long they took (`timings`).
"""

import dataclasses
import errno
import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from mmlib.files import explained, is_name, write_bytes_atomic, write_json
from mmlib.reporting.ablation_figure import ablation_thumbnail
from mmlib.reporting.curves import thumbnail
from mmlib.reporting.html import render_notebook
from mmlib.reporting.notebook import has_private, read_notebook
from mmlib.reporting.overview import overview
from mmlib.reporting.scope import best_row, phases
from mmlib.reporting.state import Page, RunFiles, experiment_pages, read_run, report_folder, worst
from mmlib.reporting.style import alt_text
from mmlib.training.ablation import members

THUMBNAIL = "figures/learning.png"
UNKNOWN = {"name": "an unknown data set"}  # of a run whose environment cannot be read

_ROW = ("phase", "run", "epoch", "lr", "train_loss", "val")  # of a history row; its timings stand apart


def write_report(experiment: str) -> Path:
    """Writes `reports/<experiment>/`: a page per executed notebook, figures, `results.json`, `README.md`.

    Whatever is missing or damaged is named in `results.json` and marked on the pages; the rest of
    the report is made all the same.  Each file is written whole or not at all, and what an earlier
    report left goes when the new one is there.  Nothing outside the report's folder is written.

    Returns:
        The report's folder.

    Raises:
        FileNotFoundError: the experiment has neither parameters nor executed notebooks.
        ValueError: its name cannot be that of a folder.
        OSError: a file cannot be written; names it.
    """
    folder = report_folder(experiment)
    pages, files = _rendered(experiment, experiment_pages(experiment))
    mentioned = {run: read_run(run) for page in pages for run in page.runs}
    ablations = {run: read.record for run, read in mentioned.items() if read.record}
    runs: dict[str, RunFiles] = {}
    for run, read in mentioned.items():
        runs |= {m: read_run(m) for m in members(read.record)} if read.record else {run: read}
    state, reason = worst([(page.state, _reason(page)) for page in pages])
    shown = next((run for run in reversed(runs.values()) if run.history), None)
    small = _thumbnail(list(ablations.values()), shown)
    if small:
        files[THUMBNAIL] = _png(small)
    # An ablation's runs have a table of their own.
    results = [run.result for name, run in runs.items() if name in mentioned and run.result]
    shared = [page.name for page in pages if page.href in files]
    text = overview(experiment, state, reason, shared, list(files), results, list(ablations.values()))
    for name in ("figures", "private"):
        with explained(folder / name):
            if (folder / name).is_symlink():  # a stranger's may lead anywhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    for name, content in files.items():
        _write(folder / name, content)
    write_json(
        folder / "results.json",
        {
            "experiment": experiment,
            "state": state,
            "reason": reason,
            "problems": _problems(pages, runs),
            "notebooks": {
                page.name: {"state": page.state, "reason": page.reason, "page": page.href} for page in pages
            },
            "thumbnail": {"file": THUMBNAIL, "alt": alt_text(small)} if small else None,
            "ablations": ablations,
            "runs": {
                name: {"state": run.state, "reason": run.reason, "problems": run.problems}
                for name, run in runs.items()
            },
            "metrics": {name: _metrics(run) for name, run in runs.items()},
            "provenance": {
                name: {key: value for key, value in run.environment.items() if key != "data"}
                for name, run in runs.items()
            },
            "timings": {name: _timings(name, run) for name, run in runs.items()},
        },
    )
    _write(folder / "README.md", text.encode())
    _remove_stale(folder, pages, files)
    return folder


def _rendered(experiment: str, pages: tuple[Page, ...]) -> tuple[tuple[Page, ...], dict[str, bytes]]:
    """The pages as they turned out, and the files of those that can be shown."""
    files: dict[str, bytes] = {}
    for page in pages:
        if page.executed is None:
            continue
        try:
            files |= render_notebook(page.executed, experiment, pages=pages)
            if has_private(read_notebook(page.executed)):
                files |= render_notebook(page.executed, experiment, private=True, pages=pages)
        except (OSError, ValueError) as error:
            lost = dataclasses.replace(page, state="failed", reason=str(error), executed=None)
            # Once more from the first, since each page says what became of the others.
            return _rendered(experiment, tuple(lost if other is page else other for other in pages))
    return pages, files


def _write(path: Path, content: bytes) -> None:
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)


def _remove_stale(folder: Path, pages: tuple[Page, ...], files: dict[str, bytes]) -> None:
    """Removes pages and figures of earlier reports: no longer true."""
    for page in pages:
        if not is_name(page.name):
            continue
        old = [folder / f"{page.name}.html", folder / f"{page.name}.private.html"]
        old += [p for part in ("figures", "private") for p in (folder / part).glob(f"{page.name}-*.png")]
        for path in old:
            if path.relative_to(folder).as_posix() not in files:
                with explained(path):
                    path.unlink(missing_ok=True)


def _reason(page: Page) -> str | None:
    return f"{page.name}: {page.reason}" if page.reason and page.name not in page.reason else page.reason


def _problems(pages: tuple[Page, ...], runs: dict[str, RunFiles]) -> list[str]:
    """Why executed copies and files of runs could not be read."""
    copies = [page.reason for page in pages if page.executed is None and page.state == "failed"]
    return list(dict.fromkeys([*copies, *(problem for run in runs.values() for problem in run.problems)]))


def _metrics(run: RunFiles) -> dict:
    best = [best_row(rows, run.best_by) for rows in phases(run.history)] if run.history else []
    return {
        "data": run.environment.get("data"),
        "epochs": run.history[-1]["epoch"] if run.history else 0,
        "best_by": run.best_by,
        "best": [{key: row[key] for key in _ROW} for row in best],
        "test": run.result,
    }


def _timings(name: str, run: RunFiles) -> dict:
    own = [row for row in run.history if row["run"] == name]
    return {
        "seconds": round(sum(row["seconds"] for row in own), 1),
        "pairs_per_s": [row["pairs_per_s"] for row in own],
    }


def _thumbnail(ablations: list[dict], shown: RunFiles | None) -> Figure | None:
    """The arms of an ablation, else the learning curve of a run, else nothing."""
    if ablations:
        return ablation_thumbnail(ablations[-1])
    if shown is None:
        return None
    return thumbnail(shown.history, shown.environment.get("data", UNKNOWN)["name"])


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
