"""A folder of JPEG files as an image source, and how to find it under a data set's root.

Light on purpose: the packed store's worker processes import it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmlib.data.decoding import decode_image
from mmlib.paths import shown

SUFFIXES = (".jpg", ".jpeg")
DEPTH = 3  # folders below the root that are searched; zips unpacked into themselves are 2 deep


@dataclass(frozen=True)
class ImageFolder:
    """Reads the images of one folder by file name."""

    folder: Path

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is cut short or no image.
        """
        return decode_image((self.folder / name).read_bytes(), name, size)


def find_image_folders(root: Path) -> dict[Path, set[str]]:
    """Folders at or below `root` that hold JPEG files, with the file names; shallow ones first.

    Hidden folders and what macOS leaves in zips (`__MACOSX`, `._name.jpg`) are passed over, a
    folder that is reached twice through links is given once.
    """
    found: dict[Path, set[str]] = {}
    level = [root]
    seen = set()
    for _ in range(DEPTH + 1):
        below = []
        for folder in level:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            with os.scandir(folder) as entries:
                entries = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
            names = {entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES)}
            if names:
                found[folder] = names
            below += sorted(folder / entry.name for entry in entries if entry.is_dir())
        level = below
    return found


def find_image_folder(root: Path, preferred: tuple[str, ...]) -> tuple[Path, set[str], tuple[Path, ...]]:
    """The image folder of a data set under `root`, its file names, and the other candidates.

    Args:
        root: the data set's folder.
        preferred: names that the folder usually has, the most usual first; they decide if several
            folders hold images, and a shallow one goes before a deep one of the same name.

    Raises:
        FileNotFoundError: no folder holds JPEG files.
        ValueError: several do and none has a preferred name.
    """
    found = find_image_folders(root)
    if not found:
        raise FileNotFoundError(
            f"expected a folder with JPEG images under {shown(root)}, usually {preferred[0]}/, found none;"
            " unpack the images there"
        )
    ranked = [folder for name in preferred for folder in found if folder.name == name]
    if not ranked and len(found) > 1:
        raise ValueError(
            f"expected one folder with images under {shown(root)}, found {len(found)}:"
            f" {', '.join(shown(folder) for folder in found)}; rename the right one to {preferred[0]}"
        )
    chosen = (ranked or list(found))[0]
    return chosen, found[chosen], tuple(folder for folder in found if folder != chosen)
