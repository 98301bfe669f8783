"""Reading parameters: the type of each field decides how its text is read, the same at every door.

The command line, YAML files and papermill's `-p` hand over text; papermill's `-f` and `-y` hand over what
its YAML has made of it.  `read_values` makes one of both.  Text that is not of the field's type is left
for the check to refuse.
"""

import contextlib
import itertools
import math
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from mmlib import files
from mmlib.files import nearest, printable, read_bounded

NOTHING = ("", "~", "null", "Null", "NULL", "None")  # text that means no value, where a field may have none
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
LARGEST = 2**63 - 1  # whole numbers have to fit into 64 bits
SHOWN = 200  # characters of a value in a message
_LISTED = 20  # wrong parameters in a message

MAX_BYTES = 1 << 20  # thousands of addresses of shards; a usual file has 2 KiB
_PROBLEM = 80  # characters of a name or a problem in a message
MAX_DEPTH = 16  # the deepest parameter, `tune` of an arm, needs 4

_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # 20 times faster where PyYAML has libyaml
_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ParameterError(ValueError):
    """A parameter has a wrong name, type or value; the message lists every one of them."""


class Config(BaseModel):
    """Frozen, strict, and closed to unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info) -> Any:
        return read_value(value, cls.model_fields[info.field_name].annotation)


def read_values(config_class: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the fields of `config_class` read them; what cannot be read is left as it is."""
    read = dict(values)
    for name in values.keys() & config_class.model_fields.keys():
        try:
            read[name] = read_value(values[name], config_class.model_fields[name].annotation)
        except ValueError:
            continue
    return read


def read_value(value: Any, annotation: Any) -> Any:
    """`value` as a field of this type reads it: text by the type, all else as it is.

    Raises:
        ValueError: text that is not of the type, a number beyond 64 bits, or a number or truth value where
            text is expected.
    """
    kinds = {kind: part for part in _parts(annotation) for kind in _kinds(part)}
    if object in kinds:
        return value
    if isinstance(value, str):
        value = _read_text(value, kinds)
    elif isinstance(value, bool):
        return _read_bool(value, kinds)
    elif isinstance(value, (int, float)) and str in kinds and not {int, float} & kinds.keys():
        raise ValueError(f"expected text; {_GIVE_TEXT}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _read_number(value, kinds)
    if isinstance(value, list) and list in kinds:
        (item,) = typing.get_args(kinds[list]) or (Any,)
        return [read_value(each, item) for each in value]
    if isinstance(value, dict) and dict in kinds:
        _, item = typing.get_args(kinds[dict]) or (Any, Any)
        return {key: read_value(each, item) for key, each in value.items()}
    return value


_GIVE_TEXT = "put it in quotes in Python, or give it with papermill's -r, which hands over text as it is"


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a type: `Annotated[float, …] | None` → [float, None's type]."""
    if typing.get_origin(annotation) is Annotated:
        return _parts(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal or not typing.get_args(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (list, dict):
        return [annotation]
    return [part for argument in typing.get_args(annotation) for part in _parts(argument)]


def _kinds(part: Any) -> set[type]:
    """The plain types of one alternative; `object` stands for any."""
    if typing.get_origin(part) is Literal:
        return {type(value) for value in typing.get_args(part)}
    return {object if part is Any else typing.get_origin(part) or part}


def _read_text(text: str, kinds: Mapping[type, Any]) -> Any:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("expected text in UTF-8, without NUL")
    word = text.strip()
    if NoneType in kinds and (text in NOTHING or (str not in kinds and word.lower() in ("none", "null"))):
        return None
    if str in kinds:
        return text
    if kinds.keys() & {list, dict} and (word[:1], word[-1:]) in (("[", "]"), ("{", "}")):
        return parse_yaml(word, "the text")
    if list in kinds and word:
        return [text]
    if bool in kinds and word.lower() in (*TRUE, *FALSE):
        return word.lower() in TRUE
    if kinds.keys() & {int, float}:
        with contextlib.suppress(ValueError):
            return int(word)
        with contextlib.suppress(ValueError):
            number = float(word)
            if math.isinf(number) and "inf" not in word.lower():
                number = LARGEST + 1  # as it was not asked for infinity
            return number
    raise ValueError(f"expected {_type_names(kinds)}")


def _read_bool(value: bool, kinds: Mapping[type, Any]) -> Any:
    """A truth value; where papermill's YAML has made one of `on` or `off`, the word again."""
    if bool in kinds:
        return value
    words = (TRUE if value else FALSE)[1:]  # `true` and `True` are ways to write it, no parameter's word
    for word in words:
        if word in _literals(kinds.get(str)):
            return word
    advice = f"; {_GIVE_TEXT}" if str in kinds else ""
    raise ValueError(f"expected {_type_names(kinds)}{advice}")


def _read_number(value: float, kinds: Mapping[type, Any]) -> float:
    if isinstance(value, float) and float not in kinds and int in kinds and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(_TOO_LARGE)
    return value


_TOO_LARGE = "expected a number that fits into 64 bits"


def _literals(annotation: Any) -> list:
    """The values that the Literals inside an annotation allow."""
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [value for argument in typing.get_args(annotation) for value in _literals(argument)]


def _type_names(kinds: Mapping[type, Any]) -> str:
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "text",
        list: "a list", dict: "a mapping of names to values", NoneType: "nothing (null)",
    }  # fmt: skip
    return " or ".join(words for kind, words in names.items() if kind in kinds)


_ELSEWHERE = {  # what other trainers call it, where spelling alone finds another parameter
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "bs": "batch_size",
    "amp": "precision",
    "memory_size": "memory_slots",
    "width": "latent_dim",
}


def required(config_class: type[BaseModel]) -> set[str]:
    """The names of the parameters that have no default."""
    return {name for name, field in config_class.model_fields.items() if field.is_required()}


def defaults(config_class: type[BaseModel]) -> dict[str, Any]:
    """The parameters that have a default, and that default."""
    return {name: f.default for name, f in config_class.model_fields.items() if not f.is_required()}


def build(config_class: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
    """`parameters` as a checked config.

    Raises:
        ParameterError: lists every unknown name (with the nearest known one), every missing name,
            and every wrong type or impossible value, with what was expected and what came.
    """
    try:
        return config_class.model_validate(dict(parameters))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        lines = [_explain(config_class, e) for e in errors[:_LISTED]]
        if len(errors) > _LISTED:
            lines.append(f"  … and {len(errors) - _LISTED} more")
        raise ParameterError("\n".join([f"{len(errors)} wrong parameter(s):", *lines])) from None


def shown(value: Any) -> str:
    """A value for a message: what Python writes for it, harmless on a terminal and cut to `SHOWN`."""
    try:
        text = printable(_SHORT.repr(value))
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlong = 6, 60
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 40
_SHORT.maxstring = _SHORT.maxother = SHOWN


def _explain(config_class: type[BaseModel], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        hint = nearest(name[:SHOWN], config_class.model_fields).removeprefix("; ")
        if _ELSEWHERE.get(name) in config_class.model_fields:
            hint = f"did you mean {_ELSEWHERE[name]!r}?"
        hint = hint or f"known: {', '.join(config_class.model_fields)}"
        return f"  {shown(name)[1:-1]} = {shown(error['input'])}: unknown parameter; {hint}"
    if error["type"] == "missing":
        return f"  {name}: missing; expected {config_class.model_fields[name].description}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not name:
        return f"  {message}"
    field = config_class.model_fields[name]
    found = f"found {shown(error['input'])} ({type(error['input']).__name__})"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        known = [v for v in _literals(field.annotation) if isinstance(v, str)]
        found += nearest(error["input"][:SHOWN].lower(), known).replace("; ", ", ")
    return f"  {name}: {message}, {found}; it is: {field.description}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file, as text: their types decide how it is read, not YAML.

    Raises:
        FileNotFoundError: there is no such file; names the parameter files beside it.
        ParameterError: as `parse_yaml`, or no mapping of names to values.
    """
    path = files.from_root(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("[!.]*.y*ml")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no parameter file {files.shown(path)}; "
            + (f"beside it there are {', '.join(near)}" if near else "its folder holds none")
        )
    try:
        values = parse_yaml(read_bounded(path, MAX_BYTES), files.shown(path)) or {}
    except ValueError as error:
        raise ParameterError(str(error)) from None
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else "text"
        raise ParameterError(f"{files.shown(path)}: expected `name: value` lines, found {found}")
    return values


class YamlError(ValueError):
    """Text that is no YAML of the kind that is read here; the message names file and line."""


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The mappings, lists and text in YAML; None if there is nothing in it.

    Args:
        data: the text; bytes in UTF-8.
        where: the file that errors name.

    Raises:
        YamlError: not UTF-8, not valid YAML, more than one document, a key twice, an alias, a tag, a key
            that is no text, or more than `MAX_BYTES` or `MAX_DEPTH`.
    """
    size = len(data)
    if size > MAX_BYTES:
        raise YamlError(f"{where}: expected at most {MAX_BYTES:,} bytes of parameters, found {size:,}")
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise YamlError(f"{where}, line {line}: expected text in UTF-8, found other bytes") from None
    if odd := _NO_TEXT.search(data):
        line = data.count("\n", 0, odd.start()) + 1
        raise YamlError(f"{where}, line {line}: expected text, found the character {printable(odd[0])}")
    try:
        events = iter(yaml.parse(data, Loader=_LOADER))
        nodes = (event for event in events if isinstance(event, yaml.NodeEvent))
        value = next((_value_of(events, event, where) for event in nodes), None)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise YamlError(
                    f"{where}, line {event.start_mark.line + 1}: expected one document, found a second;"
                    " remove the `---`"
                )
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = _short(", ".join(part for part in (error.context, error.problem) if part))
        at = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{where}{at}: expected valid YAML, found an error: {said}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{where}: expected valid YAML, found an error: {_short(str(error))}") from None


def _short(text: str) -> str:
    text = printable(" ".join(text[: 2 * _PROBLEM].split()))
    return text if len(text) <= _PROBLEM else text[:_PROBLEM] + "…"


def _value_of(events: Iterator[yaml.Event], event: yaml.Event, where: str, depth: int = 0) -> Any:
    """The value that starts with `event`; takes its events from the rest."""
    here = f"{where}, line {event.start_mark.line + 1}"
    if isinstance(event, yaml.AliasEvent):
        raise YamlError(
            f"{here}: expected the value itself, found the alias *{_short(event.anchor)}; write it out"
        )
    if event.tag is not None:
        raise YamlError(
            f"{here}: expected a value without a tag, found {_short(event.tag)}; leave it out, each"
            " parameter knows its type"
        )
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if depth == MAX_DEPTH:
        raise YamlError(f"{here}: expected at most {MAX_DEPTH} lists and mappings inside each other")
    parts = iter(lambda: next(events), None)
    inner = itertools.takewhile(lambda part: not isinstance(part, yaml.CollectionEndEvent), parts)
    if isinstance(event, yaml.SequenceStartEvent):
        return [_value_of(events, part, where, depth + 1) for part in inner]
    values, lines = {}, {}
    for part in inner:
        line = part.start_mark.line + 1
        name = _value_of(events, part, where, depth + 1)
        if not isinstance(name, str):
            raise YamlError(f"{where}, line {line}: expected a name before the `:`, found a list or mapping")
        if name in lines:
            raise YamlError(
                f"{where}, line {line}: {_short(name)!r} is there twice, first in line {lines[name]};"
                " keep one"
            )
        lines[name] = line
        values[name] = _value_of(events, next(events), where, depth + 1)
    return values
