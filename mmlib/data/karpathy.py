"""Reader of the `dataset_*.json` files of Karpathy and Fei-Fei (2015): captions and splits in one."""

from pathlib import Path

from mmlib.data.caption_files import CaptionFile, excerpt, read_json
from mmlib.data.dataset import SPLITS
from mmlib.files import printable
from mmlib.paths import shown


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
