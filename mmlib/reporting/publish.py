"""Publishes a report: a local one becomes the committed one that README, docs and visitors read.

`reports/<experiment>/` is local and ignored by git; `reports/published/<experiment>/` is committed and
changed by this alone, together with its index and the numbers that README.md and docs/results.md quote.
"""

import re
import shutil
from pathlib import Path

from mmlib import files
from mmlib.files import checked_name, explained, flush_folder, write_bytes_atomic, write_text_atomic
from mmlib.locks import locked
from mmlib.reporting.ablation import ablation_table
from mmlib.reporting.ablation_verdicts import ablation_verdicts
from mmlib.reporting.index import write_index
from mmlib.reporting.overview import markdown_table
from mmlib.reporting.report import THUMBNAIL
from mmlib.reporting.state import report_folder
from mmlib.reporting.tables import results_table
from mmlib.training.stored import Report, read_stored

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
