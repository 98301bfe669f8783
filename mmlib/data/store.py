"""The packed image store: every image decoded and resized once, in one memory-mapped uint8 file.

A store is two files under `data/cache/`: the pixels, and beside them a JSON header that says what
they are (`mmlib.data.array_file`).
"""

import glob
import hashlib
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from tqdm import tqdm

from mmlib import paths
from mmlib.data.array_file import ArrayFile
from mmlib.data.dataset import Dataset
from mmlib.data.packing import CHUNK, Resize, pack_images
from mmlib.data.split_rows import SplitRows
from mmlib.data.tar_images import TarImages
from mmlib.paths import shown

logger = logging.getLogger(__name__)

FORMAT = 2  # raised when the meaning of the bytes changes, including how images are resized


@dataclass(frozen=True)
class ImageStore(SplitRows):
    """All images of a data set at one size, but for splits that are read from tars.

    Attributes:
        images: (N, size, size, 3) uint8, RGB, memory-mapped and read-only.
        index: image name to its row.
        splits: split name to its rows, (N_split,) int64, in the split's order.
        path: the file of the pixels.
        resize: how the images were made square.
    """

    images: np.memmap
    index: dict[str, int]
    splits: dict[str, np.ndarray]
    path: Path
    resize: Resize = "squash"


def open_store(
    dataset: Dataset,
    size: int,
    resize: Resize = "squash",
    workers: int | None = None,
    cache: Path | None = None,
    progress: bool | None = None,
) -> ImageStore:
    """Opens the packed images of `dataset`, packing them first if that has not been done.

    A store that is cut short, foreign or of an older format is packed again.  Of several processes
    that want the same store one packs and the others wait for it.

    Args:
        dataset: its name and fingerprint, with size and resize mode, key the store.
        size: side of the square images, pixels.
        resize: `squash` ignores the aspect ratio (as the reference experiment does); `crop` brings
            the shorter side to `size` and cuts out the centre.
        workers: processes that decode; 1 decodes in this one.  By default one per CPU, and no
            more than there is work for.
        cache: folder of the store, by default `data/cache/`.
        progress: show a progress bar; by default if the error stream is a terminal.

    Raises:
        ValueError: size, resize or workers out of range; a data set without images; images that
            cannot be read (the first is named, the rest are counted, no store is left).
        OSError: not enough space on the disk, or the folder cannot be written.
        RuntimeError: a worker process was killed or could not start, as from a script without
            `if __name__ == "__main__":`.
    """
    if size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, found {size}")
    if resize not in get_args(Resize):
        raise ValueError(f"expected resize to be one of {', '.join(get_args(Resize))}, found {resize!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"expected at least 1 worker, found {workers}; 1 packs without processes")
    names = dataset.packed_images()
    if not names:
        raise ValueError(f"expected images to pack, found none in data set {dataset.name!r}")
    header = {
        "format": FORMAT,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "resize": resize,
        "shape": [len(names), size, size, 3],
        "names_sha256": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
    }
    path = (cache or paths.CACHE) / f"{dataset.name}-{dataset.fingerprint}-{size}-{resize}.uint8"
    file = ArrayFile(path, header, np.uint8, "pixels")
    if file.fault():
        with file.locked("packs", when_held=lambda: _refuse_own_worker(path)):
            # Asked again, since another process may have packed it while this one waited.
            if fault := file.fault():
                if path.exists():
                    logger.warning("%s is packed again: %s", shown(path), fault)
                _pack(dataset, names, file, workers, progress)
    index = {name: row for row, name in enumerate(names)}
    splits = {
        split.name: np.array([index[name] for name in split.images], dtype=np.int64)
        for split in dataset.packed
    }
    return ImageStore(file.map(), index, splits, path, resize)


def _refuse_own_worker(path: Path) -> None:
    """Raises where a worker process runs an unguarded script anew: it would wait for its own parent."""
    if _unfinished(path, os.getppid()).exists():
        raise RuntimeError(
            "expected worker processes to import the script without running it, found that it packs"
            " images again; put its work under `if __name__ == '__main__':`"
        ) from None


def _unfinished(path: Path, pid: int) -> Path:
    return path.with_name(f"{path.name}.{pid}.part")


def _pack(
    dataset: Dataset, names: list[str], file: ArrayFile, workers: int | None, progress: bool | None
) -> None:
    """Makes the store; the caller holds its lock."""
    # Under the lock, unfinished files can only be a killed process's.
    for stale in file.path.parent.glob(f"{glob.escape(file.path.name)}.*.part"):
        stale.unlink()
    file.check_space(f"pack {len(names):,} images of {dataset.name}")
    workers = workers or min(os.cpu_count() or 1, math.ceil(len(names) / (4 * CHUNK)))
    temporary = _unfinished(file.path, os.getpid())
    size, resize = file.header["shape"][1], file.header["resize"]
    source = dataset.source
    if isinstance(source, TarImages):  # each worker gets a copy, without the many images that are not packed
        source = source.only(names)
    bar = tqdm(
        total=len(names),
        desc=f"packing {dataset.name}",
        unit="image",
        disable=None if progress is None else not progress,
    )
    try:
        with bar:
            unread = pack_images(source, names, size, resize, temporary, workers, bar.update)
        if unread:
            name, reason = unread[0]
            raise ValueError(
                f"expected {len(names):,} readable images in {dataset.name}, found {len(unread):,} that are"
                f" not: {name} ({reason}){f' and {len(unread) - 1:,} more' if len(unread) > 1 else ''};"
                " get them again"
            )
        file.seal(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("packed %s images into %s", f"{len(names):,}", shown(file.path))
