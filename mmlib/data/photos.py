"""Flickr8k, Flickr30k and MS-COCO from the folders that people have: find, check, note, build.

Hodosh, Young, Hockenmaier (2013), "Framing Image Description as a Ranking Task", JAIR 47:853–899;
Young, Lai, Hodosh, Hockenmaier (2014), "From Image Descriptions to Visual Denotations", TACL 2:67–78;
Lin et al. (2014), "Microsoft COCO: Common Objects in Context", ECCV; Chen et al. (2015), "Microsoft COCO
Captions"; splits: Karpathy and Fei-Fei (2015), "Deep Visual-Semantic Alignments for Generating Image
Descriptions".
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from mmlib import files
from mmlib.data.captions import (
    Captions,
    Splits,
    read_caption_csv,
    read_coco_captions,
    read_karpathy,
    read_split_list,
    read_token_file,
)
from mmlib.data.dataset import SPLITS, Dataset, ImageFolder, Split, dataset_fingerprint, file_digests
from mmlib.data.decoding import SUFFIXES
from mmlib.files import checked_name, printable, read_bounded, shown

FLICKR8K_TOKENS = "Flickr8k.token.txt"
FLICKR30K_TOKENS = "results_20130124.token"
SPLIT_LIST = re.compile(
    r"(?:(?:flickr_?(?:8k|30k)|karpathy)[._-]?)?(train|val|dev|test)(?:ing|id|idation)?[._-]?"
    r"(?:images|imgs|ids)?\.txt"
)
SIZES = {  # images of the splits that published figures are computed on, and whose splits these are
    "flickr30k": ("Karpathy's", {"train": 29_000, "val": 1_014, "test": 1_000}),
    "coco": ("Karpathy's, with restval in train,", {"train": 113_287, "val": 5_000, "test": 5_000}),
    "coco2014": ("COCO's own of 2014", {"train": 82_783, "val": 40_504}),
    "coco2017": ("COCO's own of 2017", {"train": 118_287, "val": 5_000}),
}
FOLDERS = (  # usual names of the image folder; they decide where several hold the images
    "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images", "Images", "images",
)  # fmt: skip
DEPTH = 3  # folders below the root that are searched; zips unpacked into themselves are 2 deep
TEXT_SUFFIXES = (".txt", ".token", ".json", ".csv")  # of a set's own files, which may lie among its images
SYSTEM_FOLDERS = (".", "@", "#", "$", "__MACOSX")  # how those begin that systems and NAS boxes put there


def load_flickr8k(root: str | Path) -> Dataset:
    """Loads Flickr8k (6,000/1,000/1,000 images, 5 captions each) with its official splits.

    `root` holds one folder of images, at any of the usual names and also nested in itself, and
    text files, in `root` or in a folder of it such as `Flickr8k_text/`:

    - captions from `Flickr8k.token.txt` (the original, with caption numbers), else `captions.txt`
      (Kaggle), else `dataset_flickr8k.json` (Karpathy): the first of these that is there;
    - splits from `Flickr_8k.{train,dev,test}Images.txt`, else from Karpathy's JSON.  There is no
      random split: its figures could be compared with nobody's.

    Images come in the order of the split lists (of the JSON without them), captions in the order of
    their numbers.  Known oddities become `notes`.  The first call hashes every image for the fingerprint;
    later ones reuse what has not changed.

    Args:
        root: the folder; a relative path is read from the repository's root.

    Raises:
        FileNotFoundError: the folder, the captions, a split list or the image of a split is missing.
        ValueError: a text file is empty, malformed, not UTF-8, or there twice with different
            content; an image is in two splits or has no caption; several image folders and none of
            a usual name.
    """
    readers = {FLICKR8K_TOKENS: _numbered, "captions.txt": read_caption_csv}
    return _load_flickr("flickr8k", root, readers, "Flickr_8k.trainImages.txt")


def load_flickr30k(root: str | Path) -> Dataset:
    """Loads Flickr30k (29,000/1,014/1,000 images, 5 captions each) with its usual splits.

    As `load_flickr8k`, but for the files: captions from `results_20130124.token` (the original), else
    `dataset_flickr30k.json` (Karpathy); splits from three lists, else from Karpathy's JSON.  A list has one
    image a line, by name or number, and is named for its split: `train.txt`, `val.txt`, `test.txt`, also
    with `dev` or `valid` for `val`, after `flickr30k_` or `karpathy_`, before `_images`, `Images` or `_ids`,
    in any case.  A note says where the sizes are not Karpathy's.
    """
    return _load_flickr("flickr30k", root, {FLICKR30K_TOKENS: _numbered}, "train.txt")


def _numbered(path: Path) -> Captions:
    return {image: list(captions.values()) for image, captions in read_token_file(path).items()}


def _load_flickr(
    name: str, root: str | Path, readers: dict[str, Callable[[Path], Captions]], list_name: str
) -> Dataset:
    """Captions from the first file that `readers` names, else Karpathy's; splits from lists, else Karpathy's.

    Args:
        name: of the data set.
        root: its folder.
        readers: of caption files, by name.
        list_name: the usual name of the list of the training images, for an error.
    """
    root = _find_root(root, name.capitalize())
    json_name = f"dataset_{name}.json"
    json_path = find_file(root, json_name)
    path = next((path for file in readers if (path := find_file(root, file))), json_path)
    if not path:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: {', '.join(readers)} or {json_name}"
            " (Karpathy, with the splits), found none; put one there"
        )
    captions, splits = read_karpathy(json_path) if json_path else ({}, {})
    if path != json_path:
        captions = readers[path.name](path)
    lists = _split_lists(root)
    if missing := [split for split in SPLITS if split not in lists]:
        if lists or not splits:
            raise FileNotFoundError(
                f"expected lists of the images of each split in {shown(root)} or a folder of it (as"
                f" {list_name}), found none of {', '.join(missing)}; put them there, or {json_name} in place"
                " of all three"
            )
    else:
        splits = {split: _listed(lists[split]) for split in SPLITS}
    folder, names = find_image_folder(root, chain.from_iterable(splits.values()))
    notes = [*_note_skipped([folder]), *_note_sizes(splits, name)]
    return build_dataset(name, splits, captions, path, folder, names, notes)


def _split_lists(root: Path) -> dict[str, list[Path]]:
    """Split lists by split."""
    lists = defaultdict(list)
    for path in chain.from_iterable(sorted(folder.iterdir()) for folder in _text_folders(root)):
        if match := SPLIT_LIST.fullmatch(path.name.lower()):
            lists["val" if match[1] == "dev" else match[1]].append(path)
    return lists


def _listed(paths: list[Path]) -> list[str]:
    """The image names of a split list; a number stands for a JPEG."""
    names = read_split_list(_only_copy(paths))
    return [name if name.lower().endswith(SUFFIXES) else f"{name}.jpg" for name in names]


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
    path = find_file(root, "dataset_coco.json")
    if path:
        captions, splits = read_karpathy(path)
        notes = ["Images that dataset_coco.json calls restval are in train.", *_note_sizes(splits, "coco")]
    else:
        year, paths = _official_captions(root)
        said = {split: read_coco_captions(paths[split], f"{split}{year}") for split in paths}
        captions, splits = said["train"] | said["val"], {split: list(said[split]) for split in said}
        path = paths["train"].parent
        notes = [
            "No test split: the captions of COCO's own were never published; dataset_coco.json (Karpathy)"
            " has one.",
            *_note_sizes(splits, f"coco{year}"),
        ]
    parts = sorted({name.rpartition("/")[0] for name in captions})
    for part in parts:
        checked_name(part, "image folder")
    candidates = _text_folders(root)
    folders = [folder for folder in candidates if all((folder / part).is_dir() for part in parts)]
    if not folders:
        there = [shown(folder / part) for folder in candidates for part in parts if (folder / part).is_dir()]
        raise FileNotFoundError(
            f"expected the image folders {', '.join(f'{part}/' for part in parts)} side by side in"
            f" {shown(root)} or a folder of it, found {', '.join(there) or 'none'}; unpack COCO's zip files"
            " there"
        )
    names = {f"{part}/{name}" for part in parts for name in _images(os.listdir(folders[0] / part))}
    notes = [*notes, *_note_skipped([folders[0] / part for part in parts])]
    return build_dataset("coco", splits, captions, path, folders[0], names, notes)


def _official_captions(root: Path) -> tuple[str, dict[str, Path]]:
    """The year of the official captions, and their file of each split."""
    there = {}
    for year in ("2014", "2017"):
        for split in ("train", "val"):
            if path := find_file(root, f"captions_{split}{year}.json"):
                there[year, split] = path
    years = {year for year, _ in there}
    if len(years) != 1 or len(there) != 2:
        raise FileNotFoundError(
            f"expected captions in {shown(root)} or a folder of it: dataset_coco.json (Karpathy), or"
            " captions_train2014.json and captions_val2014.json, or both of 2017 (official; the splits of the"
            f" years differ), found {', '.join(path.name for path in there.values()) or 'none'}; leave one of"
            " these there"
        )
    return years.pop(), {split: path for (_, split), path in there.items()}


LOADERS = {"flickr8k": load_flickr8k, "flickr30k": load_flickr30k, "coco": load_coco}


def _find_root(root: str | Path, title: str) -> Path:
    root = files.from_root(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected the {title} folder {shown(root)}, found none; unpack {title} there or correct the path"
        )
    return root


def find_file(root: Path, name: str) -> Path | None:
    """The file `name` in `root` or in a folder of it; copies with equal content count as one.

    Raises:
        ValueError: there are several with different content.
    """
    found = [folder / name for folder in _text_folders(root) if os.path.isfile(folder / name)]
    return _only_copy(found) if found else None


def _only_copy(found: Sequence[Path]) -> Path:
    if len(found) > 1 and len({read_bounded(path) for path in found}) > 1:
        there = printable(", ".join(map(shown, found)))
        raise ValueError(f"expected one {found[0].name}, found {there} with different content; keep one")
    return found[0]


def _text_folders(root: Path) -> list[Path]:
    """Where a data set's text files may lie: `root` and its folders, but for those that systems put there."""
    below = (path for path in sorted(root.iterdir()) if not path.name.startswith(SYSTEM_FOLDERS))
    return [root, *(path for path in below if os.path.isdir(path) and os.access(path, os.R_OK))]


def _images(names: Iterable[str]) -> set[str]:
    """Those of files that are named as images; `._x.jpg` is macOS's note on `x.jpg`."""
    return {name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")}


def _note_skipped(folders: Iterable[Path]) -> list[str]:
    """A sentence on what lies among the images and is neither one nor a file or folder of the set's own."""
    there = [path for folder in folders for path in folder.iterdir() if not _images([path.name])]
    of_systems = [path for path in there if path.name.startswith(SYSTEM_FOLDERS)]
    others = [path for path in there if path.suffix not in TEXT_SUFFIXES and path.is_file()]
    number = len({*of_systems, *others})
    return [f"Skipped among the images, since they are none of the set: {number:,}."] if number else []


def image_folders(root: Path) -> dict[Path, set[str]]:
    """Image names by folder, of `root` and the folders in it, but for those that systems put there."""
    found: dict[Path, set[str]] = {}
    for folder, below, names in os.walk(root, followlinks=True):
        path = Path(folder).resolve()
        is_end = (
            path in found or len(Path(folder).relative_to(root).parts) == DEPTH
        )  # found: a circle of links
        below[:] = [] if is_end else sorted(name for name in below if not name.startswith(SYSTEM_FOLDERS))
        found[path] = _images(names)
    return found


def find_image_folder(root: Path, listed: Iterable[str]) -> tuple[Path, set[str]]:
    """The folder below `root` with the most of the listed images, and the names of all its images.

    Raises:
        FileNotFoundError: no folder holds any.
        ValueError: several hold as many, and none has a usual name.
    """
    wanted = set(map(_folded, listed))
    found = image_folders(root)
    held = {folder: len(wanted.intersection(map(_folded, names))) for folder, names in found.items()}
    most = max(held.values())
    if not most:
        raise FileNotFoundError(
            f"expected a folder with the images of the splits under {shown(root)}, usually"
            f" {' or '.join(f'{name}/' for name in FOLDERS)}, found none; unpack the images there"
        )
    best = [folder for folder in found if held[folder] == most]
    usual = [folder for name in FOLDERS for folder in best if folder.name == name]
    if len(best) > 1 and not usual:
        raise ValueError(
            f"expected one folder with the images of the splits under {shown(root)}, found"
            f" {', '.join(printable(shown(folder)) for folder in best)}; rename the right one to Images"
        )
    folder = (usual or best)[0]
    return folder, found[folder]


def normal_form(name: str) -> str:
    """`name` in Unicode's composed form (NFC), in which data sets name their images."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Equal for names that differ in upper and lower case and Unicode normal form alone."""
    return normal_form(normal_form(name).casefold())


def match_names(wanted: Iterable[str], there: Iterable[str], where: str) -> dict[str, str]:
    """Map each wanted name to the one of `there` that a person would call the same.

    That is one equal but for Unicode's normal form (archives made on a Mac are decomposed), else one
    equal but for upper and lower case too.  A name without any is left out.

    Args:
        wanted: names of images.
        there: names of files, or in a caption file.
        where: what holds `there`, for errors.

    Raises:
        ValueError: a wanted name has several such names, or two wanted names have the same one.
    """
    by_form, by_fold = defaultdict(list), defaultdict(list)
    for other in there:
        by_form[normal_form(other)].append(other)
        by_fold[_folded(other)].append(other)
    wanted_of: dict[str, str] = {}
    for name in wanted:
        found = by_form.get(normal_form(name)) or by_fold.get(_folded(name), [])
        same = [name, *(wanted_of.get(other, name) for other in found)]
        if len(found) > 1 or len(set(same)) > 1:
            raise ValueError(
                f"expected one name in {where} for each of {' and '.join(map(ascii, dict.fromkeys(same)))},"
                f" found {' and '.join(map(ascii, found))}; give images names that differ in more than upper"
                " and lower case or Unicode form"
            )
        wanted_of |= dict.fromkeys(found, name)
    return {name: other for other, name in wanted_of.items()}


def _note_sizes(splits: Splits, name: str) -> list[str]:
    """A sentence if the splits have other sizes than those that published figures are computed on."""
    sizes = {split: len(names) for split, names in splits.items()}
    of, usual = SIZES.get(name, ("", sizes))
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
    captions: Captions,
    caption_file: Path,
    folder: Path,
    on_hand: set[str],
    notes: Iterable[str] = (),
    redistributable: bool = False,
) -> Dataset:
    """The data set of checked parts; the first call hashes every image, later ones what has changed.

    Images are named as the splits name them, in Unicode's composed form (NFC); captions and files are
    matched to them as a person would (`match_names`), so the fingerprint is the same on every disk.

    Args:
        data_set: its name.
        splits: image names by split, in order.
        captions: of each image; those of other images are left out.
        caption_file: where they come from, for errors.
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
    on_disk = match_names(split_of, on_hand, shown(folder))
    if missing := [name for name in split_of if name not in on_disk]:
        raise FileNotFoundError(
            f"expected every image of the splits in {shown(folder)}, found no {first_of(missing)}; complete"
            " the folder"
        )
    name_there = match_names(split_of, captions, caption_file.name)
    said = {name: captions[there] for name, there in name_there.items()}
    if silent := [name for name in split_of if not said.get(name)]:
        raise ValueError(
            f"expected captions of every image of the splits in {shown(caption_file)}, found none of"
            f" {first_of(silent)}; get the file again"
        )
    notes = list(notes)
    if empty := [name for name in split_of for text in said[name] if not text.strip()]:
        notes.append(f"Captions without text: {len(empty):,}, of {first_of(empty)}.")
    if unused := on_hand - set(on_disk.values()):
        notes.append(f"Left out: {count(len(unused), 'image')} in no split.")
    if others := captions.keys() - set(name_there.values()):
        number = count(sum(len(captions[name]) for name in others), "caption")
        notes.append(f"Left out: {number} of {count(len(others), 'image')} in no split.")
    paths = [folder / on_disk[name] for name in split_of]
    digests = dict(zip(split_of, file_digests(paths, files.CACHE / f"{data_set}-digests.json")))
    built = {}
    for split, images in splits.items():
        texts = tuple(chain.from_iterable(said[image] for image in images))
        image_of_caption_M = np.repeat(np.arange(len(images)), [len(said[image]) for image in images])
        built[split] = Split(split, images, texts, image_of_caption_M)
    renamed = {image: file for image, file in on_disk.items() if image != file}
    source, fingerprint = ImageFolder(folder, digests, renamed), dataset_fingerprint(built, digests)
    return Dataset(data_set, built, source, fingerprint, tuple(notes), redistributable)


def count(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def first_of(names: list[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"{printable(names[0][:200])}{more}"
