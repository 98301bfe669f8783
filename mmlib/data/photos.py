"""Flickr8k, Flickr30k and MS-COCO from the folders that people have: find, check, note, build.

Hodosh, Young, Hockenmaier (2013), "Framing Image Description as a Ranking Task", JAIR 47:853–899;
Young, Lai, Hodosh, Hockenmaier (2014), "From Image Descriptions to Visual Denotations", TACL 2:67–78;
Lin et al. (2014), "Microsoft COCO: Common Objects in Context", ECCV; Chen et al. (2015), "Microsoft COCO
Captions"; splits: Karpathy and Fei-Fei (2015), "Deep Visual-Semantic Alignments for Generating Image
Descriptions".
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmlib import files
from mmlib.data.captions import (
    CaptionFile,
    Splits,
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
from mmlib.files import checked_name, printable, read_bounded, shown

FLICKR8K_TOKENS = "Flickr8k.token.txt"
SPLIT_LIST = re.compile(r"(?:(?:flickr_?(?:8k|30k)|karpathy)[._-]?)?(\w+?)[._-]?(?:images|imgs|ids)?\.txt")
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
FLICKR30K_SIZES = {"train": 29_000, "val": 1_014, "test": 1_000}  # Karpathy's
COCO_KARPATHY = "dataset_coco.json"
REST = "restval"  # what Karpathy left over of the official val split
YEARS = ("2014", "2017")
COCO_SIZES = {
    "karpathy": {"train": 113_287, "val": 5_000, "test": 5_000},
    "2014": {"train": 82_783, "val": 40_504},
    "2017": {"train": 118_287, "val": 5_000},
}


@dataclass(frozen=True)
class _Flickr:
    """What the copies of Flickr8k and of Flickr30k are made of."""

    name: str
    title: str
    readers: dict[str, Callable[[Path], CaptionFile]]  # of caption files by name, the first to use first
    karpathy: str
    lists: dict[str, str]  # the usual names of the split lists
    folders: tuple[str, ...]  # the usual names of the image folder


_FLICKR8K = _Flickr(
    "flickr8k",
    "Flickr8k",
    {FLICKR8K_TOKENS: read_token_file, "captions.txt": read_caption_csv},
    "dataset_flickr8k.json",
    {split: f"Flickr_8k.{word}Images.txt" for split, word in zip(SPLITS, ("train", "dev", "test"))},
    ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"),
)
_FLICKR30K = _Flickr(
    "flickr30k",
    "Flickr30k",
    {"results_20130124.token": read_token_file},
    "dataset_flickr30k.json",
    {split: f"{split}.txt" for split in SPLITS},
    (*(f"{f}lickr30k{mark}images" for f in "fF" for mark in "-_"), "Images", "images"),
)


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
        FileNotFoundError: the folder, the captions, a split list or the image of a split is missing.
        ValueError: a text file is empty, malformed, not UTF-8, or there twice with different
            content; an image is in two splits or has no caption; several image folders and none of
            a usual name.
    """
    return _load_flickr(_FLICKR8K, root, lambda _: [])


def load_flickr30k(root: str | Path) -> Dataset:
    """Loads Flickr30k (29,000/1,014/1,000 images, 5 captions each) with its usual splits.

    As `load_flickr8k`, but for the files: captions from `results_20130124.token` (the original), else
    `dataset_flickr30k.json` (Karpathy); splits from three lists, else from Karpathy's JSON.  A list has one
    image a line, by name or number, and is named for its split: `train.txt`, `val.txt`, `test.txt`, also
    with `dev` or `valid` for `val`, after `flickr30k_` or `karpathy_`, before `_images`, `Images` or `_ids`,
    in any case.  A note says where the sizes are not Karpathy's.
    """
    return _load_flickr(_FLICKR30K, root, lambda splits: _note_sizes(splits, FLICKR30K_SIZES, "Karpathy's"))


def _load_flickr(copy: _Flickr, root: str | Path, note_sizes: Callable[[Splits], list[str]]) -> Dataset:
    root = _find_root(root, copy.title)
    there = {name: path for name in copy.readers if (path := find_file(root, name))}
    captions = [copy.readers[name](path) for name, path in there.items()]
    karpathy: Splits = {}
    if path := find_file(root, copy.karpathy):
        source, karpathy = read_karpathy(path)
        captions.append(source)
    if not captions:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {', '.join(copy.readers)} or"
            f" {copy.karpathy} (Karpathy, with the splits), found none; put one there"
        )
    splits, notes = _official_splits(copy, root, karpathy)
    folder, files, found = find_image_folder(root, copy.folders, sum(splits.values(), ()))
    return build_dataset(copy.name, splits, captions, folder, files, notes + found + note_sizes(splits))


def _official_splits(copy: _Flickr, root: Path, karpathy: Splits) -> tuple[Splits, list[str]]:
    """Image names by split from the lists, else Karpathy's; and notes on repeated lines and Karpathy's."""
    found: dict[str, list[Path]] = {}
    for path in (path for folder in _text_folders(root) for path in _files(folder)):
        match = SPLIT_LIST.fullmatch(path.name.lower())
        if match and match[1] in SPLIT_WORDS and path.is_file():
            found.setdefault(SPLIT_WORDS[match[1]], []).append(path)
    if karpathy and not found:
        return karpathy, []
    missing = [copy.lists[split] for split in SPLITS if split not in found]
    if missing:
        raise FileNotFoundError(
            f"expected the official split file {missing[0]} in {shown(root)} or a folder of it, found none"
            f" ({len(missing)} of 3 split files are missing); put it there, or {copy.karpathy} in place of"
            " all three"
        )
    splits, notes = {}, []
    for split in SPLITS:
        path = _only_copy(found[split])
        names, repeated = read_split_list(path)
        splits[split] = tuple(name if name.lower().endswith(SUFFIXES) else f"{name}.jpg" for name in names)
        if repeated:
            notes.append(f"{path.name} lists {count(repeated, 'image')} more than once; taken once.")
    if karpathy:
        moved = [split for split in SPLITS if set(splits[split]) != set(karpathy[split])]
        says = f"other images in {', '.join(moved)}" if moved else "the same splits"
        notes.append(f"Splits are read from the official lists; {copy.karpathy} has {says}.")
    return splits, notes


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
    root = _find_root(root, "COCO")
    if path := find_file(root, COCO_KARPATHY):
        captions, splits = read_karpathy(path, also_train=(REST,), folders=True)
        notes = [f"Images that {COCO_KARPATHY} calls {REST} are in train."]
        notes += _note_sizes(splits, COCO_SIZES["karpathy"], "Karpathy's, with restval in train,")
    else:
        year, files = _find_official(root)
        captions, splits = read_coco_captions(files)
        notes = [
            "No test split: the captions of COCO's own were never published; dataset_coco.json (Karpathy)"
            " has one.",
            *_note_sizes(splits, COCO_SIZES[year], f"COCO's own of {year}"),
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
    named = {year: [f"captions_{split}{year}.json" for split in ("train", "val")] for year in YEARS}
    there = {year: [find_file(root, name) for name in names] for year, names in named.items()}
    found = [year for year in YEARS if any(there[year])]
    if not found:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {COCO_KARPATHY} (Karpathy) or"
            f" {' and '.join(named[YEARS[0]])} (official, also of 2017), found none; put them there"
        )
    if len(found) > 1:
        raise ValueError(
            f"expected captions of one year in {shown(root)}, found those of {' and '.join(found)}, whose"
            f" splits differ; move one year's away, or put {COCO_KARPATHY} there, which decides"
        )
    (year,) = found
    if None in there[year]:
        raise FileNotFoundError(
            f"expected {named[year][there[year].index(None)]} in {shown(root)} or a folder of it, found none;"
            f" it comes with the other file in COCO's annotations_trainval{year}.zip"
        )
    return year, {f"{split}{year}": path for split, path in zip(("train", "val"), there[year])}


def _find_images(root: Path, parts: list[str]) -> Path:
    """The folder that holds all the image folders."""
    folders = _text_folders(root)
    for folder in folders:
        if all(os.path.isdir(folder / part) for part in parts):  # False where it may not be read
            return folder
    there = [shown(folder / part) for folder in folders for part in parts if os.path.isdir(folder / part)]
    raise FileNotFoundError(
        f"expected the image folders {', '.join(f'{part}/' for part in parts)} side by side in"
        f" {shown(root)} or a folder of it, found {', '.join(there) or 'none'}; unpack COCO's zip files there"
    )


LOADERS = {"flickr8k": load_flickr8k, "flickr30k": load_flickr30k, "coco": load_coco}


def _find_root(root: str | Path, title: str) -> Path:
    """The folder of a data set; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: there is none.
    """
    root = files.from_root(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected the {title} folder {shown(root)}, found none; unpack {title} there or correct the path"
        )
    return root


def find_file(root: Path, name: str) -> Path | None:
    """The file `name` in `root` or in a folder of it; copies with equal content count as one."""
    return _only_copy([path for folder in _text_folders(root) if os.path.isfile(path := folder / name)])


def _text_folders(root: Path) -> list[Path]:
    """Where a data set's text files may lie: `root` and its folders, but for those that systems put there."""
    return [root, *list_images(root)[1]]


def _only_copy(found: Sequence[Path]) -> Path | None:
    """The first of several files with equal content, None of none.

    Raises:
        ValueError: their contents differ.
    """
    there = printable(", ".join(map(shown, found)))
    if len(found) > 1 and len({read_bounded(path) for path in found}) > 1:
        raise ValueError(f"expected one {found[0].name}, found {there} with different content; keep one")
    return found[0] if found else None


def _files(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names; nothing of one that may not be read."""
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        return []


def _note_sizes(splits: Splits, usual: dict[str, int], of: str) -> list[str]:
    """A sentence if the splits have other sizes than those that published figures are computed on."""
    sizes = {split: len(names) for split, names in splits.items()}
    if sizes == usual:
        return []
    here, there = (", ".join(f"{split} {n:,}" for split, n in part.items()) for part in (sizes, usual))
    return [
        f"Splits have {here} images; {of} have {there}: figures on other splits are not comparable with"
        " published ones."
    ]


def build_dataset(
    data_set: str,
    splits: Splits,
    captions: Sequence[CaptionFile],
    folder: Path,
    on_hand: set[str],
    notes: Iterable[str],
    redistributable: bool = False,
) -> Dataset:
    """The data set of checked parts; the first call hashes every image, later ones what has changed.

    Images are named as the splits name them, in Unicode's composed form (NFC); captions and files are
    matched to them as a person would (`match_names`), so the fingerprint is the same on every disk.

    Args:
        data_set: its name.
        splits: image names by split, in order.
        captions: the file to use first; others only make notes where they disagree.
        folder: of the images.
        on_hand: names of the image files in it, in any Unicode form and case (`match_names`).
        notes: what the loader has noted so far.
        redistributable: as of `Dataset`.

    Raises:
        FileNotFoundError: the image of a split is missing.
        ValueError: an image is in two splits or has no caption, or its name fits several files.
    """
    splits = {split: tuple(dict.fromkeys(map(normal_form, names))) for split, names in splits.items()}
    split_of: dict[str, str] = {}
    twice = [n for split, names in splits.items() for n in names if split_of.setdefault(n, split) != split]
    if twice:
        where = " and ".join(split for split, names in splits.items() if twice[0] in names)
        raise ValueError(
            f"expected every image in one split, found {first_of(twice)} in {where}; get the split files"
            " again"
        )
    wanted = list(split_of)
    on_disk = match_names(wanted, on_hand, shown(folder))
    if missing := [name for name in wanted if name not in on_disk]:
        raise FileNotFoundError(
            f"expected every image of the splits in {shown(folder)}, found no {first_of(missing)}; complete"
            " the folder"
        )
    used, *others = [_by_image(source, wanted) for source in captions]
    if silent := [name for name in wanted if not used.captions.get(name)]:
        raise ValueError(
            f"expected captions of every image of the splits in {shown(used.path)}, found none of"
            f" {first_of(silent)}; get the file again"
        )
    notes = [*notes, *_note_left_out(wanted, on_hand - set(on_disk.values()), used)]
    for other in others:
        different = [name for name in wanted if used.captions[name] != other.captions.get(name)]
        says = f"other captions of {count(len(different), 'image')} of the splits: {first_of(different)}"
        says = says if different else "the same captions of the splits"
        notes.append(f"Captions are read from {used.path.name}; {other.path.name} has {says}.")
    sha256 = file_digests(
        [folder / on_disk[name] for name in wanted], files.CACHE / f"{data_set}-digests.json"
    )
    digests = dict(zip(wanted, sha256))
    built = {}
    for split, images in splits.items():
        texts = [used.captions[image] for image in images]
        image_of_caption_M = np.repeat(np.arange(len(images)), [len(said) for said in texts])
        built[split] = Split(split, images, sum(texts, ()), image_of_caption_M)
    renamed = {image: file for image, file in on_disk.items() if image != file}
    source = ImageFolder(folder, digests, renamed)
    return Dataset(
        data_set, built, source, dataset_fingerprint(built, digests), tuple(notes), redistributable
    )


def _by_image(source: CaptionFile, wanted: list[str]) -> CaptionFile:
    """`source` with the images of the splits under the names that the splits give them."""
    image_of = {
        theirs: image for image, theirs in match_names(wanted, source.captions, source.path.name).items()
    }
    return replace(source, captions={image_of.get(name, name): t for name, t in source.captions.items()})


def _note_left_out(wanted: list[str], unsplit: set[str], source: CaptionFile) -> list[str]:
    """A sentence for each thing that is in no split, and on captions that are repeated or empty.

    Args:
        wanted: the images of the splits.
        unsplit: the other image files.
        source: of the captions.
    """
    notes, said = [], source.captions
    if empty := [name for name in wanted for text in said[name] if not text.strip()]:
        notes.append(f"Captions without text: {len(empty):,}, of {first_of(empty)}.")
    if unsplit:
        notes.append(f"Left out: {count(len(unsplit), 'image')} in no split.")
    others = said.keys() - set(wanted)
    for names, why in (
        ([name for name in said if name in others and name in unsplit], "in no split"),
        ([name for name in said if name in others and name not in unsplit], "without a file: {}"),
    ):
        if names:
            number, images = sum(len(said[name]) for name in names), count(len(names), "image")
            notes.append(f"Left out: {count(number, 'caption')} of {images} {why.format(first_of(names))}.")
    if source.repeated:
        notes.append(f"Left out: {count(source.repeated, 'repeated caption')} in {source.path.name}.")
    return notes


def count(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def first_of(names: list[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{printable(names[0])}{more}" if names else ""
