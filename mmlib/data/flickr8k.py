"""Flickr8k from the folders that people have: the original, the Kaggle copy, Karpathy's JSON.

Hodosh, Young, Hockenmaier (2013), "Framing Image Description as a Ranking Task", JAIR 47:853–899.
"""

from collections.abc import Iterable
from pathlib import Path

from mmlib import paths
from mmlib.data.caption_files import CaptionFile, read_caption_csv, read_split_list, read_token_file
from mmlib.data.dataset import SPLITS, Dataset, Split
from mmlib.data.fingerprint import dataset_fingerprint, file_digests
from mmlib.data.image_folder import ImageFolder, find_image_folder
from mmlib.data.karpathy import read_karpathy
from mmlib.paths import from_root, shown

TOKEN_FILE = "Flickr8k.token.txt"
CAPTION_CSV = "captions.txt"
KARPATHY_FILE = "dataset_flickr8k.json"
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")

Splits = dict[str, tuple[str, ...]]  # image names by split


def load_flickr8k(root: str | Path) -> Dataset:
    """Loads Flickr8k (6,000/1,000/1,000 images, 5 captions each) with its official splits.

    `root` holds one folder of JPEG files, at any of the usual names and also nested in itself, and
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
    root = from_root(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected the Flickr8k folder {shown(root)}, found none; unpack Flickr8k there or correct the"
            " path"
        )
    sources = _read_captions(root)
    splits, notes = _read_splits(root, sources)
    _check_disjoint(splits)
    folder, files, ignored = find_image_folder(root, IMAGE_FOLDERS)
    if ignored:
        notes.append(
            f"Images are read from {shown(folder)}; {', '.join(map(shown, ignored))} hold images too, unread."
        )
    used, *others = (captions for captions, _ in sources)
    wanted = [name for split in SPLITS for name in splits[split]]
    _check_complete(wanted, files, folder, used)
    notes += _note_left_out(wanted, files, used) + [_note_other(wanted, used, other) for other in others]

    digests = file_digests([folder / name for name in wanted], paths.CACHE / "flickr8k-digests.json")
    built = {split: _build_split(split, splits[split], used) for split in SPLITS}
    return Dataset(
        name="flickr8k",
        splits=built,
        source=ImageFolder(folder),
        fingerprint=dataset_fingerprint(built, dict(zip(wanted, digests))),
        notes=tuple(notes),
    )


def find_file(root: Path, name: str) -> Path | None:
    """The file `name` in `root` or in a folder of it; copies with equal content count as one."""
    found = [path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()]
    if len({path.read_bytes() for path in found}) > 1:
        raise ValueError(
            f"expected one {name}, found {', '.join(map(shown, found))} with different content; keep one"
        )
    return found[0] if found else None


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
    splits, notes = {}, []
    for split, path in lists.items():
        splits[split], repeated = read_split_list(path)
        if repeated:
            notes.append(f"{path.name} lists {_count(repeated, 'image')} more than once; taken once.")
    if karpathy:
        moved = _differing(SPLITS, {s: set(splits[s]) for s in SPLITS}, {s: set(karpathy[s]) for s in SPLITS})
        says = f"other images in {', '.join(moved)}" if moved else "the same splits"
        notes.append(f"Splits are read from the official lists; {KARPATHY_FILE} has {says}.")
    return splits, notes


def _check_disjoint(splits: Splits) -> None:
    seen: dict[str, str] = {}
    twice = []
    for split, names in splits.items():
        twice += [(name, seen[name], split) for name in names if name in seen]
        seen.update(dict.fromkeys(names, split))
    if twice:
        name, first, second = twice[0]
        raise ValueError(
            f"expected every image in one split, found {name} in {first} and {second}{_and_more(twice)};"
            " get the split files again"
        )


def _check_complete(wanted: list[str], files: set[str], folder: Path, captions: CaptionFile) -> None:
    """Every image of a split must be there and have captions."""
    missing = [name for name in wanted if name not in files]
    if missing:
        raise FileNotFoundError(
            f"expected every image of the splits in {shown(folder)}, found no {missing[0]}"
            f"{_and_more(missing)}; complete the folder"
        )
    silent = [name for name in wanted if not captions.captions.get(name)]
    if silent:
        raise ValueError(
            f"expected captions of every image of the splits in {shown(captions.path)}, found none of"
            f" {silent[0]}{_and_more(silent)}; get the file again"
        )


def _note_left_out(wanted: list[str], files: set[str], captions: CaptionFile) -> list[str]:
    """A sentence for each thing that is in the folder and in no split."""
    known = set(wanted)
    unsplit = files - known
    absent = [name for name in captions.captions if name not in files and name not in known]
    unused = [name for name in captions.captions if name in unsplit]
    notes = []
    if unsplit:
        notes.append(f"Left out: {_count(len(unsplit), 'image')} in no split.")
    if unused:
        number = sum(len(captions.captions[name]) for name in unused)
        notes.append(f"Left out: {_count(number, 'caption')} of {_count(len(unused), 'image')} in no split.")
    if absent:
        number = sum(len(captions.captions[name]) for name in absent)
        notes.append(
            f"Left out: {_count(number, 'caption')} of {_count(len(absent), 'image')} without a file:"
            f" {absent[0]}{_and_more(absent)}."
        )
    if captions.repeated:
        notes.append(f"Left out: {_count(captions.repeated, 'repeated caption')} in {captions.path.name}.")
    return notes


def _note_other(wanted: list[str], used: CaptionFile, other: CaptionFile) -> str:
    """A sentence on a caption file that is there and not used."""
    different = _differing(wanted, used.captions, other.captions)
    says = "the same captions of the splits"
    if different:
        number = _count(len(different), "image")
        says = f"other captions of {number} of the splits: {different[0]}{_and_more(different)}"
    return f"Captions are read from {used.path.name}; {other.path.name} has {says}."


def _build_split(name: str, images: tuple[str, ...], source: CaptionFile) -> Split:
    pairs = [(index, text) for index, image in enumerate(images) for text in source.captions[image]]
    return Split(name, images, tuple(text for _, text in pairs), [index for index, _ in pairs])


def _differing(keys: Iterable[str], ours: dict, theirs: dict) -> list[str]:
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _and_more(items: list) -> str:
    return f" and {len(items) - 1:,} more" if len(items) > 1 else ""
