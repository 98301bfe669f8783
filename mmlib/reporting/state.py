"""What became of an experiment: its notebooks, told from what they and their runs left behind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmlib import files
from mmlib.files import checked_name, is_name
from mmlib.reporting.notebook import STATES, notebook_state, parameters_of, read_notebook, runs_of
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


@dataclass(frozen=True)
class Page:
    """One notebook of an experiment, as the navigation and the badges know it.

    Attributes:
        name: of the notebook, without ending.
        state: `complete`, or what else became of it.
        reason: why it is not complete, or None.
        executed: its executed copy, or None if it was never run.
        runs: names of the runs that it trained or read.
    """

    name: str
    state: str
    reason: str | None = None
    executed: Path | None = None
    runs: tuple[str, ...] = ()

    @property
    def href(self) -> str | None:
        """Address of the page from its neighbours; None where there is no page."""
        return f"{self.name}.html" if self.executed else None


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
        ValueError: the name cannot be that of a folder, see `checked_name`, or is taken in `reports/`.
    """
    if checked_name(experiment, "experiment").casefold() in (files.PUBLISHED.name, "index.html"):
        raise ValueError(f"experiment: {experiment!r} is taken, for the published reports or the index")
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
        record = read[name].record
        read |= {member: read_run(member) for member in (members(record) if record else ())}
        for run, left in read.items():
            reason = left.reason
            if left.state != "complete":
                reason = f"run {run}: {reason}" if reason else f"run {run} is {left.state}"
            states.append((left.state, reason))
    return worst(states)


def read_run(run: str) -> RunFiles:
    """Reads what a report says of a run; nothing is written, and what is damaged stops nothing."""
    found = RunFiles(*run_state(run))

    def read(reader: Callable[[str], Any], otherwise: Any) -> Any:
        try:
            return reader(run)
        except (OSError, ValueError) as error:
            if not (found.state == "running" and isinstance(error, FileNotFoundError)):  # yet to come
                found.problems.append(str(error))
            return otherwise

    if not is_name(run) or not run_folder(run).is_dir():
        return found  # never begun
    found.record = read(read_ablation, None)
    if found.record is None and not found.problems:
        found.history = read(read_history if found.state == "complete" else _history_if_any, [])
        found.best_by = read(stored_choice, "rsum")
        found.environment = read(stored_environment, {})
        found.result = read(_result_if_any, None)
    read(read_status, None)
    if found.state == "complete" and not (found.record or found.history or found.problems):
        path = files.shown(run_folder(run) / "history.jsonl")
        found.problems.append(f"{path} is damaged: expected the epochs of a complete run, found none")
    if found.state == "complete" and found.problems:
        found.state, found.reason = "failed", found.problems[0]
    return found


def _history_if_any(run: str) -> list[dict]:
    try:
        return read_history(run)
    except FileNotFoundError:  # it comes with the first epoch
        return []


def _result_if_any(run: str) -> dict | None:
    try:
        return read_result(run)
    except FileNotFoundError:  # it comes with 03_evaluate, or never
        return None


def _page(executed: Path) -> Page:
    name = executed.stem
    if not is_name(name):
        return Page(name, "failed", f"expected a name for a notebook, found {executed.name!r}; rename it")
    if not executed.exists():
        return Page(name, "incomplete", f"{name} has not been run")
    try:
        notebook = read_notebook(executed)
        runs = runs_of(parameters_of(executed, notebook))
        state, reason = notebook_state(notebook)
    except (OSError, ValueError) as error:
        reason = str(error)
        return Page(name, "failed", reason if name in reason else f"{executed.name}: {reason}")
    if state == "complete":
        state, reason = runs_state(runs)
    return Page(name, state, reason, executed, runs)
