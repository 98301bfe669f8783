"""One's own captioned photos: a folder of images with a table of captions, or a text file beside each."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmlib import files
from mmlib.config import DataConfig
from mmlib.data.captions import read_csv
from mmlib.data.dataset import SPLITS, Dataset
from mmlib.data.decoding import SUFFIXES
from mmlib.data.photos import SYSTEM_FOLDERS, build_dataset, count, first_of, match_names, normal_form
from mmlib.files import nearest, parse_json, printable, read_text, shown

TABLES = ("captions.csv", "captions.tsv", "metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE_COLUMNS = ("file_name", "image", "filename", "file", "image_name", "path")
TEXT_COLUMNS = ("caption", "text", "captions", "texts")
SPLIT_COLUMN = "split"
_BY_COLUMN, _BY_FOLDER = "as the column split says", "by sub-folders"
_REMEDIES = {
    _BY_COLUMN: "write them into the column, or take it out: then splits are drawn",
    _BY_FOLDER: "put photos into train/, val/ and test/, or all into a folder of another name, which has them"
    " drawn",
}
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def load_folder(config: DataConfig) -> Dataset:
    """Loads a folder of photos, sub-folders included, with captions from one of

    - `captions.csv` or `.tsv`: a row for each caption, a column for the image's name (`image`, `file_name`)
      and one for the text (`caption`, `text`), any separator, as Excel and others export it;
    - `metadata.csv`, `metadata.jsonl` or `metadata.parquet` as of Hugging Face's ImageFolder, in the folder
      or in each of its split folders: `file_name`, and a column of texts or of lists of texts;
    - a `.txt` beside each image, one caption a line.

    Splits come from a column `split`, else from the sub-folders `train/`, `val/` (`validation/`, `dev/`) and
    `test/`, else they are drawn by photo: a hash of `split_seed` and the photo's name decides, so a photo
    stays where it is when others are added.  Images are in the order of their names.  What is left out
    (captions without a photo, photos without captions, empty captions) is counted in `notes`.

    Raises:
        FileNotFoundError: the folder, its images or its captions are missing.
        ValueError: a table that cannot be read, an image in two splits, or a split without photos.
    """
    root = files.from_root(config.folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a folder of photos at {shown(root)}, found {'a file' if root.exists() else 'none'};"
            " name it: -p data_root /path/to/photos"
        )
    there, outside = walk_images(root)
    if not there:
        links = f" but {count(outside, 'link')} out of it, which are not followed" if outside else ""
        endings = sorted(
            {path.suffix.lower() for path in root.rglob("*")} & {".heic", ".heif", ".avif", ".svg"}
        )
        others = f" but {', '.join(endings)}" if endings else ""
        raise FileNotFoundError(
            f"expected images (JPEG, PNG, WebP, GIF, BMP or TIFF) in {shown(root)}, found none"
            f"{links or others}; {'save them as JPEG' if others else 'put photos there'}"
        )
    source, rows = _find_captions(root, there)
    captions, split_of, notes = _by_photo(source, rows, there)
    if unused := sorted(set(there) - captions.keys()):
        notes.append(f"Left out: {count(len(unused), 'photo')} without captions: {first_of(unused)}.")
    if outside:
        notes.append(f"Left out: {count(outside, 'link')} that lead out of the folder.")
    if len(captions) < len(SPLITS):
        raise ValueError(
            f"{shown(source)}: expected captions of at least {len(SPLITS)} photos, one for each of"
            f" {', '.join(SPLITS)}, found {len(captions)}; add {'captions' if unused else 'photos'}"
        )
    splits, how = _splits(config, sorted(captions), split_of)
    sizes = ", ".join(f"{split} {len(names):,}" for split, names in splits.items())
    if empty := [split for split in SPLITS if not splits[split]]:
        raise ValueError(
            f"expected photos in each of {', '.join(SPLITS)}, found none in {' and '.join(empty)} ({sizes};"
            f" {how}); {_REMEDIES.get(how) or _remedy(config, sorted(captions))}"
        )
    if elsewhere := sorted(captions.keys() - {name for names in splits.values() for name in names}):
        notes.append(
            f"Left out: {count(len(elsewhere), 'photo')} outside the folders of the splits:"
            f" {first_of(elsewhere)}."
        )
    notes = [f"Photos by split: {sizes} ({how}).", *notes]
    return build_dataset(
        config.data_name, splits, captions, source, root, set(captions), notes, not config.private
    )


def walk_images(root: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Image files below a folder, hidden folders left out, no link followed out of it.

    Returns:
        Each file's path from `root`, in order, with its size and time of change (ns); and the number of
        links that lead out.
    """
    found, outside = {}, 0
    for folder, folders, names in os.walk(root):
        links = [Path(folder, name) for name in folders if os.path.islink(os.path.join(folder, name))]
        outside += sum(not link.resolve().is_relative_to(root.resolve()) for link in links)
        folders[:] = [name for name in folders if not name.startswith(SYSTEM_FOLDERS)]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.lower().endswith(SUFFIXES) or not path.is_file():
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                outside += 1
                continue
            status = path.stat()
            found[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items())), outside


# A row: where it stands, the image's name from the root, its captions, and its split or None.
Row = tuple[str, str, list[str], str | None]


def _find_captions(root: Path, there: Iterable[str]) -> tuple[Path, list[Row]]:
    """The file or folder that the captions come from, and its rows."""
    tables = _tables(root)
    if len(tables) > 1:
        raise ValueError(
            f"expected one table of captions in {shown(root)}, found"
            f" {' and '.join(path.name for path in tables)}; keep one"
        )
    if not tables:
        tables = [
            table
            for folder in sorted(root.iterdir())
            if folder.name.lower() in SPLIT_WORDS and folder.is_dir()
            for table in _tables(folder)
        ]
    if tables:
        rows = [row for path in tables for row in _table_rows(path, path.parent.relative_to(root))]
        return tables[0] if len(tables) == 1 else root, rows
    rows = []
    for name in there:
        text = (root / name).with_suffix(".txt")
        if text.is_file():
            lines = [line for line in read_text(text).splitlines() if line.strip()]
            rows.append((shown(text), name, lines or [""], None))
    if not rows:
        endings = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", ".json", ".jsonl", ".parquet")
        others = sorted(path.name for path in root.iterdir() if path.name.lower().endswith(endings))
        if below := [path for path in sorted(root.iterdir()) if path.is_dir() and _tables(path)]:
            raise FileNotFoundError(
                f"expected captions of the photos in {shown(root)}, found {_tables(below[0])[0].name} in"
                f" {printable(below[0].name)}; name that folder: -p data_root {shown(below[0])}"
            )
        found = f"{first_of(others)}; save it as captions.csv" if others else "none; write captions.csv"
        raise FileNotFoundError(
            f"expected captions of the photos in {shown(root)}: {', '.join(TABLES)}, or a .txt beside each"
            f" photo, found {found} with the columns image and caption"
        )
    return root, rows


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower() in TABLES and path.is_file())


def _table_rows(path: Path, folder: Path) -> list[Row]:
    records = _RECORDS[path.suffix.lower()](path)
    columns = {
        re.sub(r"[\s-]+", "_", str(name).strip().casefold()): name for _, record in records for name in record
    }
    image = _column(path, columns, IMAGE_COLUMNS, "the image's name")
    text = _column(path, columns, TEXT_COLUMNS, "the caption")
    split = columns.get(SPLIT_COLUMN)
    rows = []
    for where, record in records:
        name, said, part = record.get(image), record.get(text), record.get(split)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: expected the name of an image, found {name!r}; correct the row")
        # a list in JSON, an array of parquet; what is not there is None, or NaN in a table of pandas
        said = [None if one != one else one for one in (said if np.ndim(said) == 1 else [said])]
        if wrong := [caption for caption in said if not isinstance(caption, str | None)]:
            raise ValueError(f"{where}: expected a text, found {wrong[0]!r}; correct the row")
        part = None if part is None or part != part else SPLIT_WORDS.get(str(part).strip().lower(), part)
        if part not in (None, *SPLITS):
            raise ValueError(
                f"{where}: expected a split of {', '.join(SPLIT_WORDS)}, found {str(part)[:80]!r}; correct it"
            )
        from_root = PurePosixPath(folder.as_posix(), name.strip().replace("\\", "/"))
        rows.append((where, str(from_root), [caption or "" for caption in said], part))
    return rows


def _column(path: Path, columns: Mapping[str, str], known: tuple[str, ...], what: str) -> str:
    found = [columns[name] for name in known if name in columns]
    if not found:
        near = "".join(filter(None, (nearest(name, known) for name in columns)))
        raise ValueError(
            f"{shown(path)}: expected a column with {what}, called {' or '.join(known[:2])}, found"
            f" {', '.join(map(repr, columns)) or 'none'}{near}; name it so in the first line"
        )
    return found[0]


def _read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{shown(path)}, line {number}"
            value = parse_json(line, where)
            if not isinstance(value, dict):
                raise ValueError(f"{where}: expected a JSON object, found {line[:80]!r}; correct the line")
            rows.append((where, value))
    return rows


def _read_parquet(path: Path) -> list[tuple[str, dict[str, Any]]]:
    import pandas as pd

    try:
        records = pd.read_parquet(path).to_dict("records")
    except ImportError:
        raise ValueError(
            f"{shown(path)}: reading parquet needs pyarrow, which is not installed; pip install pyarrow, or"
            " save the table as metadata.csv"
        ) from None
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(f"{shown(path)}: expected a parquet file, found {error}; get it again") from None
    return [(f"{shown(path)}, row {number}", record) for number, record in enumerate(records, start=1)]


_RECORDS = {".csv": read_csv, ".tsv": read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _by_photo(
    source: Path, rows: list[Row], there: Iterable[str]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str], list[str]]:
    """Captions of each photo that is there, its split if the table says one, and notes on the rest."""
    file_of = _files_of({name for _, name, _, _ in rows}, list(there), source)
    captions, split_of, empty = defaultdict(list), {}, 0
    for where, name, said, split in rows:
        if name not in file_of:
            continue
        file = file_of[name]
        captions[file] += [caption.strip() for caption in said if caption.strip()]
        empty += sum(not caption.strip() for caption in said)
        if split is not None and split_of.setdefault(file, split) != split:
            raise ValueError(
                f"{where}: expected {printable(name)} in one split, found {split} after {split_of[file]};"
                " correct the row"
            )
    captions = {file: tuple(said) for file, said in captions.items() if said}
    names = list(dict.fromkeys(name for _, name, _, _ in rows))
    missing = [name for name in names if name not in file_of]
    if not captions and empty and len(missing) < len(names):
        raise ValueError(f"{shown(source)}: expected captions, found only empty ones; fill them in")
    if not captions:
        raise ValueError(
            f"{shown(source)}: expected captions of the photos, found none for any: it names"
            f" {first_of(names) or 'no image'}, the folder has {first_of(sorted(there))}; correct the names"
        )
    if split_of and (unsplit := sorted(captions.keys() - split_of.keys())):
        raise ValueError(
            f"{shown(source)}: expected a split for every photo or for none, found none for"
            f" {first_of(unsplit)}; fill the column in"
        )
    notes = []
    if missing:
        notes.append(
            f"Left out: captions of {count(len(missing), 'photo')} without a file: {first_of(missing)}."
        )
    if empty:
        notes.append(f"Left out: {count(empty, 'empty caption')}.")
    return captions, split_of, notes


def _files_of(names: set[str], there: list[str], source: Path) -> dict[str, str]:
    """Each name of a table → the file that it means: the path from the root, else a file of that name."""
    found = match_names(sorted(names), there, shown(source.parent))
    by_name = defaultdict(list)
    for file in there:
        by_name[normal_form(PurePosixPath(file).name)].append(file)
    for name in sorted(names - found.keys()):
        files = by_name[normal_form(PurePosixPath(name).name)]
        if len(files) > 1:
            raise ValueError(
                f"{shown(source)}: expected one file {printable(PurePosixPath(name).name)}, found"
                f" {printable(' and '.join(files))}; write the folder before the name"
            )
        if files:
            found[name] = files[0]
    return found


def _splits(
    config: DataConfig, names: list[str], split_of: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], str]:
    """Photos by split, and where the splits come from, in words."""
    folder_of = {name: SPLIT_WORDS.get(name.partition("/")[0].lower()) for name in names}
    if split_of:
        chosen, how = split_of, _BY_COLUMN
    elif any(folder_of.values()):
        chosen, how = folder_of, _BY_FOLDER
    else:
        chosen = {name: _drawn(config, name) for name in names}
        how = (
            f"drawn by split_seed {config.split_seed}, val_fraction {config.val_fraction:g}, test_fraction"
            f" {config.test_fraction:g}"
        )
    return {split: tuple(name for name in names if chosen[name] == split) for split in SPLITS}, how


def _remedy(config: DataConfig, names: list[str]) -> str:
    """What to do about drawn splits without photos: the first seed that gives each split some."""
    for seed in range(1000):
        if {_drawn(config, name, seed) for name in names} == set(SPLITS):
            return f"use split_seed {seed}, or add photos"
    return "add photos, or raise val_fraction and test_fraction"


def _drawn(config: DataConfig, name: str, seed: int | None = None) -> str:
    seed = config.split_seed if seed is None else seed
    digest = hashlib.sha256(f"{seed}/{normal_form(name)}".encode()).digest()
    uniform = int.from_bytes(digest[:8]) / 2**64
    if uniform < config.test_fraction:
        return "test"
    return "val" if uniform < config.test_fraction + config.val_fraction else "train"
