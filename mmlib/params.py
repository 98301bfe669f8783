"""Where parameters come from: the YAML files of `params/`, and the parameters cells of the notebooks."""

import ast
from pathlib import Path
from typing import Any

from mmlib import paths
from mmlib.config import ParameterError
from mmlib.config.yaml_text import MAX_BYTES, parse_yaml
from mmlib.files import parse_json, read_bounded


def read_yaml(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file, as text: their types decide how it is read, not YAML.

    Raises:
        FileNotFoundError: there is no such file; names the parameter files beside it.
        ParameterError: as `mmlib.config.yaml_text.parse_yaml`, or no mapping of names to values.
    """
    path = paths.from_root(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("[!.]*.y*ml")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no parameter file {paths.shown(path)}; "
            + (f"beside it there are {', '.join(near)}" if near else "its folder holds none")
        )
    try:
        values = parse_yaml(read_bounded(path, MAX_BYTES), paths.shown(path)) or {}
    except ValueError as error:
        raise ParameterError(str(error)) from None
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else "text"
        raise ParameterError(f"{paths.shown(path)}: expected `name: value` lines, found {found}")
    return values


def notebook_defaults(path: Path) -> dict[str, Any]:
    """The parameters of a notebook with their defaults, from its cell tagged `parameters`.

    Raises:
        FileNotFoundError: there is no such notebook.
        ParameterError: it has no such cell, or a line in it is not `name: type = literal`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {paths.shown(path)}")
    try:
        cells = parse_json(read_bounded(path), paths.shown(path))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        sources = ["".join(cell["source"]) for cell in tagged]
    except (KeyError, TypeError, AttributeError):
        raise ParameterError(f"{paths.shown(path)} is damaged: expected a notebook's cells") from None
    except ValueError as error:
        raise ParameterError(str(error)) from None
    if len(tagged) != 1:
        raise ParameterError(
            f"{paths.shown(path)}: expected one cell tagged 'parameters', found {len(tagged)}"
        )
    values = {}
    try:
        lines = ast.parse(sources[0]).body
    except (SyntaxError, ValueError) as error:
        raise ParameterError(f"{paths.shown(path)}: the parameters cell is no Python: {error}") from None
    for line in lines:
        try:
            values[line.target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise ParameterError(
                f"{paths.shown(path)}: expected `name: type = literal` lines in the parameters cell,"
                f" found {ast.unparse(line)!r}"
            ) from None
    return values


def training_of(run: str) -> tuple[dict[str, Any], str] | None:
    """How the run of this name is trained: its parameters and the command, or None if nothing here says so.

    Looks at `params/*/01_train.yaml` and at the defaults of notebook 01.
    """
    notebook = paths.NOTEBOOKS / "01_train.ipynb"
    for path in sorted(paths.PARAMS.glob("*/01_train.yaml")):
        values = read_yaml(path)
        if values.get("run") == run:
            return notebook_defaults(notebook) | values, f"python -m mmlib train {paths.shown(path)}"
    defaults = notebook_defaults(notebook)
    if defaults["run"] == run:
        return defaults, f"papermill {paths.shown(notebook)} out.ipynb"
    return None
