"""Text, YAML and notebook cells → checked configs: the type of each field decides how its text is read.

The command line, YAML files and papermill's `-p` hand over text; papermill's `-f` and `-y` hand over what
its YAML has made of it.  `read_value` makes one of both, and leaves what is not of the field's type for
pydantic to refuse.

A parameter that is set and that nothing in a run reads is an error, not ignored (`ask`).  A stored config is
not asked about.  A value counts as set where it differs from the field's default.  What a run has from its
parent, or an arm of an ablation from its base, may go unread there: the parent and the base have read it.

A notebook's parameters are what its parameters cell assigns, and papermill's injected one; no other variable
of the kernel counts.  Both cells are found in what the kernel has executed, by their form, and are evaluated
anew, by themselves: a line that was removed and a value that was changed elsewhere have no effect.
"""

import ast
import contextlib
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, NoneType
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmlib import files
from mmlib.files import nearest, printable, read_text

NOTHING = ("", "~", "null", "None")  # text that means no value, where a field may have none
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
JOIN = "+"  # between several image encoders, and between their weights
LARGEST = 2**63 - 1  # whole numbers have to fit into 64 bits
SHOWN = 200  # characters of a value in a message
LISTED = 20  # wrong parameters in a message
MAX_BYTES = 1 << 20  # thousands of addresses of shards; a usual file has 2 KiB
MAX_DEPTH = 16  # the deepest parameter, `tune` of an arm, needs 4
INJECTED = "# Parameters\n"  # how papermill's cell begins
OTHER_THAN, PRETRAINED = "other than", "<library>:<name>"  # in `READ_BY`, before and among values


class ParameterError(ValueError):
    """A parameter has a wrong name, type or value; the message lists every one of them."""


class Config(BaseModel):
    """Frozen, strict, and closed to unknown names.

    Attributes:
        READ_BY: rows of what must hold for parameters to be read, and their names: one of several parameters
            has one of the values.  A parameter in no row is read by every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    READ_BY: ClassVar[tuple[tuple[dict[str, tuple], tuple[str, ...]], ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info) -> Any:
        value = read_value(value, cls.model_fields[info.field_name].annotation)
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError("expected a number that fits into 64 bits")
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            raise ValueError("expected text in UTF-8, without NUL")
        return value


def param(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a config with its default (`...` for none), its meaning and unit, and pydantic's limits."""
    return Field(default, description=meaning, **limits)


def required(config_class: type[BaseModel]) -> set[str]:
    """The names of the parameters that have no default."""
    return {name for name, field in config_class.model_fields.items() if field.is_required()}


# --- text → values


def read_values(config_class: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the fields of `config_class` read them; what cannot be read is left as it is."""
    read = dict(values)
    for name in values.keys() & config_class.model_fields.keys():
        with contextlib.suppress(ParameterError):
            read[name] = read_value(values[name], config_class.model_fields[name].annotation)
    return read


def read_value(value: Any, annotation: Any) -> Any:
    """`value` as a field of this type reads it; what is not of the type is left as it is.

    Raises:
        ParameterError: text in brackets that is no YAML.
    """
    kinds = _kinds(annotation)
    if object in kinds:
        return value
    if isinstance(value, str):
        value = _read_text(value, kinds)
    elif isinstance(value, bool) and str in kinds:  # where papermill's YAML has made one of `on` or `off`
        words = typing.get_args(kinds[str])
        return next((word for word in (TRUE if value else FALSE) if word in words), value)
    if isinstance(value, float) and float not in kinds and int in kinds and value.is_integer():
        return int(value)
    if isinstance(value, list) and list in kinds:
        (item,) = typing.get_args(kinds[list]) or (Any,)
        return [read_value(each, item) for each in value]
    if isinstance(value, dict) and dict in kinds:
        _, item = typing.get_args(kinds[dict]) or (Any, Any)
        return {key: read_value(each, item) for key, each in value.items()}
    return value


def _kinds(annotation: Any) -> dict[type, Any]:
    """The plain types that an annotation allows, each with its part of it; `object` stands for any."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _kinds(inner[0])
    if origin is Literal:
        return {type(value): annotation for value in inner}
    if origin in (list, dict) or not inner:
        return {object if annotation is Any else origin or annotation: annotation}
    return {kind: part for each in inner for kind, part in _kinds(each).items()}


def _read_text(text: str, kinds: Mapping[type, Any]) -> Any:
    word = text.strip()
    if NoneType in kinds and (text in NOTHING or (str not in kinds and word.lower() in ("none", "null"))):
        return None
    if str in kinds:
        return text
    if kinds.keys() & {list, dict} and word[:1] + word[-1:] in ("[]", "{}"):
        return parse_yaml(word, "the text")
    if list in kinds and word:
        return [text]
    if bool in kinds and word.lower() in (*TRUE, *FALSE):
        return word.lower() in TRUE
    for number in (int, float) if kinds.keys() & {int, float} else ():
        with contextlib.suppress(ValueError):
            return number(word)
    return text


# --- checked configs


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
        lines = [_explain(config_class, e) for e in errors[:LISTED]]
        if len(errors) > LISTED:
            lines.append(f"  … and {len(errors) - LISTED} more")
        raise ParameterError("\n".join([f"{len(errors)} wrong parameter(s):", *lines])) from None


_ELSEWHERE = {  # what other trainers call it, where spelling alone finds another parameter
    "learning_rate": "lr", "num_epochs": "epochs", "bs": "batch_size", "amp": "precision",
    "memory_size": "memory_slots", "width": "latent_dim",
}  # fmt: skip
_EXPECTED = {  # by pydantic's types of errors
    "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "dict_type": "a mapping of names to values",
    "string_type": "text; put it in quotes in Python, or give it with papermill's -r, which hands over text"
    " as it is",
}  # fmt: skip


def _explain(config_class: type[BaseModel], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    field, value = config_class.model_fields.get(name), error["input"]
    if error["type"] == "extra_forbidden":
        known = {_ELSEWHERE.get(name)} & config_class.model_fields.keys()
        hint = (
            f"; did you mean {known.pop()!r}?" if known else nearest(name[:SHOWN], config_class.model_fields)
        )
        hint = hint or f"; known: {', '.join(config_class.model_fields)}"
        return f"  {written(name)[1:-1]} = {written(value)}: unknown parameter{hint}"
    if error["type"] == "missing":
        return f"  {name}: missing; expected {field.description}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] in _EXPECTED:
        message = f"expected {_EXPECTED[error['type']]}"
    if not name:
        return f"  {message}"
    hint = ""
    if error["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value[:SHOWN].lower(), typing.get_args(_kinds(field.annotation)[str]))
    found = f"found {written(value)} ({type(value).__name__}){hint}"
    return f"  {name}: {message}, {found}; it is: {field.description}"


def written(value: Any) -> str:
    """A value for a message: what Python writes for it, harmless on a terminal and cut to `SHOWN`."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return printable(text[:SHOWN]) + "…" * (len(text) > SHOWN)


def ask(config_class: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
    """`parameters` as the checked config of a run that a person asks for.

    Raises:
        ParameterError: as `build`; or a parameter is set that nothing in this run reads.
    """
    config = build(config_class, parameters)
    refuse_unread(config, config_class.model_fields)
    return config


def refuse_unread(config: Config, names: Iterable[str]) -> None:
    """Passes if each of these parameters is read by this run, or has its default.

    Raises:
        ParameterError: names all that are not, with what would read them.
    """
    found = unread(config)
    if lines := [f"  {found[name]}" for name in names if name in found]:
        raise ParameterError(
            "\n".join([f"{len(lines)} parameter(s) that nothing in this run reads:", *lines])
            + "\nLeave them out, or choose what reads them."
        )


def unread(config: Config) -> dict[str, str]:
    """The parameters that differ from their default and that nothing reads, each with a sentence."""
    found = {}
    for name, field in type(config).model_fields.items():
        readers = _missing(config, name)
        if readers and getattr(config, name) != field.default:
            wanted = " or ".join(f"{reader} {_words(values)}" for reader, values in readers.items())
            there = ", ".join(f"{reader} {written(getattr(config, reader))}" for reader in readers)
            found[name] = f"{name} is read by {wanted}; this run has {there}"
    return found


def is_read(config: Config, name: str) -> bool:
    """Whether a run with this config reads the parameter, whatever its value."""
    return _missing(config, name) is None


def _missing(config: Config, name: str) -> dict[str, tuple] | None:
    """What of `READ_BY` does not hold for a parameter; None where all does.

    It counts as holding where a config lacks a reader, or leaves it to the parent, by None.
    """
    for readers, names in config.READ_BY:
        there = {reader: getattr(config, reader, None) for reader in readers}
        if name not in names or None in there.values():
            continue
        if not any(_is_among(value, readers[reader]) for reader, value in there.items()):
            return readers
    return None


def _is_among(value: Any, values: tuple) -> bool:
    found = value in values or (PRETRAINED in values and is_pretrained(value))
    return found != (OTHER_THAN in values)


def _words(values: tuple) -> str:
    signs = [value for value in values if value in (OTHER_THAN, PRETRAINED)]
    return " ".join([*signs, ", ".join(repr(value) for value in values if value not in signs)]).strip()


def is_pretrained(encoder: str) -> bool:
    """Whether an encoder comes from another library (`timm:…`, `hf:…`), by its name."""
    return ":" in encoder


# --- YAML


def read_yaml(path: Path) -> dict[str, Any]:
    """The parameters in a YAML file, as text: their types decide how it is read, not YAML.

    Raises:
        FileNotFoundError: there is no such file; names the parameter files beside it.
        ParameterError: as `parse_yaml`, no text in UTF-8, or no mapping of names to values.
    """
    path = files.from_root(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("[!.]*.y*ml")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no parameter file {files.shown(path)}; "
            + (f"beside it there are {', '.join(near)}" if near else "its folder holds none")
        )
    try:
        values = parse_yaml(read_text(path, MAX_BYTES), files.shown(path))
    except ValueError as error:
        raise ParameterError(str(error)) from None
    if values in (None, ""):  # nothing, or a document that is empty, as after `---`
        return {}
    if not isinstance(values, dict):
        raise ParameterError(f"{files.shown(path)}: expected `name: value` lines, found {written(values)}")
    return values


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # that of C is 20 times faster
    """Mappings, lists and text; tags are passed over, as each parameter knows its type."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The mappings, lists and text in YAML; None if there is nothing in it.

    Args:
        text: of a file, or of one parameter.
        where: the file that errors name.

    Raises:
        ParameterError: not valid YAML, more than one document, a key twice or that is no text, an alias,
            or more than `MAX_DEPTH` lists and mappings inside each other.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            problem = None
            if isinstance(event, yaml.AliasEvent):
                problem = f"the alias *{event.anchor}; write the value out"
            if depth > MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} lists and mappings inside each other"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error)[:SHOWN].split())
        raise ParameterError(f"{where}{at}: expected valid YAML, found: {printable(problem)}") from None


def training_of(run: str) -> tuple[dict[str, Any], str] | None:
    """How the run of this name is trained: its parameters and the command, or None if nothing here says so.

    Looks at `params/*/01_train.yaml`.
    """
    for path in sorted(files.PARAMS.glob("*/01_train.yaml")):
        values = read_yaml(path)
        if values.get("run") == run:
            return values, f"python -m mmlib train {files.shown(path)}"
    return None


# --- notebooks


def from_notebook(config_class: type[BaseModel]) -> Any:
    """The config of the notebook that calls this, from its parameters cell.

    That is the last cell executed before this one with a line `name: type = value` of one of its
    parameters, or that assigns all that have no default.  Of papermill's injected cells the last one after
    it counts too.

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
    history = kernel.history_manager
    *executed, calling = history.input_hist_parsed
    if not executed and not calling:  # `pytest --nbval` has the kernel keep no history: each cell runs once
        typed = kernel.user_ns.get("__annotations__", {}).keys() & kernel.user_ns.keys()
        return ask(config_class, {name: kernel.user_ns[name] for name in typed})
    if "get_ipython().run_line_magic('run'," in calling:  # what IPython makes of %run
        raise ParameterError(
            "this cell has a %run, and whose parameters cell is meant cannot be told: give %run a cell of its"
            " own; open a notebook that builds a config, or execute it with papermill"
        )
    for number, source in enumerate(history.input_hist_raw[:-1]):
        if source.startswith("%%"):  # a cell magic, as %%time: what stands under it counts
            executed[number] = source.partition("\n")[2]
    return ask(config_class, cell_parameters(executed, config_class))


def cell_parameters(executed: Sequence[str], config_class: type[BaseModel]) -> dict[str, Any]:
    """The names and values that the parameters cells among executed cells assign.

    Args:
        executed: sources of the cells in the order in which they were run.
        config_class: whose parameters they are.

    Raises:
        ParameterError: there is no such cell, or it fails by itself.
    """
    needed, place = required(config_class), None
    for number, source in enumerate(executed):
        typed, names = _assigned(source)
        if typed & config_class.model_fields.keys() or (needed <= names and not source.startswith(INJECTED)):
            place = number
    if place is None:
        example = ", ".join(f"`{name}: type = value`" for name in config_class.model_fields if name in needed)
        raise ParameterError(
            f"expected a parameters cell with lines {example}, found none among the executed cells; run it"
        )
    injected = [source for source in executed[place + 1 :] if source.startswith(INJECTED)]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    try:
        for source in [executed[place], *injected[-1:]]:
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


def _assigned(source: str) -> tuple[set[str], set[str]]:
    """The names in a cell's lines `name: type = value`, and all that its own lines assign."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError):
        return set(), set()
    typed = {ast.unparse(line.target) for line in lines if isinstance(line, ast.AnnAssign) and line.value}
    plain = {ast.unparse(name) for line in lines if isinstance(line, ast.Assign) for name in line.targets}
    return typed, typed | plain
