"""What the loaders of captioned photos share: finding files, checking splits, noting oddities, building.

A loader reads captions by image and official image names by split; `build_dataset` does the rest.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmlib import paths
from mmlib.data.captions import (
    CaptionFile,
    read_caption_csv,
    read_coco_captions,
    read_karpathy,
    read_split_list,
    read_token_file,
)
from mmlib.data.dataset import SPLITS, Dataset, Split, dataset_fingerprint, file_digests
from mmlib.data.decoding import SUFFIXES
from mmlib.data.folders import (
    ImageFolder,
    find_image_folder,
    list_images,
    match_names,
    normal_form,
    note_skipped,
)
from mmlib.files import checked_name, printable, read_bounded
from mmlib.paths import shown

Splits = dict[str, tuple[str, ...]]  # image names by split


def find_root(root: str | Path, title: str) -> Path:
    """The folder of a data set; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: there is none.
    """
    root = paths.from_root(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected the {title} folder {shown(root)}, found none; unpack {title} there or correct the path"
        )
    return root


def find_file(root: Path, name: str) -> Path | None:
    """The file `name` in `root` or in a folder of it; copies with equal content count as one."""
    return only_copy([path for folder in text_folders(root) if os.path.isfile(path := folder / name)])


def text_folders(root: Path) -> list[Path]:
    """Where a data set's text files may lie: `root` and its folders, but for those that systems put there."""
    return [root, *list_images(root)[1]]


def only_copy(found: Sequence[Path]) -> Path | None:
    """The first of several files with equal content, None of none.

    Raises:
        ValueError: their contents differ.
    """
    if len(found) > 1 and len({read_bounded(path) for path in found}) > 1:
        raise ValueError(
            f"expected one {found[0].name}, found {_listed(found)} with different content; keep one"
        )
    return found[0] if found else None


def read_official_splits(
    lists: dict[str, tuple[tuple[str, ...], int, Path]], karpathy: Splits, karpathy_file: str
) -> tuple[Splits, list[str]]:
    """Image names by split from the official lists, and notes on repeated lines and Karpathy's splits.

    Args:
        lists: by split: names, number of repeated lines, and the file.
        karpathy: the splits of Karpathy's file, empty if it is not there.
        karpathy_file: its name.
    """
    splits = {split: names for split, (names, _, _) in lists.items()}
    notes = [
        f"{path.name} lists {count(repeated, 'image')} more than once; taken once."
        for _, repeated, path in lists.values()
        if repeated
    ]
    if karpathy:
        moved = differing(SPLITS, {s: set(splits[s]) for s in SPLITS}, {s: set(karpathy[s]) for s in SPLITS})
        says = f"other images in {', '.join(moved)}" if moved else "the same splits"
        notes.append(f"Splits are read from the official lists; {karpathy_file} has {says}.")
    return splits, notes


def build_dataset(
    name: str,
    splits: Splits,
    captions: Sequence[CaptionFile],
    folder: Path,
    files: set[str],
    notes: Iterable[str],
) -> Dataset:
    """The data set of checked parts; the first call hashes every image, later ones what has changed.

    Images are named as the splits name them, in Unicode's composed form (NFC); captions and files are
    matched to them as a person would (`match_names`), so the fingerprint is the same on every disk.

    Args:
        name: of the data set.
        splits: image names by split, in order.
        captions: the file to use first; others only make notes where they disagree.
        folder: of the images.
        files: names of the image files in it, in any Unicode form and case (`match_names`).
        notes: what the loader has noted so far.

    Raises:
        FileNotFoundError: the image of a split is missing.
        ValueError: an image is in two splits or has no caption, or its name fits several files.
    """
    splits = {split: tuple(dict.fromkeys(map(normal_form, names))) for split, names in splits.items()}
    _check_disjoint(splits)
    wanted = [image for split in splits for image in splits[split]]
    on_disk = match_names(wanted, files, shown(folder))
    files = (files - set(on_disk.values())) | set(on_disk)
    used, *others = [_by_image(source, wanted) for source in captions]
    _check_complete(wanted, files, folder, used)
    notes = [*notes, *_note_left_out(wanted, files, used)]
    notes += [_note_other(wanted, used, other) for other in others]
    paths_of = [folder / on_disk[image] for image in wanted]
    digests = dict(zip(wanted, file_digests(paths_of, paths.CACHE / f"{name}-digests.json")))
    built = {split: _build_split(split, images, used) for split, images in splits.items()}
    return Dataset(
        name=name,
        splits=built,
        source=ImageFolder(
            folder, digests, {image: file for image, file in on_disk.items() if image != file}
        ),
        fingerprint=dataset_fingerprint(built, digests),
        notes=tuple(notes),
    )


def _by_image(source: CaptionFile, wanted: list[str]) -> CaptionFile:
    """`source` with the images of the splits under the names that the splits give them."""
    image_of = {
        theirs: image for image, theirs in match_names(wanted, source.captions, source.path.name).items()
    }
    return replace(source, captions={image_of.get(name, name): t for name, t in source.captions.items()})


def _check_disjoint(splits: Splits) -> None:
    """No image may be in two splits."""
    seen: dict[str, str] = {}
    twice = []
    for split, names in splits.items():
        twice += [(name, seen[name], split) for name in names if name in seen]
        seen.update(dict.fromkeys(names, split))
    if twice:
        name, first, second = twice[0]
        raise ValueError(
            f"expected every image in one split, found {printable(name)} in {first} and {second}"
            f"{and_more(twice)}; get the split files again"
        )


def _listed(files: Sequence[Path]) -> str:
    return printable(", ".join(map(shown, files)))


def note_sizes(splits: Splits, usual: dict[str, int], of: str) -> list[str]:
    """A sentence if the splits have other sizes than those that published figures are computed on."""
    sizes = {split: len(names) for split, names in splits.items()}
    if sizes == usual:
        return []
    here, there = (", ".join(f"{split} {n:,}" for split, n in part.items()) for part in (sizes, usual))
    return [
        f"Splits have {here} images; {of} have {there}: figures on other splits are not comparable with"
        " published ones."
    ]


def _check_complete(wanted: list[str], files: set[str], folder: Path, captions: CaptionFile) -> None:
    """Every image of a split must be there and have captions."""
    missing = [name for name in wanted if name not in files]
    if missing:
        raise FileNotFoundError(
            f"expected every image of the splits in {shown(folder)}, found no {printable(missing[0])}"
            f"{and_more(missing)}; complete the folder"
        )
    silent = [name for name in wanted if not captions.captions.get(name)]
    if silent:
        raise ValueError(
            f"expected captions of every image of the splits in {shown(captions.path)}, found none of"
            f" {printable(silent[0])}{and_more(silent)}; get the file again"
        )


def _note_left_out(wanted: list[str], files: set[str], captions: CaptionFile) -> list[str]:
    """A sentence for each thing that is in no split, and on captions that are repeated or empty."""
    known = set(wanted)
    unsplit = files - known
    absent = [name for name in captions.captions if name not in files and name not in known]
    unused = [name for name in captions.captions if name in unsplit]
    empty = [name for name in wanted for text in captions.captions[name] if not text.strip()]
    notes = []
    if empty:
        notes.append(f"Captions without text: {len(empty):,}, of {printable(empty[0])}{and_more(empty)}.")
    if unsplit:
        notes.append(f"Left out: {count(len(unsplit), 'image')} in no split.")
    if unused:
        number = sum(len(captions.captions[name]) for name in unused)
        notes.append(f"Left out: {count(number, 'caption')} of {count(len(unused), 'image')} in no split.")
    if absent:
        number = sum(len(captions.captions[name]) for name in absent)
        notes.append(
            f"Left out: {count(number, 'caption')} of {count(len(absent), 'image')} without a file:"
            f" {printable(absent[0])}{and_more(absent)}."
        )
    if captions.repeated:
        notes.append(f"Left out: {count(captions.repeated, 'repeated caption')} in {captions.path.name}.")
    return notes


def _note_other(wanted: list[str], used: CaptionFile, other: CaptionFile) -> str:
    """A sentence on a caption file that is there and not used."""
    different = differing(wanted, used.captions, other.captions)
    says = "the same captions of the splits"
    if different:
        number = count(len(different), "image")
        says = f"other captions of {number} of the splits: {printable(different[0])}{and_more(different)}"
    return f"Captions are read from {used.path.name}; {other.path.name} has {says}."


def _build_split(name: str, images: tuple[str, ...], source: CaptionFile) -> Split:
    pairs = [(index, text) for index, image in enumerate(images) for text in source.captions[image]]
    return Split(name, images, tuple(text for _, text in pairs), [index for index, _ in pairs])


def differing(keys: Iterable[str], ours: dict, theirs: dict) -> list[str]:
    """The keys at which two tables differ."""
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def count(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def and_more(items: list) -> str:
    """` and 3 more` behind the first of four items, nothing behind the only one."""
    return f" and {len(items) - 1:,} more" if len(items) > 1 else ""


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


FLICKR30K_TOKENS = "results_20130124.token"
FLICKR30K_KARPATHY = "dataset_flickr30k.json"
FLICKR30K_FOLDERS = (
    "flickr30k-images", "flickr30k_images", "Flickr30k-images", "Flickr30k_images", "Images", "images",
)  # fmt: skip
FLICKR30K_SIZES = {"train": 29_000, "val": 1_014, "test": 1_000}  # Karpathy's
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
    captions, karpathy = _read_flickr30k(root)
    splits, notes = _flickr30k_splits(root, karpathy)
    folder, files, found = find_image_folder(root, FLICKR30K_FOLDERS, sum(splits.values(), ()))
    notes += found + note_sizes(splits, FLICKR30K_SIZES, "Karpathy's")
    return build_dataset("flickr30k", splits, captions, folder, files, notes)


def _read_flickr30k(root: Path) -> tuple[list[CaptionFile], Splits]:
    """Every caption file that is there, the one to use first; and Karpathy's splits."""
    captions, splits = [], {}
    if path := find_file(root, FLICKR30K_TOKENS):
        captions.append(read_token_file(path))
    if path := find_file(root, FLICKR30K_KARPATHY):
        karpathy, splits = read_karpathy(path)
        captions.append(karpathy)
    if not captions:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {FLICKR30K_TOKENS} (original) or"
            f" {FLICKR30K_KARPATHY} (Karpathy, with the splits), found none; put one there"
        )
    return captions, splits


def _flickr30k_splits(root: Path, karpathy: Splits) -> tuple[Splits, list[str]]:
    """Image names by split, and notes."""
    lists = _find_lists(root)
    if karpathy and not lists:
        return karpathy, []
    missing = [split for split in SPLITS if split not in lists]
    if missing:
        raise FileNotFoundError(
            f"expected the list of the images of {missing[0]}, {missing[0]}.txt, in {shown(root)} or a folder"
            f" of it, found none ({len(missing)} of 3 lists are missing); put {FLICKR30K_KARPATHY} there in"
            " place of all three, or the lists that were made of it"
        )
    read = {}
    for split in SPLITS:
        names, repeated = read_split_list(lists[split])
        read[split] = (tuple(map(_image_name, names)), repeated, lists[split])
    return read_official_splits(read, karpathy, FLICKR30K_KARPATHY)


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


COCO_KARPATHY = "dataset_coco.json"
REST = "restval"  # what Karpathy left over of the official val split
YEARS = ("2014", "2017")
COCO_SIZES = {
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
    if path := find_file(root, COCO_KARPATHY):
        captions, splits = read_karpathy(path, also_train=(REST,), folders=True)
        notes = [f"Images that {COCO_KARPATHY} calls {REST} are in train."]
        notes += note_sizes(splits, COCO_SIZES["karpathy"], "Karpathy's, with restval in train,")
    else:
        year, files = _find_official(root)
        captions, splits = read_coco_captions(files)
        notes = [
            "No test split: the captions of COCO's own were never published; dataset_coco.json (Karpathy)"
            " has one.",
            *note_sizes(splits, COCO_SIZES[year], f"COCO's own of {year}"),
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
            f"expected captions in {shown(root)} or a folder of it: {COCO_KARPATHY} (Karpathy) or"
            f" {_caption_file('train', '2014')} and {_caption_file('val', '2014')} (official, also of 2017),"
            " found none; put them there"
        )
    if len(found) > 1:
        raise ValueError(
            f"expected captions of one year in {shown(root)}, found those of {' and '.join(found)}, whose"
            f" splits differ; move one year's away, or put {COCO_KARPATHY} there, which decides"
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


LOADERS = {"flickr8k": load_flickr8k, "flickr30k": load_flickr30k, "coco": load_coco}
