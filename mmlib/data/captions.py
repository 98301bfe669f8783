"""Readers of caption files: token file, CSV, split list, the JSON of Karpathy and of COCO.

Captions are kept exactly as published: empty ones, tabs, commas, quotes, `#` and all.  Files are
UTF-8, with or without a byte order mark, with Unix or Windows line ends.  A reader gives the captions of
each image in order, images in the order of the file; what an image without captions means is left to
the data set.
"""

import csv
import io
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from mmlib.data.dataset import SPLITS
from mmlib.data.decoding import SUFFIXES
from mmlib.files import parse_json, printable, read_bounded, read_text, shown

Captions = dict[str, list[str]]  # of each image
Splits = dict[str, list[str]]  # image names of each split

SEPARATORS = ",;\t|"  # of tables
_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#(?P<number>[0-9]{1,9})\t(?P<caption>.*)", re.DOTALL)
# A line within a quoted field that begins as a row does: a quotation mark before it was not closed.
_ENDINGS = "|".join(map(re.escape, SUFFIXES))
_SWALLOWED_ROW = re.compile(
    rf"[\r\n][^\r\n{SEPARATORS}]*(?:{_ENDINGS})\"?[ \t]*([{SEPARATORS}].*|$)", re.IGNORECASE
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
            raise ValueError(
                f"{shown(path)}, line {number}: expected lines that end in LF or CRLF, found a carriage"
                " return inside one; convert the line ends"
            )
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_token_file(path: Path) -> dict[str, dict[int, str]]:
    """Captions of each image by number, from `name.jpg#0<TAB>caption` lines, as in `Flickr8k.token.txt`.

    The numbers of an image are in order.

    Raises:
        ValueError: a malformed line, one number with two different captions, or not UTF-8.
    """
    numbered: dict[str, dict[int, str]] = {}
    for line_number, line in read_lines(path):
        match = _TOKEN_LINE.fullmatch(line)
        if not match:
            raise ValueError(
                f"{shown(path)}, line {line_number}: expected 'name.jpg#0<TAB>caption', found {line[:80]!r};"
                " correct or remove the line"
            )
        captions = numbered.setdefault(match["image"], {})
        known = captions.setdefault(int(match["number"]), match["caption"])
        if known != match["caption"]:
            raise ValueError(
                f"{shown(path)}, line {line_number}: expected one caption for"
                f" {printable(match['image'])}#{match['number']}, found a second, {match['caption'][:80]!r}"
                f" after {known[:80]!r}; remove the wrong line"
            )
    return {image: dict(sorted(captions.items())) for image, captions in numbered.items()}


def read_csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Rows of a table under a header, with any separator; UTF-8, or UTF-16 as Excel's "Unicode text".

    Returns:
        Of each row that is not blank, where it stands (file and line), and its fields by column.

    Raises:
        ValueError: no rows, a malformed row, a quotation mark that is not closed, or not UTF-8.
    """
    content = read_bounded(path)
    is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16", "replace") if is_utf16 else read_text(path)
    except ValueError as error:
        raise ValueError(f"{error} (in Excel: Save As, CSV UTF-8)") from None
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's own mark
        separator, text = first.strip()[4], rest
    else:
        separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, header, start = [], None, 1
    try:
        for row in reader:
            where, start = f"{shown(path)}, line {start}", reader.line_num + 1
            if not any(row):
                continue
            if header is None:
                header = [name.strip() for name in row]
                continue
            if any(row[len(header) :]) or len(row) < len([name for name in header if name]):
                raise ValueError(
                    f"{where}: expected {len(header)} fields, found {len(row)} in"
                    f" {separator.join(row)[:80]!r}; put captions that hold {separator!r} in double quotes"
                )
            for field in row:
                if swallowed := _SWALLOWED_ROW.search(field):
                    raise ValueError(
                        f"{where}: expected a closing quotation mark before the next row, found"
                        f" {swallowed[0].strip()[:60]!r} in a field; correct the row"
                    )
            rows.append((where, {name: value for name, value in zip(header, row) if name}))
    except csv.Error as error:
        raise ValueError(f"{shown(path)}, line {start}: {error}; correct the row") from None
    if not rows:
        raise ValueError(
            f"{shown(path)}: expected captions below the header, found none; write a row for each caption"
        )
    return rows


def read_caption_csv(path: Path) -> Captions:
    """Captions from rows under the header `image,caption`, as in the Kaggle copy's `captions.txt`.

    Rows have no caption number, so two equal rows may be two people's equal captions: all are kept.

    Raises:
        ValueError: another header, a row without a name, or as `read_csv`.
    """
    captions: Captions = {}
    for where, row in read_csv(path):
        if not row.get("image") or "caption" not in row:
            raise ValueError(
                f"{where}: expected 'name.jpg,caption' under the header 'image,caption', found"
                f" {','.join(row.values())[:80]!r} under {','.join(row)[:80]!r}; correct the file"
            )
        captions.setdefault(row["image"], []).append(row["caption"])
    return captions


def read_split_list(path: Path) -> list[str]:
    """One image name a line, each once.

    Raises:
        ValueError: no names, or not UTF-8.
    """
    names = [line.strip() for _, line in read_lines(path)]
    if not names:
        raise ValueError(
            f"{shown(path)}: expected one image name a line, found none; get the file from the original"
            " distribution again"
        )
    return list(dict.fromkeys(names))


class Sentence(BaseModel, strict=True):
    raw: str
    sentid: int | None = None


class KarpathyImage(BaseModel, strict=True):
    filename: str
    split: Literal["train", "val", "test", "restval"]
    sentences: list[Sentence]
    filepath: str = ""


class Karpathy(BaseModel, strict=True):
    images: list[KarpathyImage]


class CocoImage(BaseModel, strict=True):
    id: int
    file_name: str


class CocoCaption(BaseModel, strict=True):
    id: int
    image_id: int
    caption: str


class Coco(BaseModel, strict=True):
    images: list[CocoImage]
    annotations: list[CocoCaption]


def read_karpathy(path: Path) -> tuple[Captions, Splits]:
    """Captions (each sentence's `raw`) and image names by split of `dataset_*.json` (Karpathy, Fei-Fei 2015).

    An image's name begins with its folder (`filepath`), where the file gives one; `restval` of COCO counts
    as `train`.  The captions of an image that has several entries are joined, in the order of the file; an
    entry that repeats an earlier one of its image counts once.

    Raises:
        ValueError: not UTF-8, not JSON, an entry that is not as expected, an image in two splits, or a split
            without any.
    """
    captions: Captions = {}
    split_of: dict[str, str] = {}
    seen = set()
    for number, image in enumerate(_read(path, Karpathy).images):
        name = f"{image.filepath}/{image.filename}" if image.filepath else image.filename
        split = "train" if image.split == "restval" else image.split
        if split_of.setdefault(name, split) != split:
            raise ValueError(
                f"{shown(path)}, images.{number}: expected the entries of {printable(name)} in one split,"
                f" found {split} after {split_of[name]}; remove the wrong one"
            )
        entry = (name, *((sentence.raw, sentence.sentid) for sentence in image.sentences))
        captions.setdefault(name, []).extend(raw for raw, _ in entry[1:] if entry not in seen)
        seen.add(entry)
    splits: Splits = {split: [name for name in split_of if split_of[name] == split] for split in SPLITS}
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ValueError(
            f"{shown(path)}: expected images in the splits {', '.join(SPLITS)}, found none in"
            f" {', '.join(empty)}; get the file again"
        )
    return captions, splits


def read_coco_captions(path: Path, folder: str) -> Captions:
    """Captions of COCO's `captions_*.json`, in the order of their ids.

    The captions of an image file that has several entries, each with an id of its own, are joined.

    Args:
        path: the file.
        folder: of the images; it stands before their names.

    Raises:
        ValueError: not UTF-8, not JSON, an entry that is not as expected, or an id of two images or captions.
    """
    content = _read(path, Coco)
    name_of: dict[int, str] = {}
    said_by: dict[int, CocoCaption] = {}
    for kind, known, key, value in (
        *(("image", name_of, image.id, f"{folder}/{image.file_name}") for image in content.images),
        *(("annotation", said_by, said.id, said) for said in content.annotations),
    ):
        if known.setdefault(key, value) != value:
            raise ValueError(
                f"{shown(path)}: expected one {kind} of each id, found two of id {key}; get the file again"
            )
    captions: Captions = {name: [] for name in name_of.values()}
    for _, said in sorted(said_by.items()):
        if said.image_id not in name_of:
            raise ValueError(
                f"{shown(path)}, annotation {said.id}: expected a caption of an image of the file, found"
                f" image_id {said.image_id}; get the file again"
            )
        captions[name_of[said.image_id]].append(said.caption)
    return captions


def _read(path: Path, kind: type[BaseModel]) -> BaseModel:
    """The JSON of a file, checked; the first error is named by its place."""
    content = parse_json(read_text(path), shown(path))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        value = first["input"]
        found = value if isinstance(value, str | int) else type(value).__name__
        place = ".".join(map(str, first["loc"])) or "the file"
        expected = first["msg"].replace("Input should be", "expected")
        raise ValueError(
            f"{shown(path)}, {place}: {expected}, found {found!r:.80}; get the file again"
        ) from None
