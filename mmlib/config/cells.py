"""The parameters of a notebook: what its parameters cell assigns, and papermill's injected one.

No other variable of the kernel counts.  Both cells are found in what the kernel has executed, by their
form, and are evaluated anew, by themselves: a line that was removed and a value that was changed elsewhere
have no effect.
"""

import ast
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from mmlib.config.reading import ParameterError, required
from mmlib.config.unread import ask

INJECTED = "# Parameters\n"  # how papermill's cell begins


def from_notebook(config_class: type[BaseModel]) -> Any:
    """The config of the notebook that calls this, from its parameters cell.

    That is the last cell executed before this one with a line `name: type = value` of one of its
    parameters.  Of papermill's injected cells the last one after it counts too.

    Raises:
        ParameterError: as `ask`; or there is no such cell, or it does not stand by itself; or this is
            called from a file by `%run`.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if kernel is None:
        raise ParameterError(
            "from_notebook reads the parameters cell of a notebook, and this is none: use"
            f" ask({config_class.__name__}, {{name: value}})"
        )
    *executed, calling = kernel.history_manager.input_hist_parsed
    if not executed and not calling:  # `pytest --nbval` has the kernel keep no history: each cell runs once
        return ask(config_class, _annotated(kernel.user_ns))
    if _RUN in calling:
        raise ParameterError(
            "this cell has a %run, and whose parameters cell is meant cannot be told: give %run a cell of its"
            " own; open a notebook that builds a config, or execute it with papermill"
        )
    return ask(config_class, cell_parameters(executed, config_class))


def _annotated(namespace: dict[str, Any]) -> dict[str, Any]:
    """The variables that a line `name: type = value` made."""
    return {name: namespace[name] for name in namespace.get("__annotations__", {}) if name in namespace}


def cell_parameters(executed: Sequence[str], config_class: type[BaseModel]) -> dict[str, Any]:
    """The names and values that the parameters cells among executed cells assign.

    Args:
        executed: sources of the cells in the order in which they were run.
        config_class: whose parameters they are.

    Raises:
        ParameterError: no cell has a line `name: type = value`; or a later one assigns all that the config
            needs without types, or under a cell magic, so that it may be the parameters cell; or one of
            them fails by itself.
    """
    needed = required(config_class)
    example = ", ".join(f"`{name}: type = value`" for name in config_class.model_fields if name in needed)
    place, unclear = None, None
    for number, source in enumerate(executed):
        body = _under_magic(source)
        typed, names = _assigned(source if body is None else body)
        is_typed = bool(typed & config_class.model_fields.keys())
        if is_typed and body is None:
            place, unclear = number, None
        elif is_typed or (needed <= names and not source.startswith(INJECTED)):
            unclear = (_NO_TYPES if body is None else _UNDER_MAGIC).format(number=number, example=example)
    if unclear:
        raise ParameterError(unclear)
    if place is None:
        raise ParameterError(
            f"expected a parameters cell with lines {example}, found none among the executed cells; run it"
        )
    injected = [source for source in executed[place + 1 :] if source.startswith(INJECTED)]
    return _values([executed[place], *injected[-1:]])


_NO_TYPES = (
    "cell [{number}] assigns what a parameters cell does, without types; if it is the parameters cell, write"
    " {example}; if not, run the parameters cell again"
)


_UNDER_MAGIC = (
    "cell [{number}] has parameters under a cell magic (%%…), which does with them what it likes; if it is"
    " the parameters cell, take the magic out; if not, run the parameters cell again"
)
_RUN = "get_ipython().run_line_magic('run',"  # what IPython makes of %run


def _under_magic(source: str) -> str | None:
    """What stands under a cell magic, as `%%time`; None if the cell has none."""
    if not source.startswith("get_ipython().run_cell_magic("):  # what IPython makes of it
        return None
    try:
        call = ast.parse(source, mode="eval").body
        return str(ast.literal_eval(call.args[-1]))
    except (SyntaxError, ValueError, AttributeError, IndexError):
        return None


def _assigned(source: str) -> tuple[set[str], set[str]]:
    """The names in a cell's lines `name: type = value`, and all that its own lines assign."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError):
        return set(), set()
    typed = {line.target.id for line in lines if isinstance(line, ast.AnnAssign) and line.value
             and isinstance(line.target, ast.Name)}  # fmt: skip
    plain = {target.id for line in lines if isinstance(line, ast.Assign)
             for target in line.targets if isinstance(target, ast.Name)}  # fmt: skip
    return typed, typed | plain


def _values(sources: Sequence[str]) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for source in sources:
        try:
            exec(compile(source, "<parameters cell>", "exec"), namespace)
        except Exception as error:
            raise ParameterError(
                "the parameters cell must stand by itself, without names from other cells:"
                f" {type(error).__name__}: {error}"
            ) from None
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and not callable(value)
    }
