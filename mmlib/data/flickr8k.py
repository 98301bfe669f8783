"""Flickr8k from the folders that people have: the original, the Kaggle copy, Karpathy's JSON.

Hodosh, Young, Hockenmaier (2013), "Framing Image Description as a Ranking Task", JAIR 47:853–899.
"""

from pathlib import Path

from mmlib.data.caption_files import CaptionFile, read_caption_csv, read_split_list, read_token_file
from mmlib.data.caption_sets import (
    Splits,
    build_dataset,
    find_file,
    find_root,
    read_official_splits,
)
from mmlib.data.dataset import Dataset
from mmlib.data.image_folder import find_image_folder
from mmlib.data.karpathy import read_karpathy
from mmlib.paths import shown

TOKEN_FILE = "Flickr8k.token.txt"
CAPTION_CSV = "captions.txt"
KARPATHY_FILE = "dataset_flickr8k.json"
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")


def load_flickr8k(root: str | Path) -> Dataset:
    """Loads Flickr8k (6,000/1,000/1,000 images, 5 captions each) with its official splits.

    `root` holds one folder of images, at any of the usual names and also nested in itself, and
    text files, in `root` or in a folder of it such as `Flickr8k_text/`:

    - captions from `Flickr8k.token.txt` (the original, with caption numbers), else `captions.txt`
      (Kaggle), else `dataset_flickr8k.json` (Karpathy): the first of these that is there;
    - splits from `Flickr_8k.{train,dev,test}Images.txt`, else from Karpathy's JSON.  There is no
      random split: its figures could be compared with nobody's.

    Images come in the order of the split lists (of the JSON without them), captions in the order of
    their numbers.  Known oddities, and files that disagree with the one used, become `notes`.  The
    first call hashes every image for the fingerprint; later ones reuse what has not changed.

    Args:
        root: the folder; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: the folder, the captions, a split file or the image of a split is missing.
        ValueError: a text file is empty, malformed, not UTF-8, or there twice with different
            content; an image is in two splits or has no caption; several image folders and none of
            a usual name.
    """
    root = find_root(root, "Flickr8k")
    sources = _read_captions(root)
    splits, notes = _read_splits(root, sources)
    folder, files, found = find_image_folder(root, IMAGE_FOLDERS, sum(splits.values(), ()))
    notes += found
    return build_dataset("flickr8k", splits, [captions for captions, _ in sources], folder, files, notes)


def _read_captions(root: Path) -> list[tuple[CaptionFile, Splits | None]]:
    """Every caption file that is there, the one to use first, with the splits if it has them."""
    sources = []
    if path := find_file(root, TOKEN_FILE):
        sources.append((read_token_file(path), None))
    if path := find_file(root, CAPTION_CSV):
        sources.append((read_caption_csv(path), None))
    if path := find_file(root, KARPATHY_FILE):
        sources.append(read_karpathy(path))
    if not sources:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {TOKEN_FILE} (original),"
            f" {CAPTION_CSV} (Kaggle) or {KARPATHY_FILE} (Karpathy), found none; put one there"
        )
    return sources


def _read_splits(root: Path, sources: list[tuple[CaptionFile, Splits | None]]) -> tuple[Splits, list[str]]:
    """Official image names by split, and notes."""
    lists = {split: find_file(root, name) for split, name in SPLIT_FILES.items()}
    karpathy = next((splits for _, splits in sources if splits), None)
    if karpathy and not any(lists.values()):
        return karpathy, []
    missing = [SPLIT_FILES[split] for split, path in lists.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"expected the official split file {missing[0]} in {shown(root)} or a folder of it, found none"
            f" ({len(missing)} of 3 split files are missing); it comes with the original text archive,"
            f" Flickr8k_text.zip: put it there, or {KARPATHY_FILE} in place of all three"
        )
    read = {split: (*read_split_list(path), path) for split, path in lists.items()}
    return read_official_splits(read, karpathy or {}, KARPATHY_FILE)
