"""MS-COCO captions: Karpathy's splits, or the official ones of 2014 or 2017.

Lin et al. (2014), "Microsoft COCO: Common Objects in Context", ECCV; captions: Chen et al. (2015),
"Microsoft COCO Captions"; splits: Karpathy and Fei-Fei (2015), "Deep Visual-Semantic Alignments for
Generating Image Descriptions".
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from mmlib.data.caption_files import CaptionFile, excerpt, read_json
from mmlib.data.caption_sets import Splits, build_dataset, find_file, find_root, note_sizes
from mmlib.data.dataset import Dataset
from mmlib.data.image_folder import list_images, note_skipped
from mmlib.data.karpathy import read_karpathy
from mmlib.files import checked_name
from mmlib.paths import shown

KARPATHY_FILE = "dataset_coco.json"
REST = "restval"  # what Karpathy left over of the official val split
YEARS = ("2014", "2017")
SPLIT_SIZES = {
    "karpathy": {"train": 113_287, "val": 5_000, "test": 5_000},
    "2014": {"train": 82_783, "val": 40_504},
    "2017": {"train": 118_287, "val": 5_000},
}


def load_coco(root: str | Path) -> Dataset:
    """Loads MS-COCO with its captions (123,287 images, mostly 5 captions each).

    `root` holds the images in `train2014/` and `val2014/` (or `train2017/` and `val2017/`), side by
    side in `root` or in a folder of it, and text files, in `root` or in a folder of it:

    - `dataset_coco.json` (Karpathy): train 113,287, val 5,000, test 5,000 images.  `restval` counts
      as train, as in most published figures on these splits; images of 2014;
    - without it `captions_train2014.json` and `captions_val2014.json`, or the same of 2017: the
      official splits.  Captions of the official test images were never published: such a data set
      has no split `test`, and who asks for it is told so.

    An image's name begins with its folder (`val2014/COCO_val2014_000000391895.jpg`).  Images come in
    the order of the file, captions in that of their ids.  The first call hashes every image for the
    fingerprint; later ones reuse what has not changed.

    Args:
        root: the folder; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: the folder, the captions, an image folder or the image of a split is missing.
        ValueError: a file is malformed, not UTF-8, or there twice with different content; the captions
            of both years; an image is in two splits or has no caption.
    """
    root = find_root(root, "COCO")
    if path := find_file(root, KARPATHY_FILE):
        captions, splits = read_karpathy(path, also_train=(REST,), folders=True)
        notes = [f"Images that {KARPATHY_FILE} calls {REST} are in train."]
        notes += note_sizes(splits, SPLIT_SIZES["karpathy"], "Karpathy's, with restval in train,")
    else:
        year, files = _find_official(root)
        captions, splits = _read_official(files)
        notes = [
            "No test split: the captions of COCO's own were never published; dataset_coco.json (Karpathy)"
            " has one.",
            *note_sizes(splits, SPLIT_SIZES[year], f"COCO's own of {year}"),
        ]
    parts = sorted({name.rpartition("/")[0] for names in splits.values() for name in names})
    for part in parts:
        checked_name(part, "image folder")
    folder = _find_images(root, parts)
    files, skipped = set(), Counter()
    for part in parts:
        names, _, others = list_images(folder / part)
        files |= {f"{part}/{name}" for name in names}
        skipped += others
    return build_dataset("coco", splits, [captions], folder, files, notes + note_skipped(skipped))


def _find_official(root: Path) -> tuple[str, dict[str, Path]]:
    """The year of the official captions, and their files by image folder."""
    found: dict[str, dict[str, Path]] = {}
    for year in YEARS:
        paths = {f"{split}{year}": find_file(root, _caption_file(split, year)) for split in ("train", "val")}
        if any(paths.values()):
            found[year] = paths
    if not found:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {KARPATHY_FILE} (Karpathy) or"
            f" {_caption_file('train', '2014')} and {_caption_file('val', '2014')} (official, also of 2017),"
            " found none; put them there"
        )
    if len(found) > 1:
        raise ValueError(
            f"expected captions of one year in {shown(root)}, found those of {' and '.join(found)}, whose"
            f" splits differ; move one year's away, or put {KARPATHY_FILE} there, which decides"
        )
    ((year, paths),) = found.items()
    missing = [part for part, path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"expected captions_{missing[0]}.json in {shown(root)} or a folder of it, found none; it comes"
            f" with the other file in COCO's annotations_trainval{year}.zip"
        )
    return year, paths


def _caption_file(split: str, year: str) -> str:
    return f"captions_{split}{year}.json"


def _read_official(files: dict[str, Path]) -> tuple[CaptionFile, Splits]:
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
        key, name = _fields(path, f"image {number}", image, {"id": int, "file_name": str})
        if name_of.setdefault(key, f"{part}/{name}") != f"{part}/{name}":
            raise ValueError(
                f"{shown(path)}, image {number}: expected one file of each id, found"
                f" {excerpt(key)} again with another; get the file again"
            )
        texts.setdefault(name_of[key], {})
    for number, said in enumerate(content["annotations"], start=1):
        what = f"annotation {number}"
        key, image, text = _fields(path, what, said, {"id": int, "image_id": int, "caption": str})
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


def _fields(path: Path, what: str, entry: Any, kinds: dict[str, type]) -> list:
    """The values of an entry, checked."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(
            f"{shown(path)}, {what}: expected {', '.join(map(repr, kinds))}, found {excerpt(entry)};"
            " get the file again"
        )
    return [entry[key] for key in kinds]


def _find_images(root: Path, parts: list[str]) -> Path:
    """The folder that holds all the image folders."""
    folders = [root, *list_images(root)[1]]
    for folder in folders:
        if all(os.path.isdir(folder / part) for part in parts):  # False where it may not be read
            return folder
    there = [shown(folder / part) for folder in folders for part in parts if os.path.isdir(folder / part)]
    raise FileNotFoundError(
        f"expected the image folders {', '.join(f'{part}/' for part in parts)} side by side in"
        f" {shown(root)} or a folder of it, found {', '.join(there) or 'none'}; unpack COCO's zip files there"
    )
