"""Reader of the `dataset_*.json` files of Karpathy and Fei-Fei (2015): captions and splits in one."""

import json
from pathlib import Path

from mmlib.data.caption_files import CaptionFile, read_json
from mmlib.data.dataset import SPLITS
from mmlib.paths import shown


def read_karpathy(
    path: Path, also_train: tuple[str, ...] = (), folders: bool = False
) -> tuple[CaptionFile, dict[str, tuple[str, ...]]]:
    """Captions (each sentence's `raw`) and image names by split, in the order of the file.

    An image that is listed twice with the same split and captions is taken once and its captions
    are counted as repeated.

    Args:
        path: the file.
        also_train: further splits of the file that count as `train` (`restval` of COCO).
        folders: put each image's folder (`filepath`) before its name.

    Raises:
        ValueError: not UTF-8, not JSON, an entry that is not as expected, an image with two
            different entries, no images, or a split without any.
    """
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f"{shown(path)}: expected a JSON object with a list 'images', found another;"
            " is it Karpathy's dataset file?"
        )
    captions: dict[str, tuple[str, ...]] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    repeated = 0
    for number, entry in enumerate(entries, start=1):
        name, split, texts = _read_entry(path, number, entry, also_train, folders)
        if name not in captions:
            captions[name] = texts
            splits[split].append(name)
        elif captions[name] == texts and name in splits[split]:
            repeated += len(texts)
        else:
            raise ValueError(
                f"{shown(path)}, image {number}: expected one entry for {name}, found a second one with"
                " another split or other captions; remove the wrong one"
            )
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        raise ValueError(
            f"{shown(path)}: expected images in the splits {', '.join(SPLITS)}, found none in"
            f" {', '.join(empty)}; get the file again"
        )
    return CaptionFile(path, captions, repeated), {split: tuple(names) for split, names in splits.items()}


def _read_entry(
    path: Path, number: int, entry: dict, also_train: tuple[str, ...], folders: bool
) -> tuple[str, str, tuple[str, ...]]:
    """Name, split and captions of one image."""
    wanted = "'filename', 'filepath'," if folders else "'filename',"
    try:
        name, split = entry["filename"], entry["split"]
        name = f"{entry['filepath']}/{name}" if folders and isinstance(name, str) else name
        texts = tuple(sentence["raw"] for sentence in entry["sentences"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)}, image {number}: expected {wanted} 'split' and 'sentences' with 'raw',"
            f" found {json.dumps(entry)[:80]}; get the file again"
        ) from error
    split = "train" if split in also_train else split
    if split not in SPLITS or not all(isinstance(text, str) for text in (name, *texts)):
        known = ", ".join((*SPLITS, *also_train))
        raise ValueError(
            f"{shown(path)}, image {number}: expected a split of {known} and texts, found"
            f" split {split!r} and file name {name!r}; get the file again"
        )
    return name, split, texts
