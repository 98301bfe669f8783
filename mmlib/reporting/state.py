"""What became of an experiment: its notebooks, told from what they and their runs left behind."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from mmlib import paths
from mmlib.reporting.notebook import notebook_state, parameters_of, read_notebook, runs_of
from mmlib.training.ablation import members, read_ablation
from mmlib.training.runs import run_state

# Worst first: an experiment is as good as its worst part.
STATES = ("failed", "killed", "interrupted", "running", "incomplete", "complete")


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


def experiment_pages(experiment: str) -> tuple[Page, ...]:
    """The notebooks of an experiment in order, from its parameter files and its executed copies.

    Raises:
        FileNotFoundError: there are neither.
    """
    executed = paths.REPORTS / experiment / "executed"
    names = {p.stem for p in (paths.PARAMS / experiment).glob("*.yaml")}
    names |= {p.stem for p in executed.glob("*.ipynb")}
    if not names:
        raise FileNotFoundError(
            f"nothing to report on {experiment!r}: expected {paths.shown(paths.PARAMS / experiment)}/*.yaml"
            f" or {paths.shown(executed)}/*.ipynb; run it with: make report EXPERIMENT={experiment}"
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
    for run in (*runs, *(member for name in runs for member in members_of(name))):
        state, reason = run_state(run)
        if state != "complete":
            reason = f"run {run}: {reason}" if reason else f"run {run} is {state}"
        states.append((state, reason))
    return worst(states)


def record_of(run: str) -> dict | None:
    """The record of an ablation; None if the run of this name is none, or its record cannot be read."""
    with contextlib.suppress(ValueError):
        return read_ablation(run)
    return None


def members_of(run: str) -> tuple[str, ...]:
    """The completed runs of an ablation; none for any other run."""
    record = record_of(run)
    return members(record) if record else ()


def _page(executed: Path) -> Page:
    name = executed.stem
    if not executed.exists():
        return Page(name, "incomplete", f"{name} has not been run")
    try:
        notebook = read_notebook(executed)
        runs = runs_of(parameters_of(executed, notebook))
    except ValueError as error:
        return Page(name, "failed", str(error))
    state, reason = notebook_state(notebook)
    if state == "complete":
        state, reason = runs_state(runs)
    return Page(name, state, reason, executed, runs)
