"""Writes the report of an experiment: its pages, figures, record and `README.md`."""

import dataclasses
import errno
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mmlib.files import explained, is_name, printable, write_bytes_atomic, write_json
from mmlib.reporting.ablation import ablation_table, ablation_thumbnail, ablation_verdicts, tuning_table
from mmlib.reporting.curves import thumbnail
from mmlib.reporting.notebooks import (
    Page,
    RunFiles,
    experiment_pages,
    has_private,
    read_notebook,
    read_run,
    report_folder,
    worst,
)
from mmlib.reporting.pages import render_notebook
from mmlib.reporting.scope import best_row, phases
from mmlib.reporting.style import alt_text
from mmlib.reporting.tables import Table, results_table
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


_MARKUP = re.compile(r"[\\`*\[\]<>~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|^#")

# Figures that a reader wants first, by notebook; those that a report lacks are left out.
FIGURES = (
    "05_ablation-arms.png",
    "04_analysis-recall.png",
    "04_analysis-loss.png",
    "04_analysis-results.png",
    "04_analysis-published.png",
    "04_analysis-gallery-t2i.png",
    "04_analysis-gallery-i2t.png",
    "04_analysis-slots.png",
)


def overview(
    experiment: str,
    state: str,
    reason: str | None,
    pages: Sequence[str],
    files: Sequence[str],
    results: list[dict],
    ablations: Sequence[dict] = (),
) -> str:
    """The text of a report's `README.md`: state, results table, figures, links to the pages.

    Args:
        experiment: its name.
        state, reason: of the experiment.
        pages: names of the notebooks that have a page which can be shared.
        files: all files of the report.
        results: `results.json` of each evaluated run; none for an experiment that did not get there.
        ablations: the record of each ablation.
    """
    why = f" ({plain_text(reason)})" if reason else ""
    lines = [f"# {plain_text(experiment)}", "", f"State: **{plain_text(state)}**{why}.", ""]
    lines += [f"Made by `make report EXPERIMENT={experiment}`. Pages, to be opened in a browser:", ""]
    lines += [f"- [{plain_text(page)}]({page}.html)" for page in pages]
    if results:
        lines += ["", "## Results", *_tables(results)]
    for record in ablations:
        lines += _ablation(record)
    shown = [name for name in FIGURES if f"figures/{name}" in files]
    if shown:
        lines += ["", "## Figures", ""]
        lines += [f"![{name.split('-', 1)[1].removesuffix('.png')}](figures/{name})\n" for name in shown]
    return "\n".join(lines).rstrip() + "\n"


def plain_text(text: str) -> str:
    """Foreign text for Markdown: one line, shown as it is, neither link, image, HTML nor emphasis."""
    line = re.sub(r"\s*\n\s*", " ", printable(text.strip()))
    return _MARKUP.sub(r"\\\g<0>", line)


def _ablation(record: dict) -> list[str]:
    """Verdicts first, then the table that they rest on and what was tuned."""
    verdicts, tuned = ablation_verdicts(record), tuning_table(record)
    lines = ["", f"## {plain_text(record['run'])}", ""]
    lines += [f"- {plain_text(sentence)}" for sentence in verdicts.sentences]
    lines += ["", plain_text(verdicts.note)] if verdicts.note else []
    for table in (ablation_table(record), *([tuned] if isinstance(tuned, Table) else [])):
        lines += ["", *markdown_table(table.frame), "", plain_text(table.caption)]
    return lines


def _tables(results: list[dict]) -> list[str]:
    """One table if all runs were measured on the same thing, otherwise one for each, or why there is none."""
    try:
        table = results_table(results)
    except ValueError as error:
        if len(results) == 1:
            return ["", plain_text(str(error))]
        return [line for result in results for line in _tables([result])]
    return ["", *markdown_table(table.frame), "", plain_text(table.caption)]


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """The lines of a frame as a Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return ["| " + " | ".join(plain_text(str(v)).replace("|", "\\|") for v in row) + " |" for row in rows]
