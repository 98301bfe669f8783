"""Executed notebooks: what became of them, their parameters, the runs that they name, their marks.

papermill calls a killed notebook "completed", so nothing here believes it: a notebook is complete
when every code cell was executed and none ended in an error.
"""

import ast
import warnings
from pathlib import Path
from typing import Any

import nbformat

from mmlib import files
from mmlib.config import ParameterError
from mmlib.files import checked_name, read_bounded
from mmlib.reporting.display import MARK

STATES = ("failed", "killed", "interrupted", "running", "incomplete", "complete")  # the worst first


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


def has_private(notebook: nbformat.NotebookNode) -> bool:
    """Whether any output of the notebook is marked private."""
    return any(is_private for _, is_private in map(mark_of, outputs_of(notebook)))


def notebook_state(notebook: nbformat.NotebookNode) -> tuple[str, str | None]:
    """State of an executed notebook by its cells alone, and the reason where it is not complete.

    Raises:
        ValueError: the mark that says why it stopped is damaged.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
                if output.ename == "KeyboardInterrupt":
                    return "interrupted", f"stopped by the user in {where}"
                return "failed", f"{where}: {output.ename}: {output.evalue}".strip(": ")
    if MARK in notebook.metadata:
        mark = notebook.metadata[MARK]
        state, reason = (mark.get("state"), mark.get("reason")) if isinstance(mark, dict) else (None, None)
        if state not in STATES or not (reason is None or isinstance(reason, str)):
            raise ValueError(
                f"expected a state and a reason in its metadata, found {mark!r:.100}; run it again"
            )
        return state, reason
    for number, cell in enumerate(code, 1):
        if cell.execution_count is None:
            where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
            return "killed", f"ended without an error at {where}: the process was killed, or is still at work"
    return "complete", None


def parameters_of(path: Path, notebook: nbformat.NotebookNode) -> dict:
    """Names and values of the parameters that an executed copy ran with, overrides included.

    Raises:
        FileNotFoundError: there is no such copy.
        ValueError: it has no proper parameters cell, or no mapping of parameters in its metadata.
    """
    injected = notebook.metadata.get("papermill", {})
    injected = injected.get("parameters", {}) if isinstance(injected, dict) else None
    if not isinstance(injected, dict):
        raise ValueError(f"{path.name}: expected papermill's parameters in its metadata; run it again")
    return cell_parameters(path, notebook) | injected


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


def outputs_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """All outputs of a notebook, in order."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def mark_of(output: nbformat.NotebookNode) -> tuple[str | None, bool]:
    """What `mmlib.reporting.display` wrote beside an output: its name, or None, and whether it is private.

    Raises:
        ValueError: the name is none that a file may have, or the mark is damaged.
    """
    mark = output.get("metadata", {}).get(MARK, {})
    if not isinstance(mark, dict):  # it might have said that the output is private
        raise ValueError(f"expected a name and whether it is private beside an output, found {mark!r:.100}")
    name = mark.get("name")
    return checked_name(name, "figure name") if name else None, bool(mark.get("private"))
