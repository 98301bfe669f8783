"""Images inside tar files as an image source.

Light on purpose: the packed store's worker processes import it.

Shapes: N images, R images asked for; H = W = `LOOK_SIDE` pixels.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from mmlib import paths
from mmlib.data.decoding import decode_image
from mmlib.data.shard_files import Place, Retry, fetch
from mmlib.files import printable, replace_flushed

LOOK_SIDE = 32  # of the small pictures that are kept of all images for the leak guard, pixels


@dataclass(frozen=True)
class Tar:
    """A tar file whose content is known.

    Attributes:
        place: where it is.
        sha256: of its bytes, 64 hex digits.
        looks: the file of the small pictures of its images.
    """

    place: Place
    sha256: str
    looks: Path

    def look(self, row: int) -> np.ndarray:
        """The small picture in a row, (1, H, W, 3) uint8."""
        return self.all_looks()[row : row + 1]

    def all_looks(self) -> np.ndarray:
        """All small pictures, (R, H, W, 3) uint8; the tar must have one."""
        return np.memmap(self.looks, np.uint8, "r").reshape(-1, LOOK_SIDE, LOOK_SIDE, 3)


class _OpenFile:
    """A file that is read at any place by several threads, and closed when nobody holds it any more."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        return os.pread(self._descriptor, size, offset)


class FetchedTars:
    """Tars behind URLs as open files on this machine, a few at a time.

    Several processes share the files: one fetches, the others wait for it.  A process keeps its files
    open, so that it can read on when another one has deleted them.
    """

    def __init__(self, retry: Retry | None = None):
        self._retry = retry or Retry()
        self._open: dict[Tar, _OpenFile] = {}
        self._lock = threading.Lock()
        self._now: set[Tar] = set()
        self._wanted: set[Tar] = set()

    def __reduce__(self):
        return FetchedTars, (self._retry,)

    def read(self, tar: Tar, offset: int, size: int) -> bytes:
        """Bytes of the tar, which is fetched if it is not there.

        Raises:
            ValueError: it is another one than that which was indexed.
            FileNotFoundError, ConnectionError, OSError: as `fetch`.
        """
        return self._file(tar).read(offset, size)

    def keep(self, now: set[Tar], soon: set[Tar]) -> None:
        """Fetch what is needed soon in another thread; delete what was needed before the last call alone.

        Where nothing is needed any more, all goes, and what is being fetched is given up.
        """
        wanted = self._now | now | soon if now else set()
        with self._lock:
            gone, self._now, self._wanted = self._wanted - wanted, now, wanted
            for tar in gone:
                self._open.pop(tar, None)
        for tar in gone:
            path = fetched_path(tar.sha256)
            with contextlib.suppress(Timeout), FileLock(f"{path}.lock", timeout=0.5):
                path.unlink(missing_ok=True)
        if soon:
            threading.Thread(target=self._fetch, args=(soon,), name="mmlib-shards", daemon=True).start()

    def _fetch(self, tars: set[Tar]) -> None:
        for tar in tars:
            if tar in self._wanted:  # still
                with contextlib.suppress(OSError, ValueError):  # raised when the file is needed
                    self._file(tar)

    def _file(self, tar: Tar) -> _OpenFile:
        with self._lock:
            if tar in self._open:
                return self._open[tar]
            was_wanted = tar in self._wanted
        path = fetched_path(tar.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                part = path.with_suffix(".part")
                try:
                    found = fetch(
                        tar.place.where, part, self._retry, lambda: was_wanted and tar not in self._wanted
                    )
                    if found != tar.sha256:
                        forget(tar.place)
                        raise ValueError(
                            f"{tar.place} has changed: expected bytes with SHA-256 {tar.sha256[:16]}…, as"
                            f" indexed, found {found[:16]}…; start again to index it as it is now"
                        )
                    replace_flushed(part, path)
                finally:
                    part.unlink(missing_ok=True)
            file = _OpenFile(path)
        with self._lock:
            if was_wanted and tar not in self._wanted:
                return file  # for this one read
            return self._open.setdefault(tar, file)


def fetched_path(sha256: str) -> Path:
    """Where a tar with these bytes lies when it was fetched."""
    return paths.CACHE / "shards" / "fetched" / f"{sha256[:32]}.tar"


def record_path(place: Place) -> Path:
    """Where it is noted what the bytes of a tar were when they were last read."""
    return paths.CACHE / "shards" / "seen" / f"{hashlib.sha256(place.where.encode()).hexdigest()[:32]}.json"


def forget(place: Place) -> None:
    """Have a tar read anew at the next start."""
    record_path(place).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class TarImages:
    """Reads images out of tar files, by name; an `ImageSource`.

    Every image is checked against its SHA-256 when it is read, so what is decoded is what was indexed.

    Attributes:
        tars: the files.
        row: image name to its row in the arrays.
        tar_N: (N,) int64, the number of its tar.
        span_N2: (N, 2) int64, offset and size in the tar, bytes.
        digest_N: (N,) 32 bytes, SHA-256 of the image's file.
        look_N: (N,) int64, its row among the small pictures of its tar.
    """

    tars: tuple[Tar, ...]
    row: dict[str, int]
    tar_N: np.ndarray
    span_N2: np.ndarray
    digest_N: np.ndarray
    look_N: np.ndarray
    fetched: FetchedTars = field(default_factory=FetchedTars)

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            OSError, ValueError: the tar is missing or was changed, or the image cannot be decoded.
        """
        return decode_image(self.read(name), name, size)

    def read(self, name: str) -> bytes:
        """The bytes of the image's file.

        Raises:
            FileNotFoundError: there is no such image, or no such tar any more.
            ValueError: the tar is not the one that was indexed.
            ConnectionError, OSError: it cannot be fetched or read.
        """
        if name not in self.row:
            raise FileNotFoundError(
                f"expected one of {len(self.row):,} images of shards, found {printable(repr(name))}"
            )
        row = self.row[name]
        tar = self.tars[self.tar_N[row]]
        offset, size = self.span_N2[row].tolist()
        if tar.place.is_url:
            content = self.fetched.read(tar, offset, size)
        else:
            with open(tar.place.where, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        if hashlib.sha256(content).digest() != self.digest_N[row].tobytes():
            raise ValueError(
                f"{tar.place} has changed: expected the bytes of {printable(name)} as they were indexed,"
                " found others; start again to index it as it is now"
            )
        return content

    def digest(self, name: str) -> str:
        """SHA-256 of the image's file, 64 hex digits."""
        return self.digest_N[self.row[name]].tobytes().hex()

    def looks(self, names: Sequence[str]) -> np.ndarray:
        """The images squashed to `LOOK_SIDE` pixels a side, (R, H, W, 3) uint8."""
        rows = np.array([self.row[name] for name in names], dtype=np.int64)
        look_RHWC = np.empty((len(rows), LOOK_SIDE, LOOK_SIDE, 3), dtype=np.uint8)
        for tar in np.unique(self.tar_N[rows]).tolist():
            here_R = self.tar_N[rows] == tar
            look_RHWC[here_R] = self.tars[tar].all_looks()[self.look_N[rows[here_R]]]
        return look_RHWC

    def only(self, names: Sequence[str]) -> "TarImages":
        """The same for these images alone: a small thing to hand to another process."""
        rows = np.array([self.row[name] for name in names], dtype=np.int64)
        arrays = {key: getattr(self, key)[rows] for key in ("tar_N", "span_N2", "digest_N", "look_N")}
        return replace(self, row={name: row for row, name in enumerate(names)}, **arrays)

    def keep(self, now: Iterable[int] = (), soon: Iterable[int] = ()) -> None:
        """Say which tars, by their numbers, are needed now and soon: those behind URLs come and go."""
        remote = [{self.tars[n] for n in numbers if self.tars[n].place.is_url} for numbers in (now, soon)]
        self.fetched.keep(*remote)
