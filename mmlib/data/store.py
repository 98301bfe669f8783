"""Cached arrays: packed images and frozen features, made once and then memory-mapped.

An array is a `.npy` file under `data/cache/` whose name holds a hash of what it was made of.  Rows are
written in order to a `.part` file; a computation that was interrupted continues there.  The file gets its
name when it is complete and flushed, so an array that is there is whole.
"""

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from mmlib import files
from mmlib.data.dataset import Dataset
from mmlib.data.decoding import Resize, resize_image
from mmlib.files import explained, printable, replace_flushed, shown
from mmlib.output import progress

logger = logging.getLogger(__name__)

FORMAT = 3  # raised when the meaning of the values changes, including how images are resized
IMAGES = 256  # decoded at once

Compute = Callable[[int, int], np.ndarray]  # rows start to stop - 1 → their values


@dataclass(frozen=True)
class Store:
    """Values of all items of a data set.

    Attributes:
        array: memory-mapped and read-only: images (N, size, size, 3) uint8, or features, float16:
            (N, V, F) or (N, V, P, F) of V views of images, (M, F) of captions.
        splits: split name to its rows, int64, in the split's order.
        resize: how images were made square.
    """

    array: np.memmap
    splits: dict[str, np.ndarray]
    resize: Resize = "squash"

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.array.filename)


def open_store(
    dataset: Dataset,
    size: int,
    resize: Resize = "squash",
    cache: Path | None = None,
) -> Store:
    """Opens the packed images of `dataset`, packing them first if that has not been done.

    Images are decoded by threads, one per CPU.  Those of splits that are read from tars are not packed.

    Args:
        dataset: its name and fingerprint, with size and resize mode, key the store.
        size: side of the square images, pixels.
        resize: `squash` ignores the aspect ratio (as the reference experiment does); `crop` brings
            the shorter side to `size` and cuts out the centre.
        cache: folder of the store, by default `data/cache/`.

    Raises:
        ValueError: a data set without images; images that cannot be read (the first is named, the rest are
            counted, no store is left).
        OSError: as `open_array`.
    """
    names = dataset.images(packed=True)
    if not names:
        raise ValueError(f"expected images to pack, found none in data set {dataset.name!r}")

    def load(name: str) -> np.ndarray | str:
        """The pixels, or why there are none."""
        try:
            return resize_image(dataset.source.load(name, size), size, resize)
        except (OSError, ValueError) as error:
            return f"{printable(name)} ({error})"

    def decode(start: int, stop: int) -> np.ndarray:
        images = list(pool.map(load, names[start:stop]))
        if any(isinstance(image, str) for image in images):
            unread = [text for text in [*images, *pool.map(load, names[stop:])] if isinstance(text, str)]
            more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
            raise ValueError(
                f"expected {len(names):,} readable images in {dataset.name}, found {len(unread):,} that are"
                f" not: {unread[0]}{more}; get them again"
            )
        return np.stack(images)

    note = {
        "fingerprint": dataset.fingerprint,
        "resize": resize,
        "shape": [len(names), size, size, 3],
        "names": names,
    }
    path = (cache or files.CACHE) / f"{dataset.name}-{dataset.fingerprint}-{size}-{resize}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        array = open_array(path, note, decode, IMAGES, f"packing {dataset.name}", np.uint8)
    row = {name: row for row, name in enumerate(names)}
    splits = {
        split.name: np.array([row[name] for name in split.images], dtype=np.int64) for split in dataset.packed
    }
    return Store(array, splits, resize)


def open_array(
    path: Path, note: dict, compute: Compute, batch: int, label: str, dtype: type = np.float16
) -> np.memmap:
    """Opens the array of this name that was made of what `note` says, making it first if that is not there.

    If several processes open the same array, one makes it and the others wait.

    Args:
        path: of the `.npy` file, to which a hash of `note` is added.
        note: what the values depend on, as JSON types; `shape` among them.
        compute: values of some rows; called with rows in order, `batch` at once, the last ones fewer.
        batch: rows at once.
        label: what the progress bar says.
        dtype: of the stored values.

    Raises:
        ValueError: values of another shape, or that float16 cannot hold; a file that was damaged since it
            was made; and what `compute` raises.
        OSError: not enough space on the disk, or the folder cannot be written.
    """
    content = json.dumps([FORMAT, np.dtype(dtype).name, note], sort_keys=True)
    path = path.with_name(f"{path.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another process may have made it meanwhile
                _make(path, tuple(note["shape"]), np.dtype(dtype), compute, batch, label)
    try:
        return np.load(path, mmap_mode="r")
    except (EOFError, ValueError) as error:
        raise ValueError(
            f"{shown(path)} is cut short or damaged ({error}); delete it and start again"
        ) from None


def _make(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, compute: Compute, batch: int, label: str
) -> None:
    """Makes the array, from where it was left; the caller holds its lock."""
    part = path.with_suffix(".part")
    part.touch()
    header = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    start, row_bytes = len(header.getvalue()), math.prod(shape[1:]) * dtype.itemsize
    done = max(0, part.stat().st_size - start) // row_bytes // batch * batch
    if done:
        logger.info("%s continues at row %s of %s", shown(path), f"{done:,}", f"{shape[0]:,}")
    bar = progress(total=shape[0], initial=done, desc=label, unit="row")
    try:
        # A plain write: on a full disk, writing through a memory map kills the process (SIGBUS).
        with bar, explained(path), open(part, "r+b") as file:
            file.write(header.getvalue())
            file.seek(start + done * row_bytes)
            for first in range(done, shape[0], batch):
                rows = compute(first, min(first + batch, shape[0]))
                file.write(_as_stored(rows, shape, dtype, first))
                bar.update(len(rows))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except ValueError:
        part.unlink()
        raise
    replace_flushed(part, path)
    logger.info("stored %s rows in %s (%s)", f"{shape[0]:,}", shown(path), label)


def _as_stored(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, first: int) -> np.ndarray:
    """The values of some rows as they are stored, if `dtype` can hold them."""
    if values.shape[1:] != shape[1:]:
        raise ValueError(f"expected rows of shape {shape[1:]}, found {values.shape[1:]}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(stored).all():
        row = first + int(np.argwhere(~np.isfinite(stored))[0][0])
        raise ValueError(
            f"features of row {row} cannot be stored: found {np.abs(values).max():g}, expected finite values"
            f" up to {np.finfo(dtype).max:g}; set cache_features to false"
        )
    return stored
