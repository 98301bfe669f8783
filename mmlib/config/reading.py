"""Reading parameters: text that means a number, names that are wrong, and what to say of them.

papermill hands `1e-3` over as text and `-p amp false` as `'false'`: text that reads as the number
or truth value that is expected is taken as such, and a text where a list is expected is a list of
one; nothing else is converted.
"""

import contextlib
import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator


class ParameterError(ValueError):
    """A parameter has a wrong name, type or value; the message lists every one of them."""


class Config(BaseModel):
    """Frozen, strict, and closed to unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info) -> Any:
        kinds = _basic_types(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError(f"expected {_type_names(kinds)}")
        if isinstance(value, str) and str not in kinds and list in kinds:
            return None if type(None) in kinds and value.lower() in ("none", "null") else [value]
        if isinstance(value, str) and str not in kinds:
            value = _parse(value, kinds)
        if isinstance(value, float) and float not in kinds and int in kinds and value.is_integer():
            return int(value)
        return value


def _basic_types(annotation: Any) -> set[type]:
    """The plain types inside an annotation: `float | None` → {float, NoneType}; a Literal → its values'."""
    if typing.get_origin(annotation) is Literal:
        return {type(v) for v in typing.get_args(annotation)}
    if typing.get_origin(annotation) is Annotated:
        return _basic_types(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (list, tuple):
        return {list}
    if typing.get_origin(annotation) is dict:
        return {dict}
    if args := typing.get_args(annotation):
        return set().union(*(_basic_types(a) for a in args))
    return {annotation}


def _literals(annotation: Any) -> list:
    """The values that the Literals inside an annotation allow."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [value for argument in typing.get_args(annotation) for value in _literals(argument)]


def _type_names(kinds: set[type]) -> str:
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "text",
        list: "a list", dict: "a mapping of names to values", type(None): "nothing (null)",
    }  # fmt: skip
    order = sorted(kinds, key=list(names).index)
    return " or ".join(names[k] for k in order)


def _parse(text: str, kinds: set[type]) -> Any:
    lowered = text.strip().lower()
    if bool in kinds and lowered in ("true", "false"):
        return lowered == "true"
    if type(None) in kinds and lowered in ("none", "null"):
        return None
    if kinds & {int, float}:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    raise ValueError(f"expected {_type_names(kinds)}")


_ELSEWHERE = {  # what other trainers call it, where spelling alone finds another parameter
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "bs": "batch_size",
    "amp": "precision",
    "memory_size": "memory_slots",
    "width": "latent_dim",
}


def build(config_class: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
    """`parameters` as a checked config.

    Raises:
        ParameterError: lists every unknown name (with the nearest known one), every missing name,
            and every wrong type or impossible value, with what was expected and what came.
    """
    try:
        return config_class(**parameters)
    except ValidationError as error:
        lines = [_explain(config_class, e) for e in error.errors()]
        raise ParameterError("\n".join([f"{len(lines)} wrong parameter(s):", *lines])) from None


def from_notebook(config_class: type[BaseModel], namespace: Mapping[str, Any]) -> Any:
    """The config of a notebook, from `globals()` right after its parameters cell.

    papermill injects overrides as variables and only warns of names that it does not know.  Any
    plain value in the namespace that is no parameter is therefore an error, with the nearest name.

    Raises:
        ParameterError: as `build`.
    """
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    hidden = {"In", "Out", "papermill"}  # IPython's own, and papermill's metadata
    return build(
        config_class,
        {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in hidden and isinstance(value, plain)
        },
    )


def _explain(config_class: type[BaseModel], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, config_class.model_fields, n=1, cutoff=0.5)
        if _ELSEWHERE.get(name) in config_class.model_fields:
            near = [_ELSEWHERE[name]]
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(config_class.model_fields)}"
        return f"  {name} = {error['input']!r}: unknown parameter; {hint}"
    if error["type"] == "missing":
        return f"  {name}: missing; expected {config_class.model_fields[name].description}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not name:
        return f"  {message}"
    field = config_class.model_fields[name]
    found = f"found {error['input']!r} ({type(error['input']).__name__})"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        known = [v for v in _literals(field.annotation) if isinstance(v, str)]
        if near := difflib.get_close_matches(error["input"].lower(), known, n=1, cutoff=0.5):
            found += f", did you mean {near[0]!r}?"
    return f"  {name}: {message}, {found}; it is: {field.description}"
