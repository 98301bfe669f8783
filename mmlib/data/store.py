"""Cached arrays: packed images and frozen features, made once and then memory-mapped.

An array is a `.npy` file under `data/cache/`, and beside it a JSON note that says what it was made of.  Rows
are written in order to a `.part` file; a computation that was interrupted continues there.  The file gets
its name when it is complete, the note after it, so an array with a sound note is whole.
"""

import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from mmlib import files
from mmlib.data.dataset import Dataset
from mmlib.data.decoding import Resize, resize_image
from mmlib.files import explained, printable, read_json, replace_flushed, shown, write_text_atomic

logger = logging.getLogger(__name__)

FORMAT = 3  # raised when the meaning of the values changes, including how images are resized
IMAGES = 256  # decoded at once
PROBES = 16  # rows, spread over the array, whose checksum is verified at each opening

Compute = Callable[[int, int], np.ndarray]  # rows start to stop - 1 → their values


@dataclass(frozen=True)
class Store:
    """Values of all items of a data set.

    Attributes:
        array: memory-mapped and read-only: images (N, size, size, 3) uint8, or features, float16:
            (N, V, F) or (N, V, P, F) of V views of images, (M, F) of captions.
        splits: split name to its rows, int64, in the split's order.
        path: the file.
        resize: how images were made square.
    """

    array: np.memmap
    splits: dict[str, np.ndarray]
    path: Path
    resize: Resize = "squash"

    def rows(self, split: str) -> np.ndarray:
        """Rows of the split's items in the split's order, int64.

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
    cache: Path | None = None,
    progress: bool | None = None,
) -> Store:
    """Opens the packed images of `dataset`, packing them first if that has not been done.

    Images are decoded by threads, one per CPU.  Those of splits that are read from tars are not packed.

    Args:
        dataset: its name and fingerprint, with size and resize mode, key the store.
        size: side of the square images, pixels.
        resize: `squash` ignores the aspect ratio (as the reference experiment does); `crop` brings
            the shorter side to `size` and cuts out the centre.
        cache: folder of the store, by default `data/cache/`.
        progress: as `open_array`.

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
            return resize_image(dataset.source.load(name, size).convert("RGB"), size, resize)
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
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "resize": resize,
        "shape": [len(names), size, size, 3],
        "names_sha256": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
    }
    path = (cache or files.CACHE) / f"{dataset.name}-{dataset.fingerprint}-{size}-{resize}.npy"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        array = open_array(path, note, decode, IMAGES, f"packing {dataset.name}", progress, np.uint8)
    row = {name: row for row, name in enumerate(names)}
    splits = {
        split.name: np.array([row[name] for name in split.images], dtype=np.int64) for split in dataset.packed
    }
    return Store(array, splits, path, resize)


def open_array(
    path: Path,
    note: dict,
    compute: Compute,
    batch: int,
    label: str,
    progress: bool | None = None,
    dtype: type = np.float16,
) -> np.memmap:
    """Opens the array at `path`, making it first if it is not there, damaged, or made of something else.

    If several processes open the same array, one makes it and the others wait.

    Args:
        path: of the `.npy` file.
        note: what the values depend on, as JSON types; `shape` among them.
        compute: values of some rows; called with rows in order, `batch` at once, the last ones fewer.
        batch: rows at once.
        label: what the progress bar says.
        progress: show a progress bar; by default if the error stream is a terminal.
        dtype: of the stored values.

    Raises:
        ValueError: values of another shape, or that float16 cannot hold; and what `compute` raises.
        OSError: not enough space on the disk, or the folder cannot be written.
    """
    note = {"format": FORMAT, **note, "dtype": np.dtype(dtype).name}
    try:
        return _read(path, note)
    except (FileNotFoundError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            return _read(path, note)  # another process may have made it meanwhile
        except FileNotFoundError:
            pass
        except ValueError as fault:
            logger.warning("%s is made again: %s", shown(path), fault)
        _make(path, note, compute, batch, label, progress)
        return _read(path, note)


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read(path: Path, note: dict) -> np.memmap:
    """The array, if it is whole and what `note` asks for.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is another, or damaged.
    """
    found = read_json(_note_path(path))
    for key, expected in note.items():
        if found.get(key) != expected:
            raise ValueError(f"its note has {key} {found.get(key)!r}, expected {expected!r}")
    try:
        array = np.load(path, mmap_mode="r")
    except (EOFError, ValueError) as error:
        raise ValueError(f"it is cut short or no array: {error}") from None
    if (list(array.shape), array.dtype.name) != (note["shape"], note["dtype"]):
        raise ValueError(f"it has shape {array.shape} of {array.dtype}, expected {note['shape']}")
    if found.get("checksum") != _checksum(array):
        raise ValueError("its values do not match their checksum")
    return array


def _checksum(array: np.ndarray) -> str:
    """SHA-256 of a few rows from first to last: milliseconds, and it sees zeros and foreign bytes."""
    rows = np.linspace(0, len(array) - 1, PROBES).astype(int)
    return hashlib.sha256(array[rows].tobytes()).hexdigest()


def _make(path: Path, note: dict, compute: Compute, batch: int, label: str, progress: bool | None) -> None:
    """Makes the array, from where it was left; the caller holds its lock."""
    shape, dtype = tuple(note["shape"]), np.dtype(note["dtype"])
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    key = hashlib.sha256(json.dumps(note).encode()).hexdigest()[:8]
    part = path.with_name(f"{path.name}.{key}.part")  # of this very note
    part.touch()
    header = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    start = len(header.getvalue())
    done = max(0, part.stat().st_size - start) // row_bytes // batch * batch
    _check_space(path.parent, (shape[0] - done) * row_bytes, f"store {shape[0]:,} rows ({label})")
    if done:
        logger.info("%s continues at row %s of %s", shown(path), f"{done:,}", f"{shape[0]:,}")
    hidden = None if progress is None else not progress
    bar = tqdm(total=shape[0], initial=done, desc=label, unit="row", disable=hidden)
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
    found = {**note, "checksum": _checksum(np.load(part, mmap_mode="r"))}
    _note_path(path).unlink(missing_ok=True)
    replace_flushed(part, path)
    write_text_atomic(_note_path(path), json.dumps(found, indent=1))
    logger.info("stored %s rows in %s (%s)", f"{shape[0]:,}", shown(path), label)


def _check_space(folder: Path, needed: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"expected {needed:,} free bytes to {purpose}, found {free:,}; free some space, choose a smaller"
            " size or another cache folder",
            str(folder),
        )


def _as_stored(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, first: int) -> np.ndarray:
    """The values of some rows as they are stored, if `dtype` can hold them."""
    if values.shape[1:] != shape[1:]:
        raise ValueError(f"expected rows of shape {shape[1:]}, found {values.shape[1:]}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=dtype)
    if dtype.kind == "f" and not np.isfinite(stored).all():
        row = first + int(np.argwhere(~np.isfinite(stored))[0][0])
        raise ValueError(
            f"features of row {row} cannot be stored: found {np.abs(values).max():g}, expected finite values"
            f" up to {np.finfo(dtype).max:g}; set cache_features to false"
        )
    return stored
