"""What the loaders of captioned photos share: finding files, checking splits, noting oddities, building.

A loader reads captions by image and official image names by split; `build_dataset` does the rest.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmlib import paths
from mmlib.data.caption_files import CaptionFile
from mmlib.data.dataset import SPLITS, Dataset, Split
from mmlib.data.fingerprint import dataset_fingerprint, file_digests
from mmlib.data.image_folder import ImageFolder, list_images, match_names, normal_form
from mmlib.files import printable, read_bounded
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
