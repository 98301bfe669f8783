"""The index of all reports, the newest of them, and a report copied into `reports/published`."""

import base64
import dataclasses
import itertools
import math
import os
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from markupsafe import Markup

from mmlib import files
from mmlib.metrics.compare import measured_on, why_not_comparable
from mmlib.metrics.summary import DIRECTION_NAMES, recall_cells, result_rows, scope
from mmlib.output import plain_text
from mmlib.reporting.ablation import ablation_table, ablation_verdicts, best_arm
from mmlib.reporting.notebooks import report_folder
from mmlib.reporting.pages import SCRIPT, TEMPLATES, page_from, script_json
from mmlib.reporting.report import FIGURES, overview, results_of
from mmlib.reporting.results import protocols_of_results, result_scope, results_table
from mmlib.reporting.tables import Table
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
    link = os.path.relpath(published, reports) if published.is_file() and index != published else None
    cards = sorted((_card(folder) for folder in folders), key=lambda card: card["made"], reverse=True)
    runs = [run for card in cards for run in card["runs"]]
    text = page_from(
        "experiments.html.j2",
        SCRIPT,
        (TEMPLATES / "experiments.js").read_text(encoding="utf-8"),
        experiments=cards,
        published=link,
        runs=[run["label"] for run in runs],
        verdicts=script_json(_verdicts(runs)),
    )
    with files.explained(index):
        files.write_text_atomic(index, text)
    return index


def _card(folder: Path) -> dict:
    card = dict.fromkeys(("picture", "chart", "reason"), None)
    card |= {"name": files.printable(folder.name), "state": "unreadable", "shown": [], "links": [], "alt": ""}
    card |= {"made": "", "runs": [], "best": None, "curve": "", "no_curve": "–"}
    try:
        files.checked_name(folder.name, "experiment")
        report = read_stored(folder / "results.json", Report, "make the report again")
        card |= {"state": report["state"], "reason": report["reason"]}
        card |= {"made": _made(report)} | _curve(report)
        tests = results_of(report | {"ablations": report.get("ablations") or {}})
        card["runs"] = [{"label": f"{card['name']}: {test['run']}", "test": test} for test in tests]
        if tests:
            best = max(tests, key=lambda test: test["protocols"]["standard"]["mean_r1"])
            card["best"] = {"run": best["run"], "scope": result_scope(best)}
            for d in ("i2t", "t2i"):
                card["best"][d] = recall_cells(best["protocols"]["standard"][d])["R@1"]
        for record in (report.get("ablations") or {}).values():
            card["best"] = card["best"] or best_arm(record)
        # Where there is an ablation, its verdicts are the result.
        verdicts = [ablation_verdicts(record) for record in (report.get("ablations") or {}).values()]
        tables = [dataclasses.replace(table, caption="") for table in verdicts] or _numbers(report["metrics"])
        card["shown"] = [Markup(table._repr_html_()) for table in tables]
        card["links"] = [
            {"name": name, "href": f"{folder.name}/{notebook['page']}"}
            for name, notebook in report["notebooks"].items()
            if notebook["page"] and (folder / notebook["page"]).exists()
        ]
        drawn = [name for name in FIGURES if _is_own(folder, f"figures/{name}")]
        if drawn:
            picture = base64.b64encode(files.read_bounded(folder / "figures" / drawn[0])).decode()
            card |= {"picture": f"data:image/png;base64,{picture}", "alt": FIGURES[drawn[0]]}
            card["chart"] = "gallery" not in drawn[0]
    except FileNotFoundError as error:
        card |= {"state": "incomplete", "reason": f"its report is not whole: {error}"}
    except (OSError, ValueError) as error:
        card |= {"state": "unreadable", "reason": str(error)}
    return card


def _made(report: dict) -> str:
    """When the last run of a report was started, ISO 8601; nothing if it does not say."""
    started = [run.get("started") or "" for run in (report.get("provenance") or {}).values()]
    return files.printable(max(started, default=""))[:19]


def _curve(report: dict) -> dict[str, str]:
    """Validation mean R@1 by epoch of the longest run, as points of a line in a box of 100 x 30.

    Where there is none, `no_curve` says why.
    """
    curves = [run.get("curve") for run in report["metrics"].values()]
    values = max((curve for curve in curves if curve), key=len, default=[])
    if len(values) < 2:
        older = any(curve is None for curve in curves)
        why = "one epoch" if values else "not recorded: an older report" if older else "no epoch yet"
        return {"curve": "", "no_curve": why}
    top, step = max([*values, 1e-9]), 100 / (len(values) - 1)
    points = " ".join(f"{step * i:.1f},{29 - 28 * v / top:.1f}" for i, v in enumerate(values))
    return {"curve": points, "no_curve": ""}


def _verdicts(runs: list[dict]) -> dict[str, str]:
    """What the intervals of each pair of runs show, by their two places.

    From the results alone, so that it can be made on any clone: the difference of two independent recalls by
    Newcombe's (1998) combination of their intervals.  No verdict, which `compare` alone gives, from ranks:
    each sentence says so, since the two can differ.
    """
    verdicts = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(runs), 2):
        if reasons := why_not_comparable(measured_on(a["test"]), measured_on(b["test"])):
            verdicts[f"{i} {j}"] = f"Not comparable: {'; '.join(reasons)}."
            continue
        sentences = []
        for d, name in DIRECTION_NAMES.items():
            x, y = (run["test"]["protocols"]["standard"][d]["r1"] for run in (a, b))
            change = y["value"] - x["value"]
            low = change - math.hypot(y["value"] - y["low"], x["high"] - x["value"])
            high = change + math.hypot(y["high"] - y["value"], x["value"] - x["low"])
            higher = a["label"] if high < 0 else b["label"] if low > 0 else None
            numbers = f"{100 * change:+.2f} points, 95 % {100 * low:+.2f} to {100 * high:+.2f}"
            verdict = f"{higher} is higher" if higher else "not told apart"
            sentences.append(f"{name} R@1 {verdict} ({numbers})")
        runs_of = f"{b['label']} against {a['label']}"
        verdicts[f"{i} {j}"] = f"{runs_of}, by their intervals alone: {'; '.join(sentences)}."
    return verdicts


def _numbers(metrics: dict) -> list[Table]:
    """Test results of the last run that has them; before any test, validation of the last best epoch."""
    tested = [values["test"] for values in metrics.values() if values["test"]]
    tried = [(run, values) for run, values in metrics.items() if values["best"]]
    if tested:
        return [results_table(tested[-1:])]
    if not tried:
        return []
    run, values = tried[-1]
    best = values["best"][-1]
    where = scope((values["data"] or {"name": "an unknown data set"})["name"], "val", best["val"])
    chosen = "last epoch" if values.get("best_by") == "last" else "best epoch"
    caption = f"{where} · {chosen} {best['epoch']}, not a test result · 95 % intervals · hits/n"
    return [Table(pd.DataFrame(result_rows(run, best["val"])), caption)]


def newest_report() -> Markdown:
    """State, results and links of the local report that was made last, for a page in `notebooks/`.

    Without a report it says how to make one; of one that cannot be read it says why.
    """
    made = sorted(files.REPORTS.glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    if not made:
        return Markdown("There is no report yet. `make report` makes one; then run this cell again.")
    folder = made[-1].parent
    try:
        report = read_stored(made[-1], Report, "make the report again")
        return Markdown(overview(report, [], f"{os.path.relpath(folder, files.NOTEBOOKS)}/"))
    except (OSError, ValueError) as error:
        return Markdown(f"The newest report cannot be read: {plain_text(str(error))}")


QUOTING = ("README.md", "docs/results.md")  # pages that quote published reports
# A quotation stands between two comments, the first of which names the experiment.
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
        ValueError: it is not complete, its `results.json` is damaged, or a page names a path of this machine.
        InUse: the experiment is at work.
        OSError: it could not be copied; what was published before stands.
    """
    source, target = report_folder(experiment), files.PUBLISHED / experiment
    _require(source, "results.json")
    with (
        files.locked(source, f"experiment {experiment!r}"),
        files.locked(files.PUBLISHED, "the published reports"),
    ):
        kept = _files_of(source, experiment)
        pages = [page for page in QUOTING if (files.ROOT / page).exists()]
        texts = {page: (files.ROOT / page).read_text(encoding="utf-8") for page in pages}
        texts = {page: renewed(text, {experiment: source}, page) for page, text in texts.items()}
        _replace(target, source, kept)
        write_index(files.PUBLISHED)
        for page, text in texts.items():
            with files.explained(files.ROOT / page):
                files.write_text_atomic(files.ROOT / page, text)
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
            lines = [line for table in _quoted(report, found[2]) for line in table.markdown()]
        except ValueError as error:
            raise ValueError(
                f"{page} quotes the {found[2]} of {experiment!r}, which {files.shown(path)} does not give:"
                f" {error}"
            ) from None
        return "\n".join([found[1].rstrip(), "\n".join(lines).strip(), found[4]])

    return QUOTED.sub(quote, text)


def _quoted(report: dict, what: str) -> list[Table]:
    """What pages quote of a report: the `results` of its runs, or its `ablation`."""
    if what == "results":
        results = [run["test"] for run in report["metrics"].values() if run["test"]]
        return [results_table(results, protocol) for protocol in protocols_of_results(results)]
    if not report["ablations"]:
        raise ValueError("it has no ablation")
    tables = []
    for record in report["ablations"].values():
        tables += [dataclasses.replace(ablation_verdicts(record), caption=""), ablation_table(record)]
    return tables


def _files_of(source: Path, name: str) -> list[str]:
    """What is published of a report, relative to its folder, after a check that it is complete."""
    report = read_stored(source / "results.json", Report)
    states = {report["state"], *(notebook.get("state") for notebook in report["notebooks"].values())}
    if states != {"complete"} or not report["notebooks"]:
        raise ValueError(
            f"only a complete report is published, found {files.shown(source)} to be {report['state']!r}"
            f" ({report['reason'] or 'no reason given'}); run it to its end: make report EXPERIMENT={name}"
        )
    own = tuple(f"figures/{files.checked_name(notebook, 'notebook')}-" for notebook in report["notebooks"])
    drawn = [f"figures/{path.name}" for path in sorted((source / "figures").glob("*.png"))]
    names = ["results.json", "README.md", *(f"{notebook}.html" for notebook in report["notebooks"])]
    names += [file for file in drawn if file.startswith(own)]  # others were not made by this
    names += ["explore.html"] if report.get("explorer") == "explore.html" else []
    for file in names:
        _require(source, file)
        if not file.endswith(".png"):
            _check_places(source, file)
    return names


# Of a page, what no person reads: embedded pictures and the like.
_ENCODED = re.compile(r"[A-Za-z0-9+/=]{200,}")
_ABSOLUTE = re.compile(r"(?:(?<=file://)|(?<![\w./~<-]))/(\w[\w.-]*)(?:/[^\s\"'<>&\\)\]]*)?")


def _check_places(source: Path, file: str) -> None:
    """Passes if a file of a report names no path of this machine: whoever reads it has no such folder."""
    text = _ENCODED.sub(" ", files.read_bounded(source / file).decode("utf-8", "replace"))
    known = (found for found in _ABSOLUTE.finditer(text) if found[0] != "/dev/null")
    known = [found[0] for found in known if found[1] in ("home", "Users") or Path("/", found[1]).exists()]
    if not (places := list(dict.fromkeys(known))):
        return
    what_to_do = (
        f"link it below the repository (ln -s {shlex.quote(places[0])} data/), give its path from there,"
        f" data/{Path(places[0]).name}, and make the report again"
    )
    if Path(places[0]).is_relative_to(files.ROOT):
        what_to_do = f"render it again: python -m mmlib report {source.name}"
    more = f" and {len(places) - 3:,} more" if places[3:] else ""
    raise ValueError(
        f"{files.shown(source / file)}: expected no path of this machine on what is passed on, found"
        f" {files.printable(', '.join(places[:3]))}{more}; {what_to_do}"
    )


def _is_own(report: Path, file: str) -> bool:
    """Whether a report has this file, and it is no link to another place."""
    return (report / file).is_file() and (report / file).resolve() == report.resolve() / file


def _require(source: Path, file: str) -> None:
    """Passes if a report has this file as its own."""
    if not _is_own(source, file):
        found = "one that lies elsewhere" if (source / file).is_file() else "nothing"
        raise FileNotFoundError(
            f"nothing to publish of {source.name!r}: expected {files.shown(source / file)}, found {found};"
            f" make it with: make report EXPERIMENT={source.name}"
        )


def _replace(target: Path, source: Path, names: list[str]) -> None:
    """Copies the files beside the target, then takes its place; until then the old ones stay."""
    new = target.with_name(".new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        for name in names:
            with files.explained(target / name):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes_atomic(new / name, (source / name).read_bytes())
        files.flush_folder(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    with files.explained(target):
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    files.flush_folder(target.parent)
