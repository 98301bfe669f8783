"""Executed notebooks: what became of them, their parameters, the runs that they name, their marks.

papermill calls a killed notebook "completed", so nothing here believes it: a notebook is complete
when every code cell was executed and none ended in an error.
"""

from pathlib import Path

import nbformat

from mmlib import paths
from mmlib.params import notebook_defaults
from mmlib.reporting.display import MARK


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook, checked against the format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a notebook.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a notebook at {paths.shown(path)}, found nothing; run it first")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat raises many kinds for one cause: this is no notebook
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{path.name} cannot be read as a notebook ({reason}); run it again") from None
    return notebook


def has_private(notebook: nbformat.NotebookNode) -> bool:
    """Whether any output of the notebook is marked private."""
    return any(mark_of(output).get("private") for output in outputs_of(notebook))


def notebook_state(notebook: nbformat.NotebookNode) -> tuple[str, str | None]:
    """State of an executed notebook by its cells alone, and the reason where it is not complete."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
                if output.ename == "KeyboardInterrupt":
                    return "interrupted", f"stopped by the user in {where}"
                return "failed", f"{where}: {output.ename}: {output.evalue}".strip(": ")
    if MARK in notebook.metadata:
        return notebook.metadata[MARK]["state"], notebook.metadata[MARK]["reason"]
    for number, cell in enumerate(code, 1):
        if cell.execution_count is None:
            where = f"cell {number} of {len(code)}{section_of(notebook, cell)}"
            return "killed", f"ended without an error at {where}: the process was killed, or is still at work"
    return "complete", None


def parameters_of(path: Path, notebook: nbformat.NotebookNode) -> dict:
    """Names and values of the parameters that an executed copy ran with, overrides included.

    Raises:
        FileNotFoundError, ParameterError: as `mmlib.params.notebook_defaults`.
    """
    return notebook_defaults(path) | dict(notebook.metadata.get("papermill", {}).get("parameters", {}))


def runs_of(parameters: dict) -> tuple[str, ...]:
    """The runs that a notebook with these parameters trains (`run`) or reads (`runs`)."""
    named = [parameters["run"]] if parameters.get("run") else []
    return (*named, *(parameters.get("runs") or []))


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


def mark_of(output: nbformat.NotebookNode) -> dict:
    """What `mmlib.reporting.display` wrote beside a figure: its name and whether it is private."""
    return output.get("metadata", {}).get(MARK, {})
