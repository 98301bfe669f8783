"""`index.html` over reports, local or published: every experiment with its state and its numbers."""

import base64
import os
from pathlib import Path

import jinja2

from mmlib import files
from mmlib.files import checked_name, explained, printable, read_bounded, write_text_atomic
from mmlib.reporting.ablation_verdicts import ablation_verdicts
from mmlib.reporting.foreign import POLICY, is_png, well_formed
from mmlib.reporting.html import TEMPLATES, stylesheet
from mmlib.reporting.report import THUMBNAIL, UNKNOWN
from mmlib.reporting.scope import DIRECTIONS, percent, recall_text, scope
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.training.stored import Report, read_stored


def write_index(reports: Path | None = None) -> Path:
    """Writes `index.html` over the `results.json` of all reports in a folder and returns its path.

    Needs no run folder, so that it can be made on any clone.  An experiment whose file is missing
    or damaged gets a card that says so.

    Args:
        reports: `paths.PUBLISHED`; by default the local ones, from which a link leads to the published.

    Raises:
        OSError: it could not be written; the one before stands.
    """
    reports = reports or files.REPORTS
    index, published = reports / "index.html", files.PUBLISHED / "index.html"
    folders = [
        path
        for path in sorted(reports.iterdir() if reports.is_dir() else ())
        if path.is_dir() and not path.name.startswith(".") and path != files.PUBLISHED
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    cards = [_card(folder) for folder in folders]
    text = environment.get_template("experiments.html.j2").render(
        experiments=cards,
        css=jinja2.filters.Markup(stylesheet()),
        policy=POLICY,
        published=os.path.relpath(published, reports) if published.is_file() and index != published else None,
    )
    with explained(index):
        write_text_atomic(index, well_formed(text) + "\n")
    return index


def _card(folder: Path) -> dict:
    card = {
        "name": printable(folder.name),
        "state": "unreadable",
        "reason": None,
        "first": None,
        "numbers": None,
        "verdicts": [],
    }
    card |= {"links": [], "thumbnail": None, "alt": ""}
    try:
        checked_name(folder.name, "experiment")
        report = read_stored(folder / "results.json", Report, "make the report again")
        card |= {"state": report["state"], "reason": report["reason"], "numbers": _numbers(report["metrics"])}
        records = report.get("ablations", {}).values()  # reports from before there were any have none
        card["verdicts"] = [text for record in records for text in ablation_verdicts(record).sentences]
        if card["verdicts"]:
            card["numbers"] = None  # of a single run, which is not what an ablation is about
        card["links"] = [
            {"name": name, "href": f"{folder.name}/{notebook['page']}"}
            for name, notebook in report["notebooks"].items()
            if notebook["page"] and (folder / notebook["page"]).exists()
        ]
        card["first"] = card["links"][-1]["href"] if card["links"] else None  # the analysis, once there
        if report["thumbnail"]:
            card |= {"thumbnail": _picture(folder / THUMBNAIL), "alt": report["thumbnail"]["alt"]}
    except FileNotFoundError as error:
        card |= {"state": "incomplete", "reason": f"its report is not whole: {error}"}
    except (OSError, ValueError) as error:
        card |= {"state": "unreadable", "reason": str(error)}
    return card


def _picture(path: Path) -> str:
    """A PNG as an address that holds it."""
    png = read_bounded(path)
    if not is_png(png):
        raise ValueError(f"{files.shown(path)} is damaged: expected a PNG; make the report again")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _numbers(metrics: dict) -> dict | None:
    """Test R@1 of the last run that has it; before any test, validation R@1 of the last best epoch."""
    for run, values in reversed(metrics.items()):
        if values["test"]:
            test = values["test"]
            where = scope(test["data"]["name"], test["split"], test["protocols"]["standard"])
            return _rows(run, test["protocols"]["standard"], f"{where} · 95 % intervals")
    for run, values in reversed(metrics.items()):
        if values["best"]:
            best = values["best"][-1]
            where = scope((values["data"] or UNKNOWN)["name"], "val", best["val"])
            note = f"best epoch {best['epoch']}, not a test result"
            return _rows(run, best["val"], f"{where} · {note} · 95 % intervals")
    return None


def _rows(run: str, summary: dict, where: str) -> dict:
    rows = []
    for direction in DIRECTIONS:
        recall = summary[direction]["r1"]
        rows.append(
            {
                "direction": DIRECTION_NAMES[direction],
                "recall": recall_text(recall),
                "hits": f"{recall['hits']:,}/{summary[direction]['n']:,}",
                "chance": f"{percent(recall['chance'])} %",
            }
        )
    return {"run": run, "rows": rows, "scope": where}
