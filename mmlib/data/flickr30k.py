"""Flickr30k from the folders that people have: Karpathy's JSON, or the original captions and split lists.

Young, Lai, Hodosh, Hockenmaier (2014), "From Image Descriptions to Visual Denotations", TACL 2:67–78;
splits: Karpathy and Fei-Fei (2015), "Deep Visual-Semantic Alignments for Generating Image Descriptions".
"""

import os
import re
from pathlib import Path

from mmlib.data.caption_files import CaptionFile, read_split_list, read_token_file
from mmlib.data.caption_sets import (
    Splits,
    build_dataset,
    find_file,
    find_root,
    note_sizes,
    only_copy,
    read_official_splits,
    text_folders,
)
from mmlib.data.dataset import SPLITS, Dataset
from mmlib.data.decoding import SUFFIXES
from mmlib.data.image_folder import find_image_folder
from mmlib.data.karpathy import read_karpathy
from mmlib.paths import shown

TOKEN_FILE = "results_20130124.token"
KARPATHY_FILE = "dataset_flickr30k.json"
IMAGE_FOLDERS = (
    "flickr30k-images", "flickr30k_images", "Flickr30k-images", "Flickr30k_images", "Images", "images",
)  # fmt: skip
SPLIT_SIZES = {"train": 29_000, "val": 1_014, "test": 1_000}  # Karpathy's
SPLIT_LIST = re.compile(r"(?:(?:flickr_?30k|karpathy)[._-]?)?(\w+?)[._-]?(?:images|imgs|ids)?\.txt")
SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)


def load_flickr30k(root: str | Path) -> Dataset:
    """Loads Flickr30k (29,000/1,014/1,000 images, 5 captions each) with its usual splits.

    `root` holds one folder of images, at any of the usual names and also nested in itself, and
    text files, in `root` or in a folder of it:

    - captions from `results_20130124.token` (the original), else `dataset_flickr30k.json` (Karpathy);
    - splits from three lists, else from Karpathy's JSON.  A list has one image a line, by name or
      number, and is named for its split: `train.txt`, `val.txt`, `test.txt`, also with `dev` or
      `valid` for `val`, after `flickr30k_` or `karpathy_`, before `_images`, `Images` or `_ids`, in
      any case.  There is no random split: its figures could be compared with nobody's, which is also
      why a note says so where the sizes are not Karpathy's.

    Images come in the order of the split lists (of the JSON without them), captions in the order of
    their numbers.  Known oddities, and files that disagree with the one used, become `notes`.  The
    first call hashes every image for the fingerprint; later ones reuse what has not changed.

    Args:
        root: the folder; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: the folder, the captions, a split or the image of a split is missing.
        ValueError: a text file is empty, malformed, not UTF-8, or there twice with different
            content; an image is in two splits or has no caption; several image folders and none of
            a usual name.
    """
    root = find_root(root, "Flickr30k")
    captions, karpathy = _read_captions(root)
    splits, notes = _read_splits(root, karpathy)
    folder, files, found = find_image_folder(root, IMAGE_FOLDERS, sum(splits.values(), ()))
    notes += found + note_sizes(splits, SPLIT_SIZES, "Karpathy's")
    return build_dataset("flickr30k", splits, captions, folder, files, notes)


def _read_captions(root: Path) -> tuple[list[CaptionFile], Splits]:
    """Every caption file that is there, the one to use first; and Karpathy's splits."""
    captions, splits = [], {}
    if path := find_file(root, TOKEN_FILE):
        captions.append(read_token_file(path))
    if path := find_file(root, KARPATHY_FILE):
        karpathy, splits = read_karpathy(path)
        captions.append(karpathy)
    if not captions:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {TOKEN_FILE} (original) or"
            f" {KARPATHY_FILE} (Karpathy, with the splits), found none; put one there"
        )
    return captions, splits


def _read_splits(root: Path, karpathy: Splits) -> tuple[Splits, list[str]]:
    """Image names by split, and notes."""
    lists = _find_lists(root)
    if karpathy and not lists:
        return karpathy, []
    missing = [split for split in SPLITS if split not in lists]
    if missing:
        raise FileNotFoundError(
            f"expected the list of the images of {missing[0]}, {missing[0]}.txt, in {shown(root)} or a folder"
            f" of it, found none ({len(missing)} of 3 lists are missing); put {KARPATHY_FILE} there in place"
            " of all three, or the lists that were made of it"
        )
    read = {}
    for split in SPLITS:
        names, repeated = read_split_list(lists[split])
        read[split] = (tuple(map(_image_name, names)), repeated, lists[split])
    return read_official_splits(read, karpathy, KARPATHY_FILE)


def _find_lists(root: Path) -> dict[str, Path]:
    """The list of each split; equal copies count as one."""
    found: dict[str, list[Path]] = {}
    for path in (path for folder in text_folders(root) for path in _files(folder)):
        match = SPLIT_LIST.fullmatch(path.name.lower())
        if match and match[1] in SPLIT_WORDS and os.path.isfile(path):
            found.setdefault(SPLIT_WORDS[match[1]], []).append(path)
    return {split: only_copy(paths) for split, paths in found.items()}


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names; nothing of one that may not be read."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _image_name(entry: str) -> str:
    """`1000092795.jpg` from itself or from its number; other image files by name alone."""
    return entry if entry.lower().endswith(SUFFIXES) else f"{entry}.jpg"
