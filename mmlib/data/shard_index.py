"""The index of tar shards: what each holds, found once and kept in the cache; and images inside tar files."""

import contextlib
import hashlib
import json
import logging
import os
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from mmlib import paths
from mmlib.data.dataset import SETTLED_NS
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.folders import SYSTEM_FOLDERS
from mmlib.data.shard_files import BLOCK, Place, Retry, fetch
from mmlib.files import explained, parse_json, printable, read_json, replace_flushed, write_text_atomic

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


FIRST = 5  # names that are kept of each reason
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_HEADERS = 2**20  # bytes of the headers of one member: names and PAX records
MAX_TEXT = 2**20  # of a txt or json
MAX_TEXTS = 2**28  # of all of them in a shard
MAX_IMAGE = 2**26  # of an image's file
MAX_KEY = 1_000  # characters

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard

BROKEN = {
    "image": "no image, or one that cannot be decoded",
    "caption": "no caption",
    "json": "a json that cannot be read",
    "size": "a file that is too large",
}
UNUSED = {
    "folder": "folders",
    "link": "links",
    "special": "devices and other special files",
    "hidden": "hidden files and those in folders of systems",
    "name": "names that lead elsewhere or are too long",
    "kind": "files of another kind",
    "double": "files that their sample already has",
}
Found = dict[str, tuple[int, list[str]]]  # by reason: how many, and the first names


class Sample(NamedTuple):
    """An image with its captions, and where its file is in the tar."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str
    look: int
    captions: list[str]
    name: str | None  # of the image's file where it came from, as its json says
    url: str | None
    dataset: str | None


class _File:
    """A file that tarfile reads once from front to back, in bounded pieces, while all of it is hashed."""

    def __init__(self, file: BinaryIO):
        self._file, self._sha256, self._offset = file, hashlib.sha256(), 0
        self.budget = 0  # bytes of headers that may still be read
        self.last = b""  # what was read last

    def tell(self) -> int:
        return self._offset

    def read(self, size: int) -> bytes:
        """Headers."""
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"expected headers of at most {MAX_HEADERS:,} bytes, found more")
        self.budget -= size
        self.last = self.content(size)
        return self.last

    def seek(self, offset: int) -> None:
        """Passes over content."""
        if offset < self._offset:
            raise tarfile.ReadError("a header that points backwards")
        while self._offset < offset and self.content(min(BLOCK, offset - self._offset)):
            pass

    def content(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        content = self._file.read(size)
        self._sha256.update(content)
        self._offset += len(content)
        return content

    def sha256(self) -> str:
        """Of the whole file, whose rest is read."""
        while self.content(BLOCK):
            pass
        return self._sha256.hexdigest()


class _Broken(Exception):
    """A sample that cannot be used; its argument is a reason of `BROKEN`."""


@dataclass
class _Parts:
    """The files of a key."""

    image: tuple[str, int, int, str, int] | None = None  # suffix, offset, size, SHA-256, row of its look
    texts: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    reason: str | None = None


class TarReader:
    """Reads a tar member by member.

    Args:
        file: the tar.
        keep_look: takes the pixels of the small picture of each image.

    Attributes:
        looks: images whose small picture was taken.
        broken: samples that cannot be used, by a reason of `BROKEN`.
        unused: members that belong to no sample, by a reason of `UNUSED`.
    """

    def __init__(self, file: BinaryIO, keep_look: Callable[[memoryview], object]):
        self._file, self._keep_look = _File(file), keep_look
        self.looks = 0
        self.broken: Found = {}
        self.unused: Found = {}
        self._parts: dict[str, _Parts] = {}
        self._texts, self._last = 0, ""

    def read(self) -> str | None:
        """Reads all members; returns what is wrong with the tar itself."""
        if fault := self._read_members():
            self._parts.pop(self._last, None)  # it may lack files that came behind
            return fault
        while block := self._file.content(BLOCK):
            if block.strip(tarfile.NUL):
                return "more data behind its end mark, as of tar files that were joined"
        return None

    def _read_members(self) -> str | None:
        try:
            for member in _members(self._file):
                if not self._take(member):
                    return f"it is cut short in {member.name[:MAX_KEY]}"
        except OSError:
            raise
        except Exception as error:  # tarfile raises anything on damaged headers
            if self._file.tell() <= tarfile.BLOCKSIZE and self._file.last.startswith(COMPRESSED):
                return "it is compressed: unpack it, since images are read at any place of it"
            return f"it is no whole tar file: {error or type(error).__name__}"
        if self._file.last != tarfile.NUL * tarfile.BLOCKSIZE:
            return "it is cut short or damaged: no end mark"
        return None

    def sha256(self) -> str:
        """Of the whole file, whose rest is read."""
        return self._file.sha256()

    def samples(self) -> list[Sample]:
        """The samples of all files that were read; notes those that are broken."""
        samples = []
        for key, parts in self._parts.items():
            try:
                samples.append(_sample(key, parts))
            except _Broken as broken:
                _note(self.broken, str(broken), key)
        return samples

    def _take(self, member: tarfile.TarInfo) -> bool:
        """Reads a member; False if the file ends in it."""
        if reason := _strangeness(member):
            _note(self.unused, reason, member.name)
            return True
        self._last, suffix = _key_and_suffix(member.name)
        parts = self._parts.setdefault(self._last, _Parts())
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in parts.seen:
            _note(self.unused, "double", member.name)
            return True
        parts.seen.add(kind)
        limit = MAX_IMAGE if kind == "image" else min(MAX_TEXT, MAX_TEXTS - self._texts)
        if member.size > limit:
            parts.reason = "size"
            return True
        content = self._file.content(member.size)
        if len(content) < member.size:
            return False
        if kind == "image":
            self._take_image(parts, suffix, member.offset_data, content)
        else:
            parts.texts[kind] = content
            self._texts += len(content)
        return True

    def _take_image(self, parts: _Parts, suffix: str, offset: int, content: bytes) -> None:
        try:
            look_HWC = resize_image(decode_image(content, suffix).convert("RGB"), LOOK_SIDE, "squash")
        except (OSError, ValueError):
            parts.reason = parts.reason or "image"
            return
        self._keep_look(np.ascontiguousarray(look_HWC).data)
        sha256 = hashlib.sha256(content).hexdigest()
        parts.image = (suffix, offset, len(content), sha256, self.looks)
        self.looks += 1


def _members(file: _File) -> Iterator[tarfile.TarInfo]:
    file.budget = MAX_HEADERS
    archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    while member := archive.next():
        archive.members = []  # or every header stays in memory
        yield member
        file.budget = MAX_HEADERS


def _note(found: Found, reason: str, name: str) -> None:
    count, first = found.get(reason, (0, []))
    found[reason] = (count + 1, [*first, name[:MAX_KEY]] if len(first) < FIRST else first)


def _strangeness(member: tarfile.TarInfo) -> str | None:
    """Why a member belongs to no sample, a reason of `UNUSED`; None if it may."""
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg() or member.issparse():
        return "special"
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or len(member.name) > MAX_KEY or "\0" in member.name:
        return "name"
    if any(part.startswith(SYSTEM_FOLDERS) and part != "." for part in parts[:-1]) or parts[-1][0:1] == ".":
        return "hidden"
    _, suffix = _key_and_suffix(member.name)
    return None if suffix in (*IMAGE_SUFFIXES, "txt", "json") else "kind"


def _key_and_suffix(name: str) -> tuple[str, str]:
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
    stem, _, suffix = last.partition(".")
    return "/".join([*folders, stem]), suffix.lower()


def _sample(key: str, parts: _Parts) -> Sample:
    """What the files of a key say.

    Raises:
        _Broken: no image, no caption, a json that is none, or a file that was too large.
    """
    if parts.reason:
        raise _Broken(parts.reason)
    if parts.image is None:
        raise _Broken("image")
    facts: object = {}
    if "json" in parts.texts:
        try:
            facts = parse_json(parts.texts["json"], key, finite=False)
        except ValueError:
            raise _Broken("json") from None
        if not isinstance(facts, dict):
            raise _Broken("json")
    captions = _captions(facts, parts.texts.get("txt"))
    name, url, dataset = (
        value if isinstance(value := facts.get(fact), str) and value else None
        for fact in ("name", "url", "dataset")
    )
    return Sample(key, *parts.image, captions, name, url, dataset)


def _captions(facts: dict, text: bytes | None) -> list[str]:
    """The captions of a sample.

    A list in the json (`captions` or `caption`) is taken as it is.  Else every line of the txt that is not
    blank is a caption, unless the json has the same text as its one `caption`: then it is one, however
    many lines it has.  Without a txt, the json's `caption` is.

    Raises:
        _Broken: none of these, or texts that are none.
    """
    if not isinstance(facts.get("captions"), list | None):
        raise _Broken("caption")
    for value in (facts.get("captions"), facts.get("caption")):
        if isinstance(value, list) and value:
            if not all(isinstance(caption, str) for caption in value):
                raise _Broken("caption")
            return value
    one = facts.get("caption")
    one = one if isinstance(one, str) and one.strip() else None
    if text is not None:
        try:
            lines = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _Broken("caption") from None
        if "\0" in lines:  # UTF-16 without its mark
            raise _Broken("caption")
        if one is None or one.strip() != lines.strip():
            captions = [line for line in re.split(r"\r\n|\r|\n", lines) if line.strip()]
            if captions:
                return captions
    if one is None:
        raise _Broken("caption")
    return [one]


logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is found changes
WORKERS = 8  # shards read at once


@dataclass(frozen=True)
class ShardIndex:
    """What a shard holds.

    Attributes:
        tar: the file.
        samples: in the order in which their first files come.
        broken: samples that cannot be used, by a reason of `BROKEN`.
        unused: members that belong to no sample, by a reason of `UNUSED`.
        fault: what is wrong with the tar itself; None if it is whole.
    """

    tar: Tar
    samples: list[Sample]
    broken: Found
    unused: Found
    fault: str | None


def index_shards(places: Sequence[Place], keep: bool, retry: Retry) -> list[ShardIndex]:
    """Read what shards hold, or what an earlier call found in the same bytes.

    If several processes want the same shard, one reads it and the others wait.

    Args:
        places: from `find_shards`.
        keep: keep those behind URLs on this machine.
        retry: how often a URL is tried.

    Raises:
        FileNotFoundError, ConnectionError, OSError: a shard that is not there or cannot be read or fetched.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda place: _index(place, keep, retry), places)
        try:
            return list(tqdm(found, total=len(places), desc="shards", unit="shard", disable=None, delay=2))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that are being read end first
            raise


def _index(place: Place, keep: bool, retry: Retry) -> ShardIndex:
    record = record_path(place)
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):
        stamp = [] if place.is_url else _stamp(place.where)
        sha256 = _remembered(record, place, stamp)
        if index := sha256 and _read_index(sha256, place):
            return index
        if not place.is_url:
            index = _make_index(Path(place.where), place)
        else:
            part = fetched_path(record.stem).with_suffix(".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch(place.where, part, retry)
                index = _make_index(part, place)
                if keep:
                    replace_flushed(part, fetched_path(index.tar.sha256))
            finally:
                part.unlink(missing_ok=True)
        _remember(record, place, stamp, index.tar.sha256)
        return index


def _stamp(path: str) -> list[int] | None:
    """What changes when a file does: writing to it, or giving another file its name, sets the last one.

    None where it was changed so lately that a second change might bear the same time.
    """
    now, status = time.time_ns(), os.stat(path)
    if status.st_ctime_ns > now - SETTLED_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remembered(record: Path, place: Place, stamp: list[int] | None) -> str | None:
    """SHA-256 of a shard; of a file with another stamp than then it is found anew.  None: never read."""
    try:
        known = read_json(record)
        if stamp is not None and known["stamp"] == stamp:
            return str(known["sha256"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    # Perhaps it was only touched: then the index of its bytes is still good.
    with open(place.where, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if _index_path(sha256).exists():
        _remember(record, place, stamp, sha256)
    return sha256


def _remember(record: Path, place: Place, stamp: list[int] | None, sha256: str) -> None:
    content = {"where": place.where, "stamp": stamp, "sha256": sha256}
    write_text_atomic(record, json.dumps(content))


def _index_path(sha256: str) -> Path:
    return paths.CACHE / "shards" / f"{sha256[:32]}.json"


def _looks_path(sha256: str) -> Path:
    return _index_path(sha256).with_suffix(".looks")


def _read_index(sha256: str, place: Place) -> ShardIndex | None:
    path = _index_path(sha256)
    try:
        found = json.loads(path.read_bytes())
        looks = _looks_path(sha256)
        if found["format"] != FORMAT or looks.stat().st_size != found["looks"] * LOOK_SIDE**2 * 3:
            return None
        samples = [Sample(*sample) for sample in found["samples"]]
        return ShardIndex(
            Tar(place, sha256, looks), samples, found["broken"], found["unused"], found["fault"]
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s) and is made anew", path, error)
        return None


def _make_index(path: Path, place: Place) -> ShardIndex:
    """Read a shard and keep what is found; `path` is where it lies now."""
    temporary = paths.CACHE / "shards" / f"{record_path(place).stem}.part"  # the caller has the place's lock
    try:
        with open(path, "rb") as file, open(temporary, "wb") as looks:

            def keep(look: memoryview) -> None:
                with explained(temporary):
                    looks.write(look)

            reading = TarReader(file, keep)
            fault = reading.read()
            sha256 = reading.sha256()
            with explained(temporary):
                looks.flush()
                os.fsync(looks.fileno())
        replace_flushed(temporary, _looks_path(sha256))
    finally:
        temporary.unlink(missing_ok=True)
    samples = reading.samples()
    content = {
        "format": FORMAT, "sha256": sha256, "looks": reading.looks, "fault": fault,
        "broken": reading.broken, "unused": reading.unused, "samples": samples,
    }  # fmt: skip
    with explained(_index_path(sha256)):
        write_text_atomic(_index_path(sha256), json.dumps(content))
    return ShardIndex(Tar(place, sha256, _looks_path(sha256)), samples, reading.broken, reading.unused, fault)
