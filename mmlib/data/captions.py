"""Readers of caption files: token file, CSV, split list, the JSON of Karpathy and of COCO.

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
from typing import Any

from mmlib.data.dataset import SPLITS
from mmlib.data.decoding import SUFFIXES
from mmlib.files import parse_json, printable, read_text, shown

Splits = dict[str, tuple[str, ...]]  # image names by split

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

    def __post_init__(self):
        object.__setattr__(self, "captions", {image: tuple(texts) for image, texts in self.captions.items()})
        if not self.captions:
            raise ValueError(
                f"{shown(self.path)}: expected captions, found none; get the file from the original"
                " distribution again, or remove it if another caption file is beside it"
            )


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and texts of the lines that are not blank, line ends removed.

    Only LF and CRLF end a line: `str.splitlines` would cut captions at a form feed or U+2028.

    Raises:
        ValueError: the file is not UTF-8, or holds a carriage return inside a line.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    for number, line in enumerate(lines, start=1):
        if "\r" in line:  # as the line ends of old Macs, which would make one caption of many
            raise _wrong(
                path, f"line {number}", "lines that end in LF or CRLF", "a carriage return inside one",
                "convert the line ends",
            )  # fmt: skip
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_token_file(path: Path) -> CaptionFile:
    """Reads `name.jpg#0<TAB>caption` lines, as in `Flickr8k.token.txt`.

    The captions of an image are ordered by their number.  A line that repeats another exactly is
    left out and counted.

    Raises:
        ValueError: no captions, a malformed line, one number with two different captions, or not UTF-8.
    """
    numbered, repeated = read_numbered_captions(path)
    captions = {image: [text for _, text in sorted(texts.items())] for image, texts in numbered.items()}
    return CaptionFile(path, captions, repeated)


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
            raise _wrong(
                path, f"line {line_number}", "'name.jpg#0<TAB>caption'", repr(line[:80]),
                "correct or remove the line",
            )  # fmt: skip
        captions, number = numbered.setdefault(match["image"], {}), int(match["number"])
        repeated += number in captions
        if captions.setdefault(number, caption) != caption:
            raise _wrong(
                path, f"line {line_number}", f"one caption for {printable(key)}",
                f"a second, {caption[:80]!r} after {captions[number][:80]!r}", "remove the wrong line",
            )  # fmt: skip
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
            rest = row[1][swallowed.start() :].strip()[:40]
            raise _bad_row(path, number, f"a quotation mark that is not closed before the next row, {rest!r}")
        captions.setdefault(row[0], []).append(row[1])
    return CaptionFile(path, captions)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows under the header that are not blank, each with the number of the line that it begins on."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    start = 1
    try:
        for row in rows:
            if start == 1 and row != ["image", "caption"]:
                raise _wrong(
                    path, "line 1", "the header 'image,caption'", repr(",".join(row)[:80]),
                    "add the header, or remove the file if it is another's",
                )  # fmt: skip
            if start > 1 and row:  # a blank line is an empty row
                yield start, row
            start = rows.line_num + 1
    except csv.Error as error:
        raise _bad_row(path, start, str(error)) from error


def _bad_row(path: Path, number: int, found: str) -> ValueError:
    expected = "'name.jpg,caption' with captions that hold commas or quotes in double quotes"
    return _wrong(path, f"line {number}", expected, found, "correct or remove the line")


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


def read_karpathy(
    path: Path, also_train: tuple[str, ...] = (), folders: bool = False
) -> tuple[CaptionFile, Splits]:
    """Captions (each sentence's `raw`) and image names by split of `dataset_*.json` (Karpathy, Fei-Fei 2015).

    The captions of an image may be spread over several entries: they are joined, in the order of the file.
    An entry that repeats an earlier one of its image is left out and its captions are counted as repeated.

    Args:
        path: the file.
        also_train: further splits of the file that count as `train` (`restval` of COCO).
        folders: put each image's folder (`filepath`) before its name.

    Raises:
        ValueError: not UTF-8, not JSON, an entry that is not as expected, an image in two splits, no
            images, or a split without any.
    """
    (images,) = _lists(path, "images")
    kinds = {"filename": str, "split": str, "sentences": list} | ({"filepath": str} if folders else {})
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    seen: dict[str, list] = {}
    repeated = 0
    for number, entry in enumerate(images, start=1):
        what = f"image {number}"
        name, split, sentences, *folder = _fields(path, what, entry, kinds)
        said = [(*_fields(path, what, text, {"raw": str}), text.get("sentid")) for text in sentences]
        name, split = "/".join([*folder, name]), "train" if split in also_train else split
        if split not in SPLITS:
            raise _wrong(path, what, f"a split of {', '.join((*SPLITS, *also_train))}", excerpt(split))
        if ".." in name.split("/") or name.startswith("/"):
            raise _wrong(path, what, "an image below the data set's folder", excerpt(name))
        if split_of.setdefault(name, split) != split:
            raise _wrong(
                path, what, f"the entries of {printable(name)} in one split",
                f"{split} after {split_of[name]}", "remove the wrong one",
            )  # fmt: skip
        if said in seen.setdefault(name, []):
            repeated += len(said)
            continue
        seen[name].append(said)
        captions.setdefault(name, []).extend(text for text, _ in said)
    splits = {split: tuple(name for name in split_of if split_of[name] == split) for split in SPLITS}
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        raise ValueError(
            f"{shown(path)}: expected images in the splits {', '.join(SPLITS)}, found none in"
            f" {', '.join(empty)}; get the file again"
        )
    return CaptionFile(path, captions, repeated), splits


def read_coco_captions(files: dict[str, Path]) -> tuple[CaptionFile, Splits]:
    """Captions and splits of COCO's `captions_train*.json` and `captions_val*.json`.

    An image is named with its folder before it.  Captions come in the order of their ids; an image file may
    have several entries, each with an id and captions of its own: they are joined.

    Args:
        files: by image folder, that of train first; the captions go by the name of the first one's folder.

    Raises:
        ValueError: not UTF-8, not JSON, or an entry that is not as expected.
    """
    captions: dict[str, list[str]] = {}
    splits, repeated = {}, 0
    for split, (folder, path) in zip(("train", "val"), files.items()):
        images, annotations = _lists(path, "images", "annotations")
        name_of: dict[int, str] = {}
        texts: dict[str, dict[int, str]] = {}
        for number, image in enumerate(images, start=1):
            key, name = _fields(path, f"image {number}", image, {"id": int, "file_name": str})
            if name_of.setdefault(key, f"{folder}/{name}") != f"{folder}/{name}":
                found = f"{excerpt(key)} again with another"
                raise _wrong(path, f"image {number}", "one file of each id", found)
            texts.setdefault(name_of[key], {})
        for number, said in enumerate(annotations, start=1):
            what = f"annotation {number}"
            key, image, text = _fields(path, what, said, {"id": int, "image_id": int, "caption": str})
            if image not in name_of:
                raise _wrong(path, what, "a caption of an image of the file", f"image_id {excerpt(image)}")
            known = texts[name_of[image]]
            repeated += key in known
            if known.setdefault(key, text) != text:
                raise _wrong(path, what, "one caption of each id", f"{excerpt(key)} again with another")
        splits[split] = tuple(texts)
        captions |= {name: [text for _, text in sorted(said.items())] for name, said in texts.items()}
    return CaptionFile(next(iter(files.values())).parent, captions, repeated), splits


def _lists(path: Path, *keys: str) -> list[list]:
    """The lists of a JSON object, none of them empty."""
    content = parse_json(read_text(path), shown(path))
    lists = [content.get(key) for key in keys] if isinstance(content, dict) else []
    if not lists or not all(isinstance(entries, list) and entries for entries in lists):
        raise ValueError(
            f"{shown(path)}: expected a JSON object with lists {' and '.join(map(repr, keys))} that are not"
            " empty, found another; is it the caption file of this data set?"
        )
    return lists


def _fields(path: Path, what: str, entry: Any, kinds: dict[str, type]) -> list:
    """The values of an entry, checked."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
        raise _wrong(path, what, ", ".join(map(repr, kinds)), excerpt(entry))
    return [entry[key] for key in kinds]


def excerpt(value: object) -> str:
    """The beginning of a value from a JSON file, as JSON, for a message."""
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "brackets nested too deeply"


def _wrong(
    path: Path, what: str, expected: str, found: str, remedy: str = "get the file again"
) -> ValueError:
    return ValueError(f"{shown(path)}, {what}: expected {expected}, found {found}; {remedy}")
