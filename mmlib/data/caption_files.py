"""Readers of the text files that Flickr8k and its kin come with: token file, CSV, split list.

Captions are kept exactly as published: empty ones, tabs, commas, quotes, `#` and all.  Files are
UTF-8, with or without a byte order mark, with Unix or Windows line ends.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmlib.data.decoding import SUFFIXES
from mmlib.files import parse_json, printable, read_text
from mmlib.paths import shown

_TOKEN_KEY = re.compile(r"(?P<image>.+)#(?P<number>[0-9]{1,9})")
# A line within a quoted caption that begins as a row does: a quotation mark before it was not closed.
_ENDINGS = "|".join(map(re.escape, SUFFIXES))
_SWALLOWED_ROW = re.compile(rf"[\r\n][^\r\n,]*(?:{_ENDINGS})[ \t]*,", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionFile:
    """What a caption file says.

    Attributes:
        path: the file.
        captions: image name to its captions, in order; images in the order of the file.
        repeated: number of entries left out because they repeat an earlier one word for word.
    """

    path: Path
    captions: dict[str, tuple[str, ...]]
    repeated: int = 0


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
        ValueError: the file is too large, not UTF-8 or not JSON.
    """
    return parse_json(read_text(path), shown(path))


def excerpt(value: object) -> str:
    """The beginning of a value from a JSON file, as JSON, for a message."""
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "brackets nested too deeply"


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and texts of the lines that are not blank, line ends removed.

    Only LF and CRLF end a line: `str.splitlines` would cut captions at a form feed or U+2028.

    Raises:
        ValueError: the file is not UTF-8, or holds a carriage return inside a line.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    for number, line in enumerate(lines, start=1):
        if "\r" in line:  # as the line ends of old Macs, which would make one caption of many
            raise ValueError(
                f"{shown(path)}, line {number}: expected lines that end in LF or CRLF, found a carriage"
                " return inside one; convert the line ends"
            )
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_token_file(path: Path) -> CaptionFile:
    """Reads `name.jpg#0<TAB>caption` lines, as in `Flickr8k.token.txt`.

    The captions of an image are ordered by their number.  A line that repeats another exactly is
    left out and counted.

    Raises:
        ValueError: no captions, a malformed line, one number with two different captions, or not UTF-8.
    """
    numbered, repeated = read_numbered_captions(path)
    ordered = {image: tuple(text for _, text in sorted(texts.items())) for image, texts in numbered.items()}
    return CaptionFile(path, ordered, repeated)


def read_numbered_captions(path: Path) -> tuple[dict[str, dict[int, str]], int]:
    """Captions of a token file by image and number, and how many lines repeat another.

    Raises:
        ValueError: as `read_token_file`.
    """
    numbered: dict[str, dict[int, str]] = {}
    repeated = 0
    for line_number, line in read_lines(path):
        key, tab, caption = line.partition("\t")
        match = _TOKEN_KEY.fullmatch(key)
        if not tab or not match:
            raise ValueError(
                f"{shown(path)}, line {line_number}: expected 'name.jpg#0<TAB>caption', found {line[:80]!r};"
                " correct or remove the line"
            )
        captions, number = numbered.setdefault(match["image"], {}), int(match["number"])
        if number not in captions:
            captions[number] = caption
        elif captions[number] == caption:
            repeated += 1
        else:
            raise ValueError(
                f"{shown(path)}, line {line_number}: expected one caption for {printable(key)}, found a"
                f" second, {caption[:80]!r} after {captions[number][:80]!r}; remove the wrong line"
            )
    _check_any(numbered, path)
    return numbered, repeated


def read_caption_csv(path: Path) -> CaptionFile:
    """Reads CSV rows under the header `image,caption`, as in the Kaggle copy's `captions.txt`.

    Rows have no caption number, so two equal rows may be two people's equal captions: all are kept.

    Raises:
        ValueError: no captions, another header, a malformed row, a quotation mark that is not closed, or
            not UTF-8.
    """
    captions: dict[str, list[str]] = {}
    for number, row in _csv_rows(path):
        if len(row) != 2 or not row[0]:
            raise _bad_row(path, number, f"{len(row)} fields in {','.join(row)[:80]!r}")
        if "\n" in row[0] or "\r" in row[0]:
            raise _bad_row(path, number, f"a line break in the name {row[0][:80]!r}")
        if swallowed := _SWALLOWED_ROW.search(row[1]):
            raise _bad_row(
                path,
                number,
                "a quotation mark that is not closed before the next row,"
                f" {row[1][swallowed.start() :].strip()[:40]!r}",
            )
        captions.setdefault(row[0], []).append(row[1])
    _check_any(captions, path)
    return CaptionFile(path, {image: tuple(texts) for image, texts in captions.items()})


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows under the header that are not blank, each with the number of the line that it begins on."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    start = 1
    try:
        for row in rows:
            if start == 1 and row != ["image", "caption"]:
                raise ValueError(
                    f"{shown(path)}, line 1: expected the header 'image,caption', found"
                    f" {','.join(row)[:80]!r}; add the header, or remove the file if it is another's"
                )
            if start > 1 and row:  # a blank line is an empty row
                yield start, row
            start = rows.line_num + 1
    except csv.Error as error:
        raise _bad_row(path, start, str(error)) from error


def _bad_row(path: Path, number: int, found: str) -> ValueError:
    return ValueError(
        f"{shown(path)}, line {number}: expected 'name.jpg,caption' with captions that hold commas or quotes"
        f" in double quotes, found {found}; correct or remove the line"
    )


def read_split_list(path: Path) -> tuple[tuple[str, ...], int]:
    """Reads one image name a line; returns the names, each once, and how many lines repeated one.

    Raises:
        ValueError: no names, or not UTF-8.
    """
    names = [line.strip() for _, line in read_lines(path)]
    if not names:
        raise ValueError(
            f"{shown(path)}: expected one image name a line, found none; get the file from the original"
            " distribution again"
        )
    unique = tuple(dict.fromkeys(names))
    return unique, len(names) - len(unique)


def _check_any(captions: dict, path: Path) -> None:
    if not captions:
        raise ValueError(
            f"{shown(path)}: expected captions, found none; get the file from the original distribution"
            " again, or remove it if another caption file is beside it"
        )
