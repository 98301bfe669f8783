"""Readers of the text files that Flickr8k and its kin come with: token file, CSV, split list.

Captions are kept exactly as published: empty ones, tabs, commas, quotes, `#` and all.  Files are
UTF-8, with or without a byte order mark, with Unix or Windows line ends.
"""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from mmlib.paths import shown

_TOKEN_KEY = re.compile(r"(?P<image>.+)#(?P<number>[0-9]+)")


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


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark.

    Raises:
        ValueError: the file is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{shown(path)}, line {line}: expected UTF-8 text, found byte {content[error.start]:#04x};"
            " convert the file to UTF-8"
        ) from error


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
        ValueError: the file is not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shown(path)}: expected JSON, found {error}; the download may be cut short, get it again"
        ) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and texts of the lines that are not blank, line ends removed.

    Only LF and CRLF end a line: `str.splitlines` would cut captions at a form feed or U+2028.

    Raises:
        ValueError: the file is not UTF-8.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def read_token_file(path: Path) -> CaptionFile:
    """Reads `name.jpg#0<TAB>caption` lines, as in `Flickr8k.token.txt`.

    The captions of an image are ordered by their number.  A line that repeats another exactly is
    left out and counted.

    Raises:
        ValueError: no captions, a malformed line, one number with two different captions, or not UTF-8.
    """
    numbered: dict[str, dict[int, str]] = {}
    repeated = 0
    for number, line in read_lines(path):
        key, tab, caption = line.partition("\t")
        match = _TOKEN_KEY.fullmatch(key)
        if not tab or not match:
            raise ValueError(
                f"{shown(path)}, line {number}: expected 'name.jpg#0<TAB>caption', found {line[:80]!r};"
                " correct or remove the line"
            )
        captions, index = numbered.setdefault(match["image"], {}), int(match["number"])
        if index not in captions:
            captions[index] = caption
        elif captions[index] == caption:
            repeated += 1
        else:
            raise ValueError(
                f"{shown(path)}, line {number}: expected one caption for {key}, found a second,"
                f" {caption[:80]!r} after {captions[index][:80]!r}; remove the wrong line"
            )
    ordered = {image: tuple(text for _, text in sorted(texts.items())) for image, texts in numbered.items()}
    return _not_empty(CaptionFile(path, ordered, repeated))


def read_caption_csv(path: Path) -> CaptionFile:
    """Reads CSV rows under the header `image,caption`, as in the Kaggle copy's `captions.txt`.

    Rows have no caption number, so two equal rows may be two people's equal captions: all are kept.

    Raises:
        ValueError: no captions, another header, a malformed row, or not UTF-8.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        header = next(rows, None)
        if header not in (None, ["image", "caption"]):
            raise ValueError(
                f"{shown(path)}, line 1: expected the header 'image,caption', found"
                f" {','.join(header)[:80]!r}; add the header, or remove the file if it is another's"
            )
        for row in filter(None, rows):  # a blank line is an empty row
            if len(row) != 2 or not row[0]:
                raise csv.Error(f"{len(row)} fields in {','.join(row)[:80]!r}")
            captions.setdefault(row[0], []).append(row[1])
    except csv.Error as error:
        raise ValueError(
            f"{shown(path)}, line {rows.line_num}: expected 'name.jpg,caption' with captions that hold"
            f" commas or quotes in double quotes, found {error}; correct or remove the line"
        ) from error
    return _not_empty(CaptionFile(path, {image: tuple(texts) for image, texts in captions.items()}))


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


def _not_empty(file: CaptionFile) -> CaptionFile:
    if not file.captions:
        raise ValueError(
            f"{shown(file.path)}: expected captions, found none; get the file from the original"
            " distribution again, or remove it if another caption file is beside it"
        )
    return file
