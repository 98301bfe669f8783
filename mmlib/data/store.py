"""The packed image store: every image decoded and resized once, in one memory-mapped uint8 file.

A store is two files under `data/cache/`: the pixels, and beside them a JSON header that says what
they are (`mmlib.data.store`).
"""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from mmlib import paths
from mmlib.data.dataset import Dataset, ImageSource, SplitRows
from mmlib.data.decoding import Resize, resize_image
from mmlib.data.shard_index import TarImages
from mmlib.files import parse_json, read_json, replace_flushed, write_text_atomic
from mmlib.paths import shown

logger = logging.getLogger(__name__)

PROBES = 16  # rows, spread over the array, whose checksum is verified at each opening


@dataclass(frozen=True)
class ArrayFile:
    """Where an array lies and what it must be.

    Attributes:
        path: the file; its header is `<path>.json`.
        header: what identifies it, as JSON types; `shape` among them.
        dtype: of its values.
        content: what messages call its values.
    """

    path: Path
    header: dict
    dtype: type = np.uint8
    content: str = "values"

    @property
    def header_path(self) -> Path:
        """The header's file."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def n_bytes(self) -> int:
        """Size of the whole array."""
        return math.prod(self.header["shape"]) * np.dtype(self.dtype).itemsize

    def map(self, path: Path | None = None) -> np.memmap:
        """The array, read-only; of an unfinished file if one is named."""
        return np.memmap(path or self.path, dtype=self.dtype, mode="r", shape=tuple(self.header["shape"]))

    def stored_header(self) -> dict:
        """The header on the disk.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no JSON object.
        """
        found = parse_json(self.header_path.read_bytes(), "its header")
        if not isinstance(found, dict):
            raise ValueError("its header is not a JSON object")
        return found

    def fault(self) -> str | None:
        """Why the file cannot be used; None if it is whole and what the header asks for."""
        try:
            found = self.stored_header()
            n_bytes = self.path.stat().st_size
        except FileNotFoundError as error:
            return f"there is no {Path(error.filename).name}"
        except ValueError as error:
            return str(error)
        for key, expected in self.header.items():
            if found.get(key) != expected:
                return f"its header has {key} {found.get(key)!r}, expected {expected!r}"
        if n_bytes != self.n_bytes:
            return f"it has {n_bytes:,} bytes, expected {self.n_bytes:,}"
        if found.get("checksum") != checksum(self.map()):
            return f"its {self.content} do not match their checksum"
        return None

    @contextmanager
    def locked(self, work: str, when_held: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Holds the right to make the file, which the system takes back from a process that is killed.

        Args:
            work: what is done, for the line that a process logs which waits for another.
            when_held: called before waiting for another process.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            when_held()
            logger.info("waiting for another process that %s %s", work, shown(self.path))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def check_space(self, purpose: str, done: int = 0) -> None:
        """Passes if the disk has room.

        Args:
            purpose: what the bytes are for, for the message.
            done: bytes that are already there.

        Raises:
            OSError: it has not.
        """
        needed, free = self.n_bytes - done, shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"expected {needed:,} free bytes to {purpose}, found {free:,};"
                " free some space, choose a smaller size or another cache folder",
                str(self.path.parent),
            )

    def seal(self, unfinished: Path) -> None:
        """Gives the complete file `unfinished` its name and its header; the caller holds the lock."""
        with open(unfinished, "r+b") as file:
            os.fsync(file.fileno())
        header = {**self.header, "checksum": checksum(self.map(unfinished))}
        self.header_path.unlink(missing_ok=True)
        replace_flushed(unfinished, self.path)
        write_text_atomic(self.header_path, json.dumps(header, indent=1))


def checksum(array: np.ndarray) -> str:
    """SHA-256 of a few rows from first to last: milliseconds, and it sees zeros and foreign bytes."""
    rows = np.linspace(0, len(array) - 1, PROBES).astype(int)
    return hashlib.sha256(array[rows].tobytes()).hexdigest()


CHUNK = 32  # images per task: few enough to spread evenly, enough for one large write

Failure = tuple[str, str]  # image name, reason


def pack_chunk(
    source: ImageSource, size: int, resize: Resize, file: Path, start: int, names: list[str]
) -> tuple[int, list[Failure]]:
    """Writes the images `names` to rows `start`, `start + 1`, … of `file`, which must exist.

    Returns the number of images and those that cannot be read (their rows are zero).

    Raises:
        OSError: `file` cannot be written, for example because the disk is full.
    """
    images_NHWC = np.zeros((len(names), size, size, 3), dtype=np.uint8)
    failures = []
    for row, name in enumerate(names):
        try:
            images_NHWC[row] = resize_image(source.load(name, size).convert("RGB"), size, resize)
        except (OSError, ValueError) as error:
            failures.append((name, str(error)))
    # A plain write: on a full disk, writing through a memory map kills the process (SIGBUS).
    with open(file, "r+b") as output:
        output.seek(start * images_NHWC[0].nbytes)
        output.write(images_NHWC)
    return len(names), failures


def pack_images(
    source: ImageSource,
    names: list[str],
    size: int,
    resize: Resize,
    file: Path,
    workers: int,
    advance: Callable[[int], object],
) -> list[Failure]:
    """Packs all images into `file`, in `workers` processes; 1 means in this one.

    `advance` is called with the number of images that were just done.  Returns those that cannot be
    read, in the order of `names`.

    Raises:
        OSError: `file` cannot be written.
        RuntimeError: a worker process was killed or could not start.
    """
    file.touch()
    chunks = [(start, names[start : start + CHUNK]) for start in range(0, len(names), CHUNK)]
    failures = []
    # closing: an interruption stops the workers before the caller removes the file under them.
    with closing(_run((source, size, resize, file), chunks, workers)) as results:
        for number, failed in results:
            advance(number)
            failures += failed
    rank = {name: row for row, name in enumerate(names)}
    return sorted(failures, key=lambda failure: rank[failure[0]])


def _run(job: tuple, chunks: list, workers: int) -> Iterator[tuple[int, list[Failure]]]:
    if workers == 1:
        yield from (pack_chunk(*job, *chunk) for chunk in chunks)
        return
    # spawn, not fork: a forked copy of a process with torch's threads can hang for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        tasks = [pool.submit(_pack_in_worker, *chunk) for chunk in chunks]
        yield from (task.result() for task in as_completed(tasks))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"expected {workers} worker processes to pack images, found that one was killed or could not"
            " start; a script needs `if __name__ == '__main__':` around its work, and workers=1 packs"
            " without processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_job: tuple = ()  # of this worker process: a source may hold a digest of every image, too much for each chunk


def _pack_in_worker(start: int, names: list[str]) -> tuple[int, list[Failure]]:
    return pack_chunk(*_job, start, names)


def _start_worker(job: tuple) -> None:
    """Keep the job, leave Ctrl-C to the parent, and end with it.

    A pool whose parent is killed would wait for ever.
    """
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


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


FEATURE_FORMAT = 2  # raised when the meaning of the values changes, or that of the pixels they are made of
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
    file = ArrayFile(path, {"format": FEATURE_FORMAT, **header}, np.float16, "features")
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
