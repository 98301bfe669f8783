"""The packed image store: every image decoded and resized once, in one memory-mapped uint8 file.

A store is two files under `data/cache/`: the pixels, and beside them a JSON header that says what
they are.  The pixels get their name when they are complete and on the disk, the header after them,
so a store with a sound header is whole whatever interrupted its making.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from mmlib import paths
from mmlib.data.atomic import write_text_atomic
from mmlib.data.dataset import Dataset
from mmlib.data.packing import CHUNK, Resize, pack_images
from mmlib.paths import shown

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when the meaning of the bytes changes, including how images are resized
PROBES = 16  # rows, spread over the store, whose checksum is verified at each opening


@dataclass(frozen=True)
class ImageStore:
    """All images of a data set at one size.

    Attributes:
        images: (N, size, size, 3) uint8, RGB, memory-mapped and read-only.
        index: image name to its row.
        splits: split name to its rows, (N_split,) int64, in the split's order.
        path: the file of the pixels.
    """

    images: np.memmap
    index: dict[str, int]
    splits: dict[str, np.ndarray]
    path: Path

    def rows(self, split: str) -> np.ndarray:
        """Rows of the split's images in the split's order, (N_split,) int64.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"expected a split of {', '.join(self.splits)}, found {split!r}")
        return self.splits[split]


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
    names = dataset.images()
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
    if _fault(path, header):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            # Asked again, since another process may have packed it while this one waited.
            if fault := _fault(path, header):
                if path.exists():
                    logger.warning("%s is packed again: %s", shown(path), fault)
                _pack(dataset, names, header, path, workers, progress)
    index = {name: row for row, name in enumerate(names)}
    splits = {
        split.name: np.array([index[name] for name in split.images], dtype=np.int64)
        for split in dataset.splits.values()
    }
    return ImageStore(_map(path, header), index, splits, path)


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _map(path: Path, header: dict) -> np.memmap:
    return np.memmap(path, dtype=np.uint8, mode="r", shape=tuple(header["shape"]))


def _checksum(images_NHWC: np.ndarray) -> str:
    """SHA-256 of a few rows from first to last: milliseconds, and it sees zeros and foreign bytes."""
    rows = np.linspace(0, len(images_NHWC) - 1, PROBES).astype(int)
    return hashlib.sha256(images_NHWC[rows].tobytes()).hexdigest()


def _fault(path: Path, header: dict) -> str | None:
    """Why the store at `path` cannot be used; None if it is whole and what `header` asks for."""
    try:
        found = json.loads(_header_path(path).read_bytes())
        n_bytes = path.stat().st_size
    except FileNotFoundError as error:
        return f"there is no {Path(error.filename).name}"
    except ValueError as error:
        return f"its header is not JSON ({error})"
    if not isinstance(found, dict):
        return "its header is not a JSON object"
    for key, expected in header.items():
        if found.get(key) != expected:
            return f"its header has {key} {found.get(key)!r}, expected {expected!r}"
    if n_bytes != math.prod(header["shape"]):
        return f"it has {n_bytes:,} bytes, expected {math.prod(header['shape']):,}"
    if found.get("checksum") != _checksum(_map(path, header)):
        return "its pixels do not match their checksum"
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the right to pack `path`, which the system takes back from a process that is killed."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # A worker process runs an unguarded script anew before it works; it would wait for its own parent.
        if _unfinished(path, os.getppid()).exists():
            raise RuntimeError(
                "expected worker processes to import the script without running it, found that it packs"
                " images again; put its work under `if __name__ == '__main__':`"
            ) from None
        logger.info("waiting for another process that packs %s", shown(path))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unfinished(path: Path, pid: int) -> Path:
    return path.with_name(f"{path.name}.{pid}.part")


def _pack(
    dataset: Dataset, names: list[str], header: dict, path: Path, workers: int | None, progress: bool | None
) -> None:
    """Makes the store at `path`; the caller holds its lock."""
    # Under the lock, unfinished files can only be a killed process's.
    for stale in path.parent.glob(f"{path.name}.*.part"):
        stale.unlink()
    needed, free = math.prod(header["shape"]), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"expected {needed:,} free bytes to pack {len(names):,} images of {dataset.name}, found {free:,};"
            " free some space, choose a smaller size or another cache folder",
            str(path.parent),
        )
    workers = workers or min(os.cpu_count() or 1, math.ceil(len(names) / (4 * CHUNK)))
    temporary = _unfinished(path, os.getpid())
    bar = tqdm(
        total=len(names),
        desc=f"packing {dataset.name}",
        unit="image",
        disable=None if progress is None else not progress,
    )
    try:
        with bar:
            unread = pack_images(
                dataset.source, names, header["shape"][1], header["resize"], temporary, workers, bar.update
            )
        if unread:
            name, reason = unread[0]
            raise ValueError(
                f"expected {len(names):,} readable images in {dataset.name}, found {len(unread):,} that are"
                f" not: {name} ({reason}){f' and {len(unread) - 1:,} more' if len(unread) > 1 else ''};"
                " get them again"
            )
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        header = {**header, "checksum": _checksum(_map(temporary, header))}
        _header_path(path).unlink(missing_ok=True)
        os.replace(temporary, path)
        write_text_atomic(_header_path(path), json.dumps(header, indent=1))
    finally:
        temporary.unlink(missing_ok=True)
    logger.info("packed %s images into %s", f"{len(names):,}", shown(path))
