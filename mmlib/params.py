"""Where parameters come from: the YAML files of `params/`, and the parameters cells of the notebooks."""

import ast
import json
from pathlib import Path
from typing import Any

import yaml

from mmlib import paths
from mmlib.config import ParameterError


def read_yaml(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file.

    Raises:
        FileNotFoundError: there is no such file; names the parameter files beside it.
        ParameterError: no valid YAML, or no mapping of names to values.
    """
    path = paths.from_root(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no parameter file {paths.shown(path)}; "
            + (f"beside it there are {', '.join(near)}" if near else "its folder holds none")
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParameterError(f"{paths.shown(path)} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ParameterError(
            f"{paths.shown(path)}: expected `name: value` lines, found a {type(values).__name__}"
        )
    return {str(name): value for name, value in values.items()}


def notebook_defaults(path: Path) -> dict[str, Any]:
    """The parameters of a notebook with their defaults, from its cell tagged `parameters`.

    Raises:
        FileNotFoundError: there is no such notebook.
        ParameterError: it has no such cell, or a line in it is not `name: type = literal`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {paths.shown(path)}")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(
            f"{paths.shown(path)}: expected one cell tagged 'parameters', found {len(tagged)}"
        )
    values = {}
    try:
        lines = ast.parse("".join(tagged[0]["source"])).body
    except SyntaxError as error:
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
