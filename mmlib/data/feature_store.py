"""The store of frozen features: what an encoder that is not tuned makes of each item, computed once.

A store is a float16 array under `data/cache/` with a header (`mmlib.data.array_file`).  While it is
made, its rows stand in `<name>.part`, and `<name>.part.json` says how many of them are on the disk:
a computation that was interrupted goes on there.

Shapes: N images or captions, V views, F feature channels, P positions.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmlib.data.array_file import ArrayFile
from mmlib.data.split_rows import SplitRows
from mmlib.files import read_json, write_text_atomic
from mmlib.paths import shown

logger = logging.getLogger(__name__)

FORMAT = 2  # raised when the meaning of the values changes, or that of the pixels they are made of
RECORD_SECONDS = 5.0  # between two records of the rows done, each of which waits for the disk

Compute = Callable[[int, int], np.ndarray]  # rows start to stop - 1 → their features


@dataclass(frozen=True)
class FeatureStore(SplitRows):
    """Features of all items of a data set.

    Attributes:
        array: float16, memory-mapped and read-only: images (N, V, F) or (N, V, P, F) in the order of
            the packed images, view 0 the image as it is; captions (N, F), split after split.
        splits: split name to its rows, int64, in the split's order.
        path: the file.
    """

    array: np.memmap
    splits: dict[str, np.ndarray]
    path: Path


def open_array(
    path: Path, header: dict, compute: Compute, batch: int, label: str, progress: bool | None = None
) -> np.memmap:
    """Opens the features at `path`, computing those first that are not there yet.

    A file that is cut short, or of an older format, is computed again.  Of several processes that
    want the same features one computes and the others wait for it.

    Args:
        path: of the file.
        header: what the features depend on, as JSON types: `shape`, `encoder` (the fingerprint), ….
        compute: features of some rows; called with rows in order, `batch` at once, the last ones fewer.
        batch: rows at once.
        label: what the progress bar says.
        progress: show a progress bar; by default if the error stream is a terminal.

    Raises:
        ValueError: the file was made by other weights; features that float16 cannot hold.
        OSError: not enough space on the disk, or the folder cannot be written.
    """
    file = ArrayFile(path, {"format": FORMAT, **header}, np.float16, "features")
    _refuse_other_weights(file)
    if file.fault():
        with file.locked("computes"):
            # Asked again, since another process may have computed them while this one waited.
            if fault := file.fault():
                if path.exists():
                    logger.warning("%s is computed again: %s", shown(path), fault)
                _fill(file, compute, batch, label, progress)
    return file.map()


def _refuse_other_weights(file: ArrayFile) -> None:
    try:
        found = file.stored_header().get("encoder")
    except (FileNotFoundError, ValueError):
        return
    if found not in (None, file.header["encoder"]):
        raise ValueError(
            f"feature store of other weights: {shown(file.path)} was made by an encoder with fingerprint"
            f" {found}, expected {file.header['encoder']}; remove the file, or bring those weights back"
        )


def _fill(file: ArrayFile, compute: Compute, batch: int, label: str, progress: bool | None) -> None:
    """Makes the file, from where it was left; the caller holds its lock."""
    part, count = file.path.with_name(file.path.name + ".part"), file.header["shape"][0]
    row_bytes = file.n_bytes // count
    done = _rows_done(file, part, row_bytes) // batch * batch
    file.check_space(f"store the features of {count:,} items", done * row_bytes)
    if not done:
        part.unlink(missing_ok=True)
        part.touch()
    elif done < count:
        logger.info("%s goes on at row %s of %s", shown(file.path), f"{done:,}", f"{count:,}")
    bar = tqdm(
        total=count, initial=done, desc=label, unit="row", disable=None if progress is None else not progress
    )
    with bar, open(part, "r+b") as output:
        # A plain write: on a full disk, writing through a memory map kills the process (SIGBUS).
        output.seek(done * row_bytes)
        recorded = time.monotonic()
        try:
            while done < count:
                stop = min(done + batch, count)
                output.write(_as_stored(compute(done, stop), file.header["shape"], done))
                bar.update(stop - done)
                done = stop
                if time.monotonic() - recorded > RECORD_SECONDS:
                    _record(file, part, output, done)
                    recorded = time.monotonic()
        except BaseException:
            # On a full disk this fails too; the record before it still holds.
            with contextlib.suppress(OSError):
                output.truncate(done * row_bytes)
                _record(file, part, output, done)
            raise
    file.seal(part)
    _record_path(part).unlink(missing_ok=True)
    logger.info("stored the features of %s items in %s", f"{count:,}", shown(file.path))


def _record_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _record(file: ArrayFile, part: Path, output, done: int) -> None:
    """Says how many rows are done, once they are on the disk."""
    output.flush()
    os.fsync(output.fileno())
    write_text_atomic(_record_path(part), json.dumps({"header": file.header, "rows": done}))


def _rows_done(file: ArrayFile, part: Path, row_bytes: int) -> int:
    """Rows of an unfinished file that can be kept."""
    try:
        record = read_json(_record_path(part))
        if record["header"] == file.header and part.stat().st_size >= record["rows"] * row_bytes:
            return record["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0


def _as_stored(feature: np.ndarray, shape: list[int], start: int) -> np.ndarray:
    """The features as float16, if it can hold them."""
    if list(feature.shape[1:]) != list(shape[1:]):
        raise ValueError(f"expected features of shape {tuple(shape[1:])}, found {feature.shape[1:]}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(feature, dtype=np.float16)
    if not np.isfinite(stored).all():
        row = start + int(np.argwhere(~np.isfinite(stored))[0][0])
        raise ValueError(
            f"features of row {row} cannot be stored: found {np.abs(feature).max():g}, expected finite values"
            f" up to {np.finfo(np.float16).max:g}; set cache_features to false"
        )
    return stored
