"""The index of all reports, and a report copied into `reports/published`."""

import base64
import os
import re
import shutil
from pathlib import Path

import jinja2

from mmlib import files
from mmlib.files import (
    checked_name,
    explained,
    flush_folder,
    locked,
    printable,
    read_bounded,
    write_bytes_atomic,
    write_text_atomic,
)
from mmlib.reporting.ablation import ablation_table, ablation_verdicts
from mmlib.reporting.notebooks import report_folder
from mmlib.reporting.pages import POLICY, TEMPLATES, is_png, stylesheet, well_formed
from mmlib.reporting.report import THUMBNAIL, UNKNOWN, markdown_table
from mmlib.reporting.scope import DIRECTIONS, percent, recall_text, scope
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.reporting.tables import results_table
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


QUOTING = ("README.md", "docs/results.md")  # pages that quote published reports
# A quotation stands between two comments, the first of which names the experiment.
_OLD = ".old"  # where a report lies while another takes its place
_OPENING = r"<!-- (results|ablation): ([\w.-]+) -->\n"
QUOTED = re.compile(rf"({_OPENING})(?:(?!<!-- (?:results|ablation): ).)*?(<!-- end -->)", re.DOTALL)


def publish(experiment: str) -> Path:
    """Copies a complete local report to `reports/published/`; renews the index there and what pages quote.

    Only what may be passed on is copied: pages, figures, `results.json` and `README.md`; no executed
    notebook, no private page or picture.

    Returns:
        The published report's folder.

    Raises:
        FileNotFoundError: there is no such report, or a part of it is missing.
        ValueError: it is not complete, or its `results.json` is damaged.
        InUse: the experiment is at work.
        OSError: it could not be copied; what was published before stands.
    """
    name, source = experiment, report_folder(experiment)
    target = files.PUBLISHED / name
    _require(source, "results.json")
    with locked(source, f"experiment {name!r}"), locked(files.PUBLISHED, "the published reports"):
        _put_back(files.PUBLISHED / _OLD)
        kept = _files_of(source, name)
        pages = [page for page in QUOTING if (files.ROOT / page).exists()]
        texts = {page: (files.ROOT / page).read_text(encoding="utf-8") for page in pages}
        texts = {page: renewed(text, {name: source}, page) for page, text in texts.items()}
        _replace(target, source, kept)
        write_index(files.PUBLISHED)
        for page, text in texts.items():
            with explained(files.ROOT / page):
                write_text_atomic(files.ROOT / page, text)
    return target


def renewed(text: str, instead: dict[str, Path], page: str = "README.md") -> str:
    """The text of a page with all that it quotes taken from the published reports.

    Args:
        text: with comments `<!-- results: demo -->` or `<!-- ablation: … -->` and `<!-- end -->`.
        instead: folders to read in place of the published ones, by experiment.
        page: the page's name, for errors.

    Raises:
        FileNotFoundError, ValueError: a report is missing, damaged, or lacks what is quoted; or a comment
            has no end, so that more than a quotation would be replaced.
    """
    for opening in re.finditer(_OPENING, text):
        if not QUOTED.match(text, opening.start()):
            raise ValueError(
                f"{page}: expected <!-- end --> after {opening[0].strip()}, found none before the next"
                " such comment; write it where the quotation ends"
            )

    def quote(found: re.Match) -> str:
        experiment = found[3]
        path = instead.get(experiment, files.PUBLISHED / experiment) / "results.json"
        report = read_stored(path, Report)
        try:
            lines = (_results if found[2] == "results" else _verdicts)(report)
        except ValueError as error:
            raise ValueError(
                f"{page} quotes the {found[2]} of {experiment!r}, which {files.shown(path)} does not give:"
                f" {error}"
            ) from None
        return "\n".join([found[1].rstrip(), *lines, found[4]])

    return QUOTED.sub(quote, text)


def _results(report: dict) -> list[str]:
    table = results_table([run["test"] for run in report["metrics"].values() if run["test"]])
    return [*markdown_table(table.frame), "", table.caption]


def _verdicts(report: dict) -> list[str]:
    if not report.get("ablations"):
        raise ValueError("it has no ablation")
    lines = []
    for record in report["ablations"].values():
        lines += [f"- {sentence}" for sentence in ablation_verdicts(record).sentences]
        lines += ["", *markdown_table(ablation_table(record).frame), ""]
    return lines[:-1]


def _files_of(source: Path, name: str) -> list[Path]:
    """What is published of a report, relative to its folder, after a check that it is complete."""
    report = read_stored(source / "results.json", Report)
    states = [report["state"], *(notebook.get("state") for notebook in report["notebooks"].values())]
    if len(states) == 1 or set(states) != {"complete"}:
        raise ValueError(
            f"only a complete report is published, found {files.shown(source)} to be {report['state']!r}"
            f" ({report['reason'] or 'no reason given'}); run it to its end: make report EXPERIMENT={name}"
        )
    pages = [f"{checked_name(notebook, 'notebook')}.html" for notebook in report["notebooks"]]
    drawn = [f"figures/{p.name}" for p in sorted((source / "figures").glob("*.png"))]
    own = (
        THUMBNAIL,
        *(f"figures/{notebook}-" for notebook in report["notebooks"]),
    )  # others were not made by this
    figures = [file for file in drawn if file.startswith(own)]
    names = ["results.json", "README.md", *pages, *figures]
    for file in names if not report["thumbnail"] or THUMBNAIL in figures else [*names, THUMBNAIL]:
        _require(source, file)
    return [Path(file) for file in names]


def _require(source: Path, file: str) -> None:
    """Passes if a report has this file, and it is no link to another place."""
    path = source / file
    if not path.is_file() or path.resolve() != source.resolve() / file:
        found = "one that lies elsewhere" if path.is_file() else "nothing"
        raise FileNotFoundError(
            f"nothing to publish of {source.name!r}: expected {files.shown(path)}, found {found}; make it"
            f" with: make report EXPERIMENT={source.name}"
        )


def _replace(target: Path, source: Path, files: list[Path]) -> None:
    """Copies the files beside the target, then takes its place; on an error the old ones stay."""
    new, old = target.with_name(".new"), target.with_name(_OLD)
    shutil.rmtree(new, ignore_errors=True)
    try:
        for file in files:
            with explained(target / file):
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                write_bytes_atomic(new / file, (source / file).read_bytes())
        flush_folder(new)
        with explained(target):
            if target.exists():
                old.mkdir()
                target.rename(old / target.name)
            new.rename(target)
        flush_folder(target.parent)
    finally:
        _put_back(old)
        shutil.rmtree(new, ignore_errors=True)


def _put_back(old: Path) -> None:
    """Gives a report that was moved away its place again, unless another has it: after an error or a kill."""
    for report in old.iterdir() if old.is_dir() else ():
        if not (place := old.with_name(report.name)).exists():
            report.rename(place)
    shutil.rmtree(old, ignore_errors=True)
