"""The report of an experiment: its pages, its figures, and its numbers in one file.

`results.json` keeps what two runs with one seed share (`metrics`) apart from where they ran
(`provenance`) and how long they took (`timings`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmlib import paths
from mmlib.files import read_json, write_json
from mmlib.reporting.ablation_figure import ablation_thumbnail
from mmlib.reporting.curves import thumbnail
from mmlib.reporting.html import render_notebook
from mmlib.reporting.notebook import has_private, read_notebook
from mmlib.reporting.overview import write_overview
from mmlib.reporting.scope import best_row, phases
from mmlib.reporting.state import Page, experiment_pages, members_of, record_of, worst
from mmlib.reporting.style import alt_text
from mmlib.training.runs import read_history, run_folder, run_state

THUMBNAIL = "figures/learning.png"

_ROW = ("phase", "run", "epoch", "lr", "train_loss", "val")  # of a history row; its timings stand apart


def write_report(experiment: str) -> Path:
    """Writes `reports/<experiment>/`: a page per executed notebook, figures, `results.json`, `README.md`.

    Whatever is missing or damaged is named in `results.json` and marked on the pages; the rest of
    the report is made all the same.

    Returns:
        The report's folder.

    Raises:
        FileNotFoundError: the experiment has neither parameters nor executed notebooks.
    """
    pages = experiment_pages(experiment)
    folder = paths.REPORTS / experiment
    for page in pages:
        _render(page, folder, pages)
    mentioned = list(dict.fromkeys(run for page in pages for run in page.runs))
    ablations = {run: record for run in mentioned if (record := record_of(run))}
    names = [name for run in mentioned for name in (members_of(run) if run in ablations else (run,))]
    runs = {name: _collect(name) for name in names}
    state, reason = worst([(page.state, _reason(page)) for page in pages])
    shown = next((run for run in reversed(runs.values()) if run["history"]), None)
    small = _thumbnail(list(ablations.values()), shown)
    if small:
        (folder / THUMBNAIL).parent.mkdir(parents=True, exist_ok=True)
        small.savefig(folder / THUMBNAIL, metadata={"Software": None})
    write_json(
        folder / "results.json",
        {
            "experiment": experiment,
            "state": state,
            "reason": reason,
            "notebooks": {
                page.name: {"state": page.state, "reason": page.reason, "page": page.href} for page in pages
            },
            "thumbnail": {"file": THUMBNAIL, "alt": alt_text(small)} if small else None,
            "ablations": ablations,
            "runs": {n: {key: r[key] for key in ("state", "reason", "problems")} for n, r in runs.items()},
            "metrics": {name: run["metrics"] for name, run in runs.items()},
            "provenance": {name: run["provenance"] for name, run in runs.items()},
            "timings": {name: run["timings"] for name, run in runs.items()},
        },
    )
    alone = [runs[name] for name in names if name in mentioned]  # an ablation's have a table of their own
    results = [run["metrics"]["test"] for run in alone if run["metrics"]["test"]]
    write_overview(folder, experiment, state, reason, results, list(ablations.values()))
    return folder


def _render(page: Page, folder: Path, pages: tuple[Page, ...]) -> None:
    private = folder / f"{page.name}.private.html"
    private.unlink(missing_ok=True)
    if page.executed is None:
        (folder / f"{page.name}.html").unlink(missing_ok=True)  # of an earlier run: no longer true
        return
    render_notebook(page.executed, folder / f"{page.name}.html", pages=pages)
    if has_private(read_notebook(page.executed)):
        render_notebook(page.executed, private, private=True, pages=pages)


def _reason(page: Page) -> str | None:
    return f"{page.name}: {page.reason}" if page.reason and page.name not in page.reason else page.reason


def _collect(run: str) -> dict:
    """Everything that a report says of a run; files that cannot be read are listed as problems."""
    state, reason = run_state(run)
    problems: list[str] = []
    folder = run_folder(run)

    def read(reader: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return reader()
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{type(error).__name__}: {error}")
            return otherwise

    history = read(lambda: read_history(run), [])
    config = read(lambda: read_json(folder / "config.json"), {})
    environment = read(lambda: read_json(folder / "environment.json"), {})
    has_result = (folder / "results.json").exists()  # none before 03_evaluate, which is no problem
    result = read(lambda: read_json(folder / "results.json"), None) if has_result else None
    by = config.get("select_by", "rsum")
    best = read(lambda: [best_row(rows, by) for rows in phases(history)], []) if history else []
    own = [row for row in history if row.get("run") == run]
    return {
        "state": state,
        "reason": reason,
        "problems": problems,
        "history": history,
        "dataset": environment.get("data", {}).get("name", "an unknown data set"),
        "metrics": {
            "data": environment.get("data"),
            "epochs": history[-1].get("epoch") if history else 0,
            "best_by": by,
            "best": [{key: row.get(key) for key in _ROW} for row in best],
            "test": result,
        },
        "provenance": {key: value for key, value in environment.items() if key != "data"},
        "timings": {
            "seconds": round(sum(row.get("seconds", 0) for row in own), 1),
            "pairs_per_s": [row.get("pairs_per_s") for row in own],
        },
    }


def _thumbnail(ablations: list[dict], shown: dict | None) -> Figure | None:
    """The arms of an ablation, else the learning curve of a run, else nothing."""
    if ablations:
        return ablation_thumbnail(ablations[-1])
    return thumbnail(shown["history"], shown["dataset"]) if shown else None
