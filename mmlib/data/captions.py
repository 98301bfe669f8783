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
from typing import Any

from mmlib.data.dataset import SPLITS
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


def read_karpathy(
    path: Path, also_train: tuple[str, ...] = (), folders: bool = False
) -> tuple[CaptionFile, dict[str, tuple[str, ...]]]:
    """Captions (each sentence's `raw`) and image names by split, in the order of the file.

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
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f"{shown(path)}: expected a JSON object with a list 'images', found another;"
            " is it Karpathy's dataset file?"
        )
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    seen: dict[str, list] = {}
    repeated = 0
    for number, entry in enumerate(entries, start=1):
        name, split, sentences = _read_entry(path, number, entry, also_train, folders)
        if split_of.setdefault(name, split) != split:
            raise ValueError(
                f"{shown(path)}, image {number}: expected the entries of {printable(name)} in one split,"
                f" found {split} after {split_of[name]}; remove the wrong one"
            )
        if sentences in seen.setdefault(name, []):
            repeated += len(sentences)
            continue
        seen[name].append(sentences)
        captions.setdefault(name, []).extend(text for _, text in sentences)
    splits = {split: tuple(name for name in split_of if split_of[name] == split) for split in SPLITS}
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        raise ValueError(
            f"{shown(path)}: expected images in the splits {', '.join(SPLITS)}, found none in"
            f" {', '.join(empty)}; get the file again"
        )
    return CaptionFile(path, {name: tuple(texts) for name, texts in captions.items()}, repeated), splits


def _read_entry(
    path: Path, number: int, entry: dict, also_train: tuple[str, ...], folders: bool
) -> tuple[str, str, list[tuple[object, str]]]:
    """Name, split and captions of one entry, each caption with its `sentid` (None if it has none)."""
    wanted = "'filename', 'filepath'," if folders else "'filename',"
    try:
        name, split = entry["filename"], entry["split"]
        name = f"{entry['filepath']}/{name}" if folders and isinstance(name, str) else name
        sentences = [(sentence.get("sentid"), sentence["raw"]) for sentence in entry["sentences"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)}, image {number}: expected {wanted} 'split' and 'sentences' with 'raw',"
            f" found {excerpt(entry)}; get the file again"
        ) from error
    split = "train" if split in also_train else split
    texts = (name, *(text for _, text in sentences))
    if split not in SPLITS or not all(isinstance(text, str) for text in texts):
        known = ", ".join((*SPLITS, *also_train))
        raise ValueError(
            f"{shown(path)}, image {number}: expected a split of {known} and texts, found"
            f" split {excerpt(split)} and file name {excerpt(name)}; get the file again"
        )
    if ".." in name.split("/") or name.startswith("/"):
        raise ValueError(
            f"{shown(path)}, image {number}: expected an image below the data set's folder, found"
            f" {excerpt(name)}; get the file again"
        )
    return name, split, sentences


def read_coco_captions(files: dict[str, Path]) -> tuple[CaptionFile, dict[str, tuple[str, ...]]]:
    """Captions and splits of the official files; the captions go by the folder of the first."""
    captions: dict[str, tuple[str, ...]] = {}
    splits, repeated = {}, 0
    for split, (part, path) in zip(("train", "val"), files.items()):
        texts, more = _read_annotations(path, part)
        splits[split] = tuple(texts)
        captions |= texts
        repeated += more
    return CaptionFile(next(iter(files.values())).parent, captions, repeated), splits


def _read_annotations(path: Path, part: str) -> tuple[dict[str, tuple[str, ...]], int]:
    """Captions in the order of their ids by image name, with the folder `part` before it; how many repeat.

    An image file may have several entries, each with an id and captions of its own: they are joined.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and content[key] for key in ("images", "annotations")
    ):
        raise ValueError(
            f"{shown(path)}: expected a JSON object with lists 'images' and 'annotations' that are not empty,"
            " found another; is it COCO's caption file?"
        )
    name_of: dict[int, str] = {}
    texts: dict[str, dict[int, str]] = {}
    repeated = 0
    for number, image in enumerate(content["images"], start=1):
        key, name = _coco_fields(path, f"image {number}", image, {"id": int, "file_name": str})
        if name_of.setdefault(key, f"{part}/{name}") != f"{part}/{name}":
            raise ValueError(
                f"{shown(path)}, image {number}: expected one file of each id, found"
                f" {excerpt(key)} again with another; get the file again"
            )
        texts.setdefault(name_of[key], {})
    for number, said in enumerate(content["annotations"], start=1):
        what = f"annotation {number}"
        key, image, text = _coco_fields(path, what, said, {"id": int, "image_id": int, "caption": str})
        if image not in name_of:
            raise ValueError(
                f"{shown(path)}, {what}: expected a caption of an image of the file, found image_id"
                f" {excerpt(image)}; get the file again"
            )
        if key not in texts[name_of[image]]:
            texts[name_of[image]][key] = text
        elif texts[name_of[image]][key] == text:
            repeated += 1
        else:
            raise ValueError(
                f"{shown(path)}, {what}: expected one caption of each id, found {excerpt(key)} again with"
                " another; get the file again"
            )
    ordered = {name: tuple(text for _, text in sorted(said.items())) for name, said in texts.items()}
    return ordered, repeated


def _coco_fields(path: Path, what: str, entry: Any, kinds: dict[str, type]) -> list:
    """The values of an entry, checked."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(
            f"{shown(path)}, {what}: expected {', '.join(map(repr, kinds))}, found {excerpt(entry)};"
            " get the file again"
        )
    return [entry[key] for key in kinds]
