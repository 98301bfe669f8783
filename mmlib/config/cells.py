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

from mmlib.config.reading import ParameterError
from mmlib.config.unread import ask

INJECTED = "# Parameters\n"  # how papermill's cell begins


def from_notebook(config_class: type[BaseModel]) -> Any:
    """The config of the notebook that calls this, from its parameters cell.

    That is the last cell executed before this one with a line `name: type = value`.  Of papermill's
    injected cells the last one after it counts too.

    Raises:
        ParameterError: as `ask`; or there is no such cell, or it does not stand by itself.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if kernel is None:
        raise ParameterError(
            "from_notebook reads the parameters cell of a notebook, and this is none: use"
            f" ask({config_class.__name__}, {{name: value}})"
        )
    executed = kernel.history_manager.input_hist_parsed[:-1]  # without the cell that calls this
    return ask(config_class, cell_parameters(executed, config_class))


def cell_parameters(executed: Sequence[str], config_class: type[BaseModel]) -> dict[str, Any]:
    """The names and values that the parameters cells among executed cells assign.

    Args:
        executed: sources of the cells in the order in which they were run.
        config_class: whose parameters they are.

    Raises:
        ParameterError: no cell has a line `name: type = value`; or a later one assigns all that the config
            needs without types, so that it may be the parameters cell; or one of them fails by itself.
    """
    needed = {name for name, field in config_class.model_fields.items() if field.is_required()}
    example = ", ".join(f"`{name}: type = value`" for name in needed)
    place, untyped = None, None
    for number, source in enumerate(executed):
        typed, names = _assigned(source)
        if typed:
            place, untyped = number, None
        elif needed <= names and not source.startswith(INJECTED):
            untyped = number
    if untyped is not None:
        raise ParameterError(_NO_TYPES.format(number=untyped, example=example))
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


def _assigned(source: str) -> tuple[bool, set[str]]:
    """Whether a cell has a line `name: type = value`, and the names that its own lines assign."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError):
        return False, set()
    typed = {line.target.id for line in lines if isinstance(line, ast.AnnAssign) and line.value
             and isinstance(line.target, ast.Name)}  # fmt: skip
    plain = {target.id for line in lines if isinstance(line, ast.Assign)
             for target in line.targets if isinstance(target, ast.Name)}  # fmt: skip
    return bool(typed), typed | plain


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
