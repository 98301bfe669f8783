"""A large array in a memory-mapped file that is whole or absent, and made once by one process.

The file has a JSON header beside it that says what it holds.  The array gets its name when it is
complete and on the disk, the header after it, so an array with a sound header is whole whatever
interrupted its making.
"""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mmlib.files import parse_json, write_text_atomic
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
        os.replace(unfinished, self.path)
        write_text_atomic(self.header_path, json.dumps(header, indent=1))


def checksum(array: np.ndarray) -> str:
    """SHA-256 of a few rows from first to last: milliseconds, and it sees zeros and foreign bytes."""
    rows = np.linspace(0, len(array) - 1, PROBES).astype(int)
    return hashlib.sha256(array[rows].tobytes()).hexdigest()
