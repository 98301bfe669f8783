"""A folder of image files as an image source, and how to find it under a data set's root."""

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmlib.data.decoding import MAX_BYTES, SUFFIXES, decode_image
from mmlib.files import printable, read_bounded, shown

DEPTH = 3  # folders below the root that are searched; zips unpacked into themselves are 2 deep
SYSTEM_FOLDERS = (".", "@", "#", "$", "__MACOSX")  # how those begin that systems and NAS boxes put there
TEXT_SUFFIXES = (".txt", ".token", ".json", ".csv")  # of a set's own files, which may lie among its images
NAMED = 3  # files or folders that a message names before it counts the rest


@dataclass(frozen=True)
class ImageFolder:
    """Reads the images of one folder by name.

    Attributes:
        folder: where the files lie.
        digests: image name to the SHA-256 that the data set's fingerprint counts.  What is read later
            must still have it, so no other pixels are ever packed under that fingerprint.
        on_disk: image name to its file's name, where the two are spelled differently (`match_names`).
    """

    folder: Path
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    on_disk: Mapping[str, str] = field(default_factory=dict, repr=False)

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is cut short or no image, or has changed since it was hashed.
        """
        return decode_image(self.read(name), name, size)

    def path(self, name: str) -> Path:
        """The file of the image `name`."""
        return self.folder / self.on_disk.get(name, name)

    def read(self, name: str) -> bytes:
        """The bytes of the file, checked against its digest if that is known.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is too large for an image, or has changed since it was hashed.
        """
        content = read_bounded(self.path(name), MAX_BYTES)
        if name in self.digests and hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise ValueError(
                f"{printable(shown(self.path(name)))} has changed since the data set was loaded: expected the"
                " bytes that its fingerprint counts; load the data set again"
            )
        return content

    def digest(self, name: str) -> str:
        """The SHA-256 of the file's bytes, 64 hex digits."""
        return self.digests.get(name) or hashlib.sha256(self.read(name)).hexdigest()


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
    matched: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in wanted:
        found = by_form.get(normal_form(name)) or by_fold.get(_folded(name), [])
        if len(found) > 1:
            raise ValueError(
                f"expected one name like {name!a} in {where}, found {' and '.join(map(ascii, found))},"
                " which differ in upper and lower case or Unicode form alone; rename or remove the others"
            )
        for other in found:
            if taken.setdefault(other, name) != name:
                raise ValueError(
                    f"expected an image for each of {taken[other]!a} and {name!a}, found only"
                    f" {other!a} in {where}; give them names that differ in more than upper and lower"
                    " case or Unicode form"
                )
            matched[name] = other
    return matched


def list_images(folder: Path) -> tuple[set[str], list[Path], Counter]:
    """Image names in a folder, its subfolders in order, and what is skipped in it, counted by kind."""
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    names, folders, skipped = set(), [], Counter()
    for entry in entries:
        name = entry.name.lower()
        if os.path.isdir(entry):  # unlike the entry's own methods, false for links that lead in a circle
            if entry.name.startswith(SYSTEM_FOLDERS):
                skipped[f"{entry.name}/"] += 1
            else:
                folders.append(folder / entry.name)
        elif name.endswith(SUFFIXES) and name[0] != "." and os.path.isfile(entry):
            names.add(entry.name)
        elif name.startswith("._"):  # `._x.jpg` is macOS's note on `x.jpg`
            skipped["._*"] += 1
        elif not name.endswith(TEXT_SUFFIXES):
            ending = os.path.splitext(name)[1]
            skipped[f"*{ending}" if ending else entry.name] += 1
    return names, folders, skipped


def note_skipped(skipped: Counter) -> list[str]:
    """A sentence on what lies among the images and is none, no sentence if that is nothing."""
    return [f"Skipped, since they are no images of the set: {_counted(skipped)}."] if skipped else []


def _counted(kinds: Counter) -> str:
    """`40 ._*, 1 @eaDir/ and 3 of other kinds`."""
    ranked = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    rest = sum(number for _, number in ranked[NAMED:])
    text = ", ".join(f"{number:,} {printable(kind)}" for kind, number in ranked[:NAMED])
    return f"{text} and {rest:,} of other kinds" if rest else text


def find_image_folder(
    root: Path, preferred: tuple[str, ...], listed: Collection[str] = ()
) -> tuple[Path, set[str], list[str]]:
    """Find the image folder of a data set under `root`.

    Only folders with an image that is listed count, if there are any.  Folders of systems (`@eaDir`,
    `__MACOSX`, hidden ones), and what is no image, are skipped and counted.

    Args:
        root: the data set's folder.
        preferred: names that the folder usually has, the most usual first; they decide if several
            folders hold images, and a shallow one goes before a deep one of the same name.
        listed: names of the data set's images.

    Returns:
        The folder, the file names of its images, and sentences on what is skipped and on other folders
        with images.

    Raises:
        FileNotFoundError: no folder holds images.
        ValueError: several do and none has a preferred name.
    """
    found: dict[Path, set[str]] = {}
    skipped: dict[Path, Counter] = {}
    level, seen = [root], set()
    for _ in range(DEPTH + 1):
        below = []
        for folder in level:
            if folder.resolve() in seen:  # reached twice through links
                continue
            seen.add(folder.resolve())
            try:
                names, folders, skipped[folder] = list_images(folder)
            except PermissionError:  # a disk's lost+found
                if folder == root:
                    raise
                skipped[folder] = Counter({f"unreadable {folder.name}/": 1})
                continue
            if names:
                found[folder] = names
            below += folders
        level = below
    everything = sum(skipped.values(), Counter())
    if not found:
        raise FileNotFoundError(
            f"expected a folder with images (JPEG, PNG, WebP, GIF, BMP or TIFF) under {shown(root)}, usually"
            f" {preferred[0]}/, found {_counted(everything) or 'none'}; unpack the images there"
        )
    wanted = {_folded(name) for name in listed}
    likely = [folder for folder in found if not wanted.isdisjoint(map(_folded, found[folder]))]
    candidates = likely or list(found)
    ranked = [folder for name in preferred for folder in candidates if folder.name == name]
    if not ranked and len(candidates) > 1:
        raise ValueError(
            f"expected one folder with images under {shown(root)}, found {len(candidates)}:"
            f" {_named(candidates)}; rename the right one to {preferred[0]}"
        )
    chosen = (ranked or candidates)[0]
    notes = []
    if others := [folder for folder in found if folder != chosen]:
        notes.append(f"Images are read from {shown(chosen)}; {_named(others)} hold images too, unread.")
    of_systems = Counter({kind: number for kind, number in everything.items() if kind.endswith("/")})
    return chosen, found[chosen], notes + note_skipped(skipped[chosen] | of_systems)


def _named(folders: list[Path]) -> str:
    rest = f" and {len(folders) - NAMED:,} more" if len(folders) > NAMED else ""
    return ", ".join(printable(shown(folder)) for folder in folders[:NAMED]) + rest
