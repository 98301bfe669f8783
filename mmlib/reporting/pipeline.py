"""Runs an experiment: its notebooks in order, each executed copy kept, all rendered at the end.

Called again after an interruption it goes on: a notebook whose copy is whole and whose runs
are complete is not executed again, as long as its source, its parameters and the library are unchanged.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError

import mmlib
from mmlib import files
from mmlib.files import explained, read_json, write_json, write_text_atomic
from mmlib.locks import locked
from mmlib.reporting.display import MARK
from mmlib.reporting.index import write_index
from mmlib.reporting.kernel import own_kernel
from mmlib.reporting.notebook import notebook_state, read_notebook, runs_of, section_of
from mmlib.reporting.plan import Step, check_data_roots, check_parameters, plan
from mmlib.reporting.report import write_report
from mmlib.reporting.state import experiment_pages, report_folder, runs_state
from mmlib.training.runs import run_folder

EXIT_COMPLETE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

_say = partial(print, flush=True)  # a line at once, into a pipe too: this is what a terminal follows


def run_experiment(
    params_dir: str | Path, overrides: Mapping[str, Any] | None = None, overwrite: bool = False
) -> int:
    """Runs an experiment's notebooks, renders its report and the index, and says where to look.

    Prints a line per cell and what the cells print.  A failing notebook stops the experiment; its
    report is rendered with what there is.

    Args:
        params_dir: folder of `params/`, or its name.
        overrides: parameters by name, given to every notebook that has them; they beat the YAML's.
        overwrite: execute everything anew, with `overwrite=True` for notebooks that train.

    Returns:
        Exit code: 0 complete, 1 failed, 130 interrupted.

    Raises:
        FileNotFoundError, ParameterError: as `mmlib.reporting.plan.plan`, or data that are not where
            an experiment expects them; nothing was executed.
        InUse: another process runs or renders this experiment; nothing was touched.
        OSError: the report's folder cannot be written to.
    """
    experiment, steps = plan(params_dir, overrides or {})
    check_parameters(steps)
    check_data_roots(steps)
    with _alone(experiment):
        return _run_to_the_end(experiment, steps, overwrite)


def render_again(experiment: str) -> Path:
    """Renders what an experiment's notebooks and runs left, and the index; executes nothing.

    Returns:
        The report's folder.

    Raises:
        FileNotFoundError: the experiment has neither parameters nor executed notebooks.
        InUse: the experiment is at work, which renders its report itself at its end.
        OSError: the report's folder cannot be written to.
    """
    experiment_pages(experiment)  # an unknown one leaves no folder behind
    with _alone(experiment):
        report = write_report(experiment)
    write_index()
    return report


def _alone(experiment: str):
    return locked(report_folder(experiment), f"experiment {experiment!r}")


def _run_to_the_end(experiment: str, steps: list[Step], overwrite: bool) -> int:
    executed = report_folder(experiment) / "executed"
    try:
        code = _run_steps(steps, executed, overwrite)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        _say("interrupted; the same command goes on where this stopped")
    report = write_report(experiment)
    index = write_index()
    pages = [report / f"{step.name}.html" for step in steps if (report / f"{step.name}.html").exists()]
    if pages:
        _say(f"report: {files.shown(pages[-1])}")
    _say(f"index:  {files.shown(index)}")
    return code


def _run_steps(steps: list[Step], executed: Path, overwrite: bool) -> int:
    finished = _read_finished(executed)
    redone, retrained = overwrite, False
    for step in steps:
        copy = executed / f"{step.name}.ipynb"
        digest = _digest(step)
        if not redone and finished.get(step.name) == digest and _is_whole(step, copy):
            _say(f"{step.name}: complete and unchanged, not executed again")
            continue
        redone = True
        # A run that a later notebook completed before comes from weights that are no more.
        outdated = overwrite or (retrained and step.name in finished)
        before = _training_stamp(step)
        finished.pop(step.name, None)
        write_json(executed / "state.json", finished)
        started = time.monotonic()
        state, reason = _execute(step, copy, outdated)
        retrained = retrained or _training_stamp(step) != before
        if state != "complete":
            _say(f"{step.name}: {state}" + (f": {reason}" if reason else ""))
            return EXIT_INTERRUPTED if state == "interrupted" else EXIT_FAILED
        _say(f"{step.name}: complete in {time.monotonic() - started:.0f} s")
        finished[step.name] = digest
        write_json(executed / "state.json", finished)
    return EXIT_COMPLETE


def _execute(step: Step, copy: Path, outdated: bool) -> tuple[str, str | None]:
    """Executes one notebook; its state is told from the copy and the run folders, not by papermill."""
    parameters = dict(step.parameters)
    if outdated and "overwrite" in step.accepted:
        parameters["overwrite"] = True
    copy.parent.mkdir(parents=True, exist_ok=True)
    if copy.is_symlink():  # papermill would write where it leads
        copy.unlink()
    # It warns of parameters that are not in the notebook's cell; `plan` has checked every name.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    stopped: tuple[str, str] | None = None
    try:
        with explained(copy), own_kernel() as kernel_manager_class:
            papermill.execute_notebook(
                _unformatted(step.notebook),
                _unformatted(copy),
                parameters=parameters,
                cwd=str(files.ROOT),
                progress_bar=False,
                stdout_file=sys.stdout,
                on_cell_start=_announcer(step, bool(parameters)),
                kernel_manager_class=kernel_manager_class,
                # The kernel's own log: a warning about local sockets at each start, a traceback at Ctrl-C.
                extra_arguments=["--log-level=CRITICAL"],
            )
    except papermill.PapermillExecutionError:
        pass  # the copy has the error, and the cell
    except DeadKernelError:
        stopped = "killed", "its process ended without a word: killed, or out of memory"
    except KeyboardInterrupt:
        stopped = "interrupted", "stopped by the user"
    notebook = read_notebook(copy)
    if stopped:
        notebook.metadata[MARK] = {"state": stopped[0], "reason": stopped[1]}
        with explained(copy):
            write_text_atomic(copy, nbformat.writes(notebook) + "\n")
    state, reason = notebook_state(notebook)
    if state != "complete":
        return state, reason
    return runs_state(runs_of(step.known | step.parameters))


def _unformatted(path: Path) -> str:
    """The path as papermill takes it, which reads `{name}` in it as a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _announcer(step: Step, injected: bool):
    """A hook that prints a line when a code cell starts."""
    source = read_notebook(step.notebook)
    code = [cell for cell in source.cells if cell.cell_type == "code" and cell.source.strip()]
    sections = {cell.get("id"): section_of(source, cell) for cell in code}
    total, started = len(code) + injected, 0

    def announce(cell, cell_index):
        nonlocal started
        if cell.cell_type == "code" and cell.source.strip():
            started += 1
            heading = sections.get(cell.get("id"), " (parameters of this experiment)")
            _say(f"{step.name} {started}/{total}{heading}")

    return announce


def _is_whole(step: Step, copy: Path) -> bool:
    try:
        state, _ = notebook_state(read_notebook(copy))
    except (FileNotFoundError, ValueError):
        return False
    return state == "complete" and runs_state(runs_of(step.known | step.parameters))[0] == "complete"


def _training_stamp(step: Step) -> str | None:
    """Changes when a notebook trains its run; one that only shows a complete run leaves it."""
    run = (step.known | step.parameters).get("run")
    status = run_folder(run) / "status.json" if run else None
    return status.read_text(encoding="utf-8") if status and status.is_file() else None


def _digest(step: Step) -> str:
    """Equal if and only if the notebook's cells, its parameters and the library's source are."""
    cells = [(cell.cell_type, cell.source) for cell in read_notebook(step.notebook).cells]
    text = json.dumps([cells, step.parameters, _library_digest()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _library_digest() -> str:
    library = Path(mmlib.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(library.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_finished(executed: Path) -> dict:
    """Digests of the notebooks that were executed to the end; none if the file is missing or damaged."""
    try:
        return read_json(executed / "state.json")
    except (FileNotFoundError, ValueError):
        return {}
