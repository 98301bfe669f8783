"""Executed notebooks and the runs behind them: reading, parameters, state."""

import ast
import contextlib
import json
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat

from mmlib import files
from mmlib.config import CONFIG_OF_NOTEBOOK, ParameterError, read_values, read_yaml
from mmlib.files import NAME_RULE, checked_name, is_name, printable, read_bounded
from mmlib.reporting.tables import MARK
from mmlib.training.ablation import members, read_ablation
from mmlib.training.runs import (
    read_history,
    read_result,
    read_status,
    run_folder,
    run_state,
    stored_choice,
    stored_environment,
)
from mmlib.training.stored import checked, fields

STATES = ("failed", "killed", "interrupted", "running", "incomplete", "complete")  # the worst first
_Stopped = fields(may_lack="reason", state=Literal[STATES], reason=str | None)
_Papermill = fields(may_lack="parameters", parameters=dict)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook, checked against the format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a notebook.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a notebook at {files.shown(path)}, found nothing; run it first")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what older versions left out
            notebook = nbformat.reads(read_bounded(path).decode(), as_version=4)
            nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds for one cause: this is no notebook
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{path.name} cannot be read as a notebook ({reason}); run it again") from None
    return notebook


def notebook_state(notebook: nbformat.NotebookNode) -> tuple[str, str | None]:
    """State of an executed notebook by its cells alone, and the reason where it is not complete.

    Raises:
        ValueError: the mark that says why it stopped is damaged.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, 1):
        where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
        for output in (output for output in cell.outputs if output.output_type == "error"):
            if output.ename == "KeyboardInterrupt":
                return "interrupted", f"stopped by the user in {where}"
            return "failed", f"{where}: {output.ename}: {output.evalue}".strip(": ")
    if MARK in notebook.metadata:
        mark = checked(notebook.metadata[MARK], _Stopped, "what says why it stopped", "run it again")
        return mark["state"], mark.get("reason")
    for number, cell in enumerate(code, 1):
        if cell.execution_count is None:
            where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
            return "killed", f"ended without an error at {where}: the process was killed, or is still at work"
    return "complete", None


def cell_parameters(path: Path, notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Names and values in the cell that is tagged `parameters`; none where there is no such cell.

    Raises:
        ParameterError: a line in it is not `name: type = literal`.
    """
    tagged = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    try:
        return {line.target.id: ast.literal_eval(line.value) for line in ast.parse("\n".join(tagged)).body}
    except (AttributeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ParameterError(
            f"{path.name}: expected `name: type = literal` lines in the parameters cell, found another"
            f" ({str(error) or type(error).__name__}); run it again"
        ) from None


def runs_of(parameters: dict) -> tuple[str, ...]:
    """The runs that a notebook with these parameters trains (`run`) or reads (`runs`).

    Raises:
        ValueError: one of them is no name for a run.
    """
    runs = parameters.get("runs") or []
    if not isinstance(runs, list | tuple):
        runs = [runs]  # as a config reads it
    own = [parameters["run"]] if parameters.get("run") else []
    return tuple(checked_name(run, "run") for run in (*own, *runs))


def section_of(notebook: nbformat.NotebookNode, cell: nbformat.NotebookNode) -> str:
    """The heading above a cell, in brackets, for people who look for it."""
    heading = ""
    for other in notebook.cells:
        if other is cell:
            break
        if other.cell_type == "markdown" and other.source.lstrip().startswith("#"):
            heading = other.source.lstrip().splitlines()[0].lstrip("# ")
    return f" ({heading})" if heading else ""


def mark_of(output: nbformat.NotebookNode) -> tuple[str | None, bool]:
    """What `mmlib.reporting.style` wrote beside an output: its name, or None, and whether it is private.

    Raises:
        ValueError: the name is none that a file may have, or the mark is damaged.
    """
    mark = output.get("metadata", {}).get(MARK, {})
    if not isinstance(mark, dict):  # it might have said that the output is private
        raise ValueError(f"expected a name and whether it is private beside an output, found {mark!r:.100}")
    name = mark.get("name")
    return checked_name(name, "figure name") if name else None, bool(mark.get("private"))


@dataclass(frozen=True)
class Page:
    """One notebook of an experiment, as the navigation and the badges know it.

    Attributes:
        name: of the notebook, without ending.
        state: `complete`, or what else became of it.
        reason: why it is not complete, or None.
        executed: its executed copy, or None if it was never run or cannot be shown.
        runs: names of the runs that it trained or read.
    """

    name: str
    state: str
    reason: str | None = None
    executed: Path | None = None
    runs: tuple[str, ...] = ()


@dataclass
class RunFiles:
    """What the files of a run say, as far as they can be read.

    Attributes:
        state, reason: of `run_state`; a complete run whose files are damaged has failed.
        record: of an ablation, which has no other files; None for any other run.
        history: its epochs.
        best_by: the validation metric that chooses among them.
        environment: what it was started in.
        result: its evaluation, or None.
        problems: a sentence for each file that cannot be read.
    """

    state: str
    reason: str | None
    record: dict | None = None
    history: list[dict] = field(default_factory=list)
    best_by: str = "rsum"
    environment: dict = field(default_factory=dict)
    result: dict | None = None
    problems: list[str] = field(default_factory=list)


def report_folder(experiment: str) -> Path:
    """Where the report of an experiment lies, or will lie.

    Raises:
        ParameterError: the name cannot be that of a folder, or is taken in `reports/`.
    """
    if not is_name(experiment) or experiment.casefold() in (files.PUBLISHED.name, "index.html"):
        raise ParameterError(
            f"experiment: expected {NAME_RULE}, and not the name of the published reports or the index, found"
            f" {printable(repr(experiment))[:200]}; rename its folder"
        )
    return files.REPORTS / experiment


def experiment_pages(experiment: str) -> tuple[Page, ...]:
    """The notebooks of an experiment in order, from its parameter files and its executed copies.

    Raises:
        FileNotFoundError: there are neither.
        ValueError: the name cannot be that of a folder.
    """
    executed = report_folder(experiment) / "executed"
    names = {p.stem for p in (files.PARAMS / experiment).glob("*.yaml")}
    names |= {p.stem for p in executed.glob("*.ipynb")}
    if not names:
        raise FileNotFoundError(
            f"nothing to report on {experiment!r}: expected {files.shown(files.PARAMS / experiment)}/*.yaml"
            f" or {files.shown(executed)}/*.ipynb; run it with: make report EXPERIMENT={experiment}"
        )
    return tuple(_page(executed / f"{name}.ipynb") for name in sorted(names))


def command_of(experiment: str, pages: Iterable[Page]) -> str:
    """What makes the whole report: `make report`, with parameters that were given beside the YAML files."""
    given: dict[str, Any] = {}
    for page in (page for page in pages if page.executed):
        file, config = files.PARAMS / experiment / f"{page.name}.yaml", CONFIG_OF_NOTEBOOK.get(page.name)
        written: dict[str, Any] = {}
        with contextlib.suppress(OSError, ParameterError):  # then all of them were given
            written = read_yaml(file)
        written = read_values(config, written) if config else written
        for name, value in parameters_of(read_notebook(page.executed)).items():
            if name != "overwrite" and (name not in written or written[name] != value):
                given[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    arguments = shlex.join(word for name, text in given.items() for word in ("-p", name, text))
    command = f"make report EXPERIMENT={experiment}"
    return f"{command} ARGS={shlex.quote(arguments.replace('$', '$$'))}" if given else command


def parameters_of(executed: nbformat.NotebookNode) -> dict[str, Any]:
    """The parameters that papermill gave to a notebook."""
    return executed.metadata.get("papermill", {}).get("parameters") or {}


def worst(parts: list[tuple[str, str | None]]) -> tuple[str, str | None]:
    """The worst of several (state, reason) pairs, the first of equals; `complete` for none."""
    return min(parts, key=lambda part: STATES.index(part[0]), default=("complete", None))


def runs_state(runs: tuple[str, ...]) -> tuple[str, str | None]:
    """The worst state of several runs, with the run's name in the reason.

    An ablation counts with all of its runs that had completed.
    """
    states = []
    for name in runs:
        read = {name: read_run(name)}
        if read[name].record:
            read |= {member: read_run(member) for member in members(read[name].record)}
        for run, left in read.items():
            reason = f"run {run}: {left.reason}" if left.reason else f"run {run} is {left.state}"
            states.append((left.state, None if left.state == "complete" else reason))
    return worst(states)


def read_run(run: str) -> RunFiles:
    """Reads what a report says of a run; nothing is written, and what is damaged stops nothing."""
    found = RunFiles(*run_state(run))
    if not is_name(run) or not run_folder(run).is_dir():
        return found  # never begun
    begun = found.state != "running"  # otherwise files are yet to come

    def read(reader, file: str, otherwise: Any, needed: bool) -> Any:
        try:
            return reader(run) if needed or (run_folder(run) / file).exists() else otherwise
        except (OSError, ValueError) as error:
            found.problems.append(str(error))
            return otherwise

    found.record = read(read_ablation, "ablation.json", None, needed=False)
    if found.record is None and not found.problems:
        found.history = read(read_history, "history.jsonl", [], needed=found.state == "complete")
        found.best_by = read(stored_choice, "config.json", "rsum", needed=begun)
        found.environment = read(stored_environment, "environment.json", {}, needed=begun)
        found.result = read(read_result, "results.json", None, needed=False)  # of 03_evaluate
    read(read_status, "status.json", None, needed=begun)
    if found.state == "complete" and not (found.record or found.history or found.problems):
        path = files.shown(run_folder(run) / "history.jsonl")
        found.problems.append(f"{path} is damaged: expected the epochs of a complete run, found none")
    if found.state == "complete" and found.problems:
        found.state, found.reason = "failed", found.problems[0]
    return found


def _page(executed: Path) -> Page:
    name = executed.stem
    if not is_name(name):
        return Page(name, "failed", f"expected a name for a notebook, found {executed.name!r}; rename it")
    if not executed.exists():
        return Page(name, "incomplete", f"{name} has not been run")
    try:
        notebook = read_notebook(executed)
        injected = notebook.metadata.get("papermill", {})
        injected = checked(injected, _Papermill, "papermill's mark", "run it again").get("parameters") or {}
        runs = runs_of(cell_parameters(executed, notebook) | injected)
        state, reason = notebook_state(notebook)
    except (OSError, ValueError) as error:
        reason = str(error)
        return Page(name, "failed", reason if name in reason else f"{executed.name}: {reason}")
    if state == "complete":
        state, reason = runs_state(runs)
    return Page(name, state, reason, executed, runs)
