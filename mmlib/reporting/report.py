"""Writes the report of an experiment: its pages, figures, record and `README.md`."""

import dataclasses
import errno
import os
from pathlib import Path
from textwrap import indent

from mmlib.files import explained, is_name, printable, write_bytes_atomic, write_json
from mmlib.output import plain_text
from mmlib.reporting.ablation import ablation_table, ablation_verdicts, tuning_table
from mmlib.reporting.explorer import explorer_page
from mmlib.reporting.notebooks import (
    Page,
    RunFiles,
    command_of,
    experiment_pages,
    read_run,
    report_folder,
    worst,
)
from mmlib.reporting.pages import render_notebook
from mmlib.reporting.results import protocols_of_results, results_table
from mmlib.training.ablation import members
from mmlib.training.card import best_row, phases

FIGURES = {  # that a reader wants first; those that a report lacks are left out
    "05_ablation-arms.png": "R@1 and R@10 of each arm",
    "04_analysis-recall.png": "Validation recall by epoch",
    "04_analysis-loss.png": "Training loss by epoch",
    "04_analysis-results.png": "Test recall of each run",
    "04_analysis-published.png": "Test R@1 beside published systems",
    "04_analysis-gallery-t2i.png": "Captions and the images found for them",
    "04_analysis-gallery-i2t.png": "Images and the captions found for them",
    "04_analysis-slots.png": "How the memory is read",
}
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
    pages = experiment_pages(experiment)
    runs: dict[str, RunFiles] = {}
    ablations = {}
    mentioned = list(dict.fromkeys(run for page in pages for run in page.runs))
    for run in mentioned:
        read = read_run(run)
        if read.record:
            ablations[run] = read.record
            runs |= {member: read_run(member) for member in members(read.record)}
        else:
            runs[run] = read
    evaluated = [run for run in mentioned if run in runs and runs[run].result]
    explorer, why_not = _explorer(experiment, evaluated)
    pages, files = _rendered(experiment, pages, next(iter(explorer), None), runs)
    files |= explorer
    report = _record(experiment, pages, ablations, runs)
    report["explorer"] = next(iter(explorer), None)
    report["problems"] += why_not
    for name in ("figures", "private"):
        with explained(folder / name):
            if (folder / name).is_symlink():  # a stranger's may lead anywhere
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    for name, content in files.items():
        _write(folder / name, content)
    write_json(folder / "results.json", report)
    _write(folder / "README.md", overview(report, list(files)).encode())
    old = [folder / "explore.html", folder / "explore.private.html"]
    for page in (page for page in pages if is_name(page.name)):
        old += [folder / f"{page.name}.html", folder / f"{page.name}.private.html"]
        old += [p for part in ("figures", "private") for p in (folder / part).glob(f"{page.name}-*.png")]
    for path in old:  # what earlier reports left is no longer true
        if path.relative_to(folder).as_posix() not in files:
            with explained(path):
                path.unlink(missing_ok=True)
    return folder


def _explorer(experiment: str, runs: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """The explorer's file by name, if there is one, and why it could not be made."""
    try:
        page = explorer_page(experiment, runs)
    except (OSError, ValueError) as error:
        return {}, [f"no explorer: {error}"]
    return dict([page] if page else []), []


def _rendered(
    experiment: str, pages: tuple[Page, ...], explorer: str | None, runs: dict[str, RunFiles]
) -> tuple[tuple[Page, ...], dict[str, bytes]]:
    """The pages as they turned out, and the files of those that can be shown."""
    files: dict[str, bytes] = {}
    for page in (page for page in pages if page.executed):
        try:
            own = {
                run: read.environment for run, read in runs.items() if _is_of(run, page) and read.environment
            }
            files |= render_notebook(page.executed, experiment, pages, explorer, own)
        except (OSError, ValueError) as error:
            lost = dataclasses.replace(page, state="failed", reason=str(error), executed=None)
            # Once more from the first, since each page says what became of the others.
            others = tuple(lost if other is page else other for other in pages)
            return _rendered(experiment, others, explorer, runs)
    return pages, files


def _is_of(run: str, page: Page) -> bool:
    """Whether a page is about a run, or about the ablation that it belongs to."""
    return any(run == name or run.startswith(f"{name}.") for name in page.runs)


def _write(path: Path, content: bytes) -> None:
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, content)


def _record(
    experiment: str, pages: tuple[Page, ...], ablations: dict[str, dict], runs: dict[str, RunFiles]
) -> dict:
    """The content of `results.json`."""
    reasons = [
        f"{page.name}: {page.reason}" if page.reason and page.name not in page.reason else page.reason
        for page in pages
    ]
    state, reason = worst([(page.state, reason) for page, reason in zip(pages, reasons)])
    problems = [page.reason for page in pages if page.executed is None and page.state == "failed"]
    problems += [problem for run in runs.values() for problem in run.problems]
    report = {
        "experiment": experiment,
        "command": command_of(experiment, pages),
        "state": state,
        "reason": reason,
        "problems": list(dict.fromkeys(problems)),
        "notebooks": {
            page.name: {
                "state": page.state,
                "reason": page.reason,
                "page": f"{page.name}.html" if page.executed else None,
            }
            for page in pages
        },
        "ablations": ablations,
    } | {part: {} for part in ("runs", "metrics", "provenance", "timings")}
    for name, run in runs.items():
        best = [best_row(rows, run.best_by) for rows in phases(run.history)] if run.history else []
        own = [row for row in run.history if row["run"] == name]
        report["runs"][name] = {"state": run.state, "reason": run.reason, "problems": run.problems}
        report["metrics"][name] = {
            "data": run.environment.get("data"),
            "epochs": run.history[-1]["epoch"] if run.history else 0,
            "best_by": run.best_by,
            "best": [{key: row[key] for key in _ROW} for row in best],
            "curve": [round(row["val"]["mean_r1"], 4) for row in run.history],
            "test": run.result,
        }
        report["provenance"][name] = {key: v for key, v in run.environment.items() if key != "data"}
        report["timings"][name] = {
            "seconds": round(sum(row["seconds"] for row in own), 1),
            "pairs_per_s": [row["pairs_per_s"] for row in own],
        }
    return report


def overview(report: dict, files: list[str], place: str = "") -> str:
    """The text of a report's `README.md`: state, tables of results, figures, links to the pages.

    Args:
        report: the content of its `results.json`.
        files: names of its pages and figures.
        place: what a link begins with, where the text is not shown in the report's folder.
    """
    experiment, why = report["experiment"], f" ({plain_text(report['reason'])})" if report["reason"] else ""
    lines = [f"# {plain_text(experiment)}", "", f"State: **{plain_text(report['state'])}**{why}.", ""]
    command = report.get("command", f"make report EXPERIMENT={experiment}")  # older reports lack it
    lines += ["Made by", "", indent(printable(command), "    "), "", "Pages, to be opened in a browser:", ""]
    pages = {name: notebook["page"] for name, notebook in report["notebooks"].items() if notebook["page"]}
    lines += [f"- [{plain_text(name)}]({place}{page})" for name, page in pages.items()]
    if report.get("explorer") == "explore.html":
        lines += [f"- [explore]({place}explore.html): every query with its first results"]
    results = results_of(report)
    if results:
        lines += ["", "## Results", *result_lines(results)]
    for name, record in report["ablations"].items():
        tables = [ablation_verdicts(record), ablation_table(record), tuning_table(record)]
        lines += ["", f"## {plain_text(name)}", ""]
        tables = [table for table in tables if table.frame is not None or table is tables[0]]
        lines += [line for table in tables for line in table.markdown()]
    shown = [
        f"![{alt}]({place}figures/{name})\n" for name, alt in FIGURES.items() if f"figures/{name}" in files
    ]
    lines += ["", "## Figures", "", *shown] if shown else []
    return "\n".join(lines).rstrip() + "\n"


def results_of(report: dict) -> list[dict]:
    """The test results of a report's runs, but for those of an ablation, which has a table of its own."""
    of_ablations = {run for record in report["ablations"].values() for run in members(record)}
    tests = {run: metrics["test"] for run, metrics in report["metrics"].items()}
    return [test for run, test in tests.items() if test and run not in of_ablations]


def result_lines(results: list[dict]) -> list[str]:
    """Results in Markdown, a table for each protocol; runs that cannot be compared have their own tables."""
    try:
        tables = [results_table(results, protocol) for protocol in protocols_of_results(results)]
    except ValueError as error:
        if len(results) == 1:
            return ["", plain_text(str(error))]
        return [line for result in results for line in result_lines([result])]
    return [line for table in tables for line in table.markdown()]
