"""An experiment: its notebooks in order, resumed, then rendered.

The kernel is this very interpreter, without a person's own settings: Jupyter would take the first kernel
called `python3` that it finds, IPython runs a profile's startup files, and matplotlib reads a matplotlibrc.
None of them may change or end a run.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from traitlets import Unicode

import mmlib
from mmlib import files
from mmlib.config import (
    CONFIG_OF_NOTEBOOK,
    AblationConfig,
    ContinueConfig,
    ParameterError,
    TrainConfig,
    build,
    continued,
    read_values,
    read_yaml,
    refuse_unread,
    required,
)
from mmlib.files import explained, locked, nearest, read_json, write_json, write_text_atomic
from mmlib.reporting.notebooks import (
    cell_parameters,
    experiment_pages,
    notebook_state,
    read_notebook,
    report_folder,
    runs_of,
    runs_state,
    section_of,
)
from mmlib.reporting.publish import write_index
from mmlib.reporting.report import write_report
from mmlib.reporting.style import MARK
from mmlib.training.ablation_plan import plan_grid
from mmlib.training.runs import run_folder


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters that it gets.

    Attributes:
        name: of the notebook and of its YAML, without ending.
        notebook: its source.
        parameters: what the YAML and the overrides set, as the notebook's config reads it.
        known: the parameters in the notebook's cell.
    """

    name: str
    notebook: Path
    parameters: dict[str, Any]
    known: dict[str, Any]

    @property
    def accepted(self) -> Iterable[str]:
        """Names that the notebook takes: all fields of its config; those of its cell if it has no config."""
        config = CONFIG_OF_NOTEBOOK.get(self.name)
        return config.model_fields if config else self.known


def plan(params_dir: str | Path, overrides: Mapping[str, Any]) -> tuple[str, list[Step]]:
    """The experiment's name and its steps, one for each YAML file, in the order of their names.

    Args:
        params_dir: folder of `params/`, or its name.
        overrides: parameters by name, given to every notebook that has them.

    Raises:
        FileNotFoundError: no such folder, no YAML in it, or no notebook of a YAML's name.
        ParameterError: a name that no report can have, a YAML that cannot be read or is no mapping, a
            notebook without a proper parameters cell, or a parameter that no notebook has.
    """
    folder = _folder(params_dir)
    found = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"{files.shown(folder)}: expected one YAML file per notebook, such as 01_train.yaml, found none"
        )
    steps = [_step(file, overrides) for file in found]
    known = {name for step in steps for name in step.accepted}
    for name in overrides:
        if name not in known:
            raise ParameterError(
                f"no notebook of {folder.name!r} has a parameter {name!r}{nearest(name, known)};"
                " nothing was executed"
            )
    return report_folder(folder.name).name, steps


def check(steps: Iterable[Step]) -> None:
    """Passes if the steps' parameters make their configs and are read, and their data are there.

    It is asked before anything is executed: a report that stands is not replaced by one of a run that could
    never start.

    Raises:
        FileNotFoundError: no folder where a step expects its data set.
        ParameterError: names the notebook and the parameters, with what was expected or would read them.
    """
    planned: dict[str, TrainConfig] = {}
    for step in steps:
        config_class, values = CONFIG_OF_NOTEBOOK.get(step.name), step.known | step.parameters
        if config_class is None or not required(config_class) <= values.keys():
            continue  # a notebook that reads its parameters in a way of its own
        try:
            config = build(config_class, values)
            if isinstance(config, TrainConfig):
                refuse_unread(config, TrainConfig.model_fields)
                planned[config.run] = config
            elif isinstance(config, ContinueConfig) and config.parent in planned:
                config = planned[config.run] = continued(config, planned[config.parent])
            elif isinstance(config, AblationConfig):
                config = plan_grid(config)[0].config
        except ParameterError as error:
            raise ParameterError(f"{step.name}: {error}\nNothing was executed.") from None
        if not isinstance(config, TrainConfig) or config.dataset in ("shapes", "shards"):
            continue
        if not files.from_root(config.folder).is_dir():
            raise FileNotFoundError(
                f"{step.name}: expected the folder {config.folder} of data set {config.dataset!r}, found"
                f" none; unpack or link it there, or give its folder: -p data_root /path/to/{config.dataset}."
                " Nothing was executed"
            )


def _folder(params_dir: str | Path) -> Path:
    given = files.from_root(params_dir)
    if given.is_file():
        raise ParameterError(
            f"expected the folder of an experiment, found the file {files.shown(given)}; give its folder:"
            f" {files.shown(given.parent)}, or train from it alone: python -m mmlib train {params_dir}"
        )
    for folder in (given, files.PARAMS / str(params_dir)):
        if folder.is_dir():
            return folder.resolve()
    there = sorted(p.name for p in files.PARAMS.iterdir() if p.is_dir()) if files.PARAMS.is_dir() else []
    known = f"; there are: {', '.join(there)}" if there else ""
    raise FileNotFoundError(
        f"no experiment {given.name!r}: expected the folder {files.shown(files.PARAMS / given.name)}"
        f"{nearest(given.name, there)}{known}"
    )


def _step(file: Path, overrides: Mapping[str, Any]) -> Step:
    config, text = CONFIG_OF_NOTEBOOK.get(file.stem), read_yaml(file)
    source = files.NOTEBOOKS / f"{file.stem}.ipynb"
    if not source.is_file():
        there = [p.stem for p in files.NOTEBOOKS.glob("*.ipynb")]
        raise FileNotFoundError(
            f"{files.shown(file)} needs the notebook {files.shown(source)}, which does not exist"
            f"{nearest(file.stem, there)}"
        )
    step = Step(file.stem, source, {}, cell_parameters(source, read_notebook(source)))
    for name in text:
        if name not in step.accepted:
            raise ParameterError(
                f"{files.shown(file)} sets {name!r}, which {source.name} does not have"
                f"{nearest(name, step.accepted)}"
            )
    text |= {name: value for name, value in overrides.items() if name in step.accepted}
    return replace(step, parameters=read_values(config, text) if config else text)


@contextlib.contextmanager
def own_kernel() -> Iterator[type[AsyncKernelManager]]:
    """A class for nbclient's `kernel_manager_class`, whose kernels run `sys.executable`, whatever their name.

    The kernel's settings and its connection file lie in a temporary folder, which is gone afterwards.
    What the kernel starts inherits the same environment.
    """
    with tempfile.TemporaryDirectory(prefix="mmlib-kernel-", ignore_cleanup_errors=True) as folder:
        settings = {
            "IPYTHONDIR": folder,
            "JUPYTER_CONFIG_DIR": folder,
            "JUPYTER_PATH": "",
            "PYTHONSTARTUP": "",
            "MATPLOTLIBRC": os.devnull,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }

        class OwnKernel(AsyncKernelManager):
            connection_file = Unicode(str(Path(folder) / "connection.json"))
            kernel_spec = KernelSpec(**get_kernel_dict(), env=settings)

        yield OwnKernel


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
        FileNotFoundError, ParameterError: as `mmlib.pipeline.plan`, or data that are not where
            an experiment expects them; nothing was executed.
        InUse: another process runs or renders this experiment; nothing was touched.
        OSError: the report's folder cannot be written to.
    """
    experiment, steps = plan(params_dir, overrides or {})
    check(steps)
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
                on_cell_start=_announcer(step),
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


def _announcer(step: Step) -> Callable[..., None]:
    """A hook that prints a line when a code cell starts."""
    source = read_notebook(step.notebook)
    code = [cell for cell in source.cells if cell.cell_type == "code" and cell.source.strip()]
    lines = {
        cell.get("id"): f"{step.name} {number}/{len(code)}{section_of(source, cell)}"
        for number, cell in enumerate(code, 1)
    }

    def announce(cell, cell_index):
        if line := lines.get(cell.get("id")):  # none for papermill's own
            _say(line)

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
