"""YAML without guesses: mappings and lists of text, whose meaning the type of each parameter decides.

`off` stays `off`, `012` stays `012`, `2024-01-31` and `null` stay what they are.  Read with bounds, since
a file may come from a stranger: no aliases, no tags, no key twice, and a limit of size and depth.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from mmlib.files import printable

MAX_BYTES = 1 << 20  # thousands of addresses of shards; a usual file has 2 KiB
MAX_DEPTH = 16  # the deepest parameter, `tune` of an arm, needs 4
_SHOWN = 80  # characters of a name or a problem in a message

_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # 20 times faster where PyYAML has libyaml
_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
        return _value_of(yaml.parse(data, Loader=_LOADER), where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = _short(", ".join(part for part in (error.context, error.problem) if part))
        at = f", line {mark.line + 1}" if mark else ""
        raise YamlError(f"{where}{at}: expected valid YAML, found an error: {said}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"{where}: expected valid YAML, found an error: {_short(str(error))}") from None


def _short(text: str) -> str:
    text = printable(" ".join(text[: 2 * _SHOWN].split()))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class _Place:
    """A mapping or list that is being filled."""

    def __init__(self, value: dict | list):
        self.value = value
        self.key: str | None = None  # of a mapping, where its value is still to come
        self.lines: dict[str, int] = {}


def _value_of(events: Iterable[yaml.Event], where: str) -> Any:
    whole = _Place([])
    open_places = [whole]
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionEndEvent):
            open_places.pop()
        elif isinstance(event, yaml.DocumentStartEvent) and whole.value:
            raise YamlError(f"{where}, line {line}: expected one document, found a second; remove the `---`")
        elif isinstance(event, yaml.NodeEvent):
            _refuse_extras(event, f"{where}, line {line}")
            _add(event, open_places, f"{where}, line {line}", line)
    return whole.value[0] if whole.value else None


def _refuse_extras(event: yaml.NodeEvent, where: str) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise YamlError(
            f"{where}: expected the value itself, found the alias *{_short(event.anchor)}; write it out"
        )
    if event.tag is not None:
        raise YamlError(
            f"{where}: expected a value without a tag, found {_short(event.tag)}; leave it out, each"
            " parameter knows its type"
        )


def _add(event: yaml.NodeEvent, open_places: list[_Place], where: str, line: int) -> None:
    place = open_places[-1]
    if isinstance(event, yaml.ScalarEvent):
        value: Any = event.value
    else:
        value = {} if isinstance(event, yaml.MappingStartEvent) else []
        open_places.append(_Place(value))
        if len(open_places) > MAX_DEPTH + 1:
            raise YamlError(f"{where}: expected at most {MAX_DEPTH} lists and mappings inside each other")
    if isinstance(place.value, list):
        place.value.append(value)
    elif place.key is not None:
        place.value[place.key], place.key = value, None
    elif not isinstance(value, str):
        raise YamlError(f"{where}: expected a name before the `:`, found a list or mapping")
    elif value in place.lines:
        raise YamlError(
            f"{where}: {_short(value)!r} is there twice, first in line {place.lines[value]}; keep one"
        )
    else:
        place.key, place.lines[value] = value, line
