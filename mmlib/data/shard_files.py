"""Tar shards as files: which ones patterns name, how those behind URLs are fetched, and images inside them.

Shapes: N images, R images asked for; H = W = `LOOK_SIDE` pixels.
"""

import contextlib
import glob
import hashlib
import http.client
import itertools
import json
import logging
import math
import os
import posixpath
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from PIL import Image

from mmlib import files
from mmlib.data.decoding import decode_image
from mmlib.files import explained, printable, replace_flushed, shown, write_text_atomic

logger = logging.getLogger(__name__)

WINDOW = 8  # shards whose pairs are mixed; while they are read, the next ones are fetched
LOOK_SIDE = 32  # of the small pictures that are kept of all images for the leak guard, pixels
BLOCK = 2**20  # bytes read at a time
MAX_BYTES = 2**36  # of one shard behind a URL: 64 GiB
MAX_SHARDS = 1_000_000  # that one pattern may stand for
TRIES = 6  # of a URL
WAIT = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 60.0  # seconds without an answer or a byte after which a try has failed
PASSING = (408, 425, 429)  # answers of the 400s that may be another the next time; so may all 500s

_URL_MARKS = "%/:=&?~#+!$,;'@()*[]"  # that stay as they are in an address; spaces and é are escaped
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


@dataclass(frozen=True)
class Place:
    """One shard: an absolute path, or a URL."""

    where: str

    @property
    def is_url(self) -> bool:
        """Whether it has to be fetched."""
        return self.where.startswith(("http:", "https:"))

    @property
    def name(self) -> str:
        """Its file name, without folder, query and fragment."""
        return posixpath.basename(urllib.parse.urlsplit(self.where).path if self.is_url else self.where)

    def __str__(self) -> str:
        return printable(self.where if self.is_url else shown(self.where))


def find_shards(patterns: Sequence[str], parameter: str) -> list[Place]:
    """List the shards that patterns name, in the order of the patterns, each once.

    A pattern is a path (relative ones are read from the repository's root) or a URL of `file`, `http` or
    `https`.  Braces stand for several (`{000..099}`, `{a,b}`); `*`, `?` and `[…]` in paths stand for the
    files that match, in the order of their names.  A folder or file that is there by the very name, such
    as `photos [2024]/`, is meant by it.

    Args:
        patterns: as in `train_shards`.
        parameter: what error messages call them.

    Raises:
        FileNotFoundError: a pattern that no file matches; names it.
        ValueError: another kind of URL, or braces that cannot be read.
    """
    found: dict[Place, None] = {}
    for pattern in patterns:
        if "\0" in pattern:
            raise ValueError(f"{parameter}: expected a path or a URL, found {pattern!r}")
        scheme = _SCHEME.match(pattern)
        scheme = scheme[1].lower() if scheme and not files.from_root(pattern).exists() else ""
        if scheme not in ("", "http", "https", "file"):
            raise ValueError(
                f"{parameter}: expected a path or a URL of http, https or file, found {pattern!r}; copy the"
                " shards to a disk or behind a web server"
            )
        if scheme in ("http", "https"):
            address = scheme + pattern[len(scheme) :]
            found.update((Place(one), None) for one in _expanded(address, pattern, parameter))
            continue
        path = urllib.request.url2pathname(urllib.parse.urlsplit(pattern).path) if scheme else pattern
        folder, rest = os.path.split(path)
        if not files.from_root(folder).is_dir():
            folder, rest = "", path
        literal = files.from_root(path).is_file()
        for one in [rest] if literal else _expanded(rest, pattern, parameter):
            found.update((place, None) for place in _matches(folder, one, pattern, parameter))
    return list(found)


def _expanded(text: str, pattern: str, parameter: str) -> list[str]:
    """All texts that a text with braces, the end of a pattern, stands for."""
    parts = _BRACES.split(text)  # text, inside of braces, text, …
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise ValueError(f"{parameter}: expected balanced braces, not nested, found {pattern!r}")
    choices: list[tuple[Sequence, str]] = []  # what there is to choose from, and how it is written
    for number, part in enumerate(parts):
        if number % 2 and (bounds := _RANGE.fullmatch(part)):
            width = len(bounds[1]) if bounds[1].startswith("0") else 0
            choices.append((range(int(bounds[1]), int(bounds[2]) + 1), f"0{width}d"))
        elif number % 2 and "," not in part:
            raise ValueError(
                f"{parameter}: expected {{first..last}} or {{a,b}} in {pattern!r}, found {{{part}}}"
            )
        else:
            choices.append((part.split(",") if number % 2 else [part], ""))
    count = math.prod(len(values) for values, _ in choices)
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(
            f"{parameter}: expected a pattern for 1 to {MAX_SHARDS:,} shards, found {count:,} in {pattern!r}"
        )
    texts = [[format(value, form) for value in values] for values, form in choices]
    return ["".join(parts) for parts in itertools.product(*texts)]


def _matches(folder: str, one: str, pattern: str, parameter: str) -> list[Place]:
    """The shards in a folder that a pattern without braces names; at least one."""
    path = files.from_root(os.path.join(folder, one))
    if path.is_file():
        return [Place(str(path))]
    whole = os.path.join(glob.escape(str(files.from_root(folder))), one)
    matching = sorted(match for match in glob.glob(whole) if os.path.isfile(match))
    if not matching:
        inside = f"; it is a folder, add /train-*.tar or the like: {shown(path)}" if path.is_dir() else ""
        named = os.path.join(folder, one)
        part = "" if named == pattern else f" (for {named!r} of it)"
        raise FileNotFoundError(
            f"{parameter}: expected tar files that match {pattern!r}, found none{part}{inside};"
            f" relative paths are read from {files.ROOT}"
        )
    return [Place(os.path.normpath(match)) for match in matching]


class _Passing(Exception):
    """A failure that another try may mend."""


def fetch(url: str, path: Path) -> str:
    """Write what lies behind a URL to `path`, flushed to the disk, and return its SHA-256, 64 hex digits.

    Args:
        url: of `http` or `https`.
        path: replaced if it is there; what is there after an error is no shard.

    Raises:
        FileNotFoundError: the server has no such file.
        ConnectionError: not fetched in `TRIES` tries; names the URL and the last reason.
        ValueError: an address that cannot be asked for, or more than `MAX_BYTES`.
        OSError: no space on the disk.
    """
    reason = ""
    for number in range(1, TRIES + 1):
        try:
            with _answer(url) as answer, open(path, "wb") as file:
                return _receive(url, answer, path, file)
        except _Passing as error:
            reason = printable(str(error))
        if number < TRIES:
            wait = WAIT * 2 ** (number - 1)
            logger.warning("%s: %s; try %d of %d in %g s", printable(url), reason, number + 1, TRIES, wait)
            time.sleep(wait)
    raise ConnectionError(
        f"expected a shard at {printable(url)}, found none in {TRIES} tries, the last time: {reason};"
        " try again later, or copy the shards to a disk"
    )


def _answer(url: str) -> http.client.HTTPResponse:
    quoted = urllib.parse.quote(url, safe=_URL_MARKS)
    try:
        if not urllib.parse.urlsplit(url).hostname:
            raise ValueError("no host")
        request = urllib.request.Request(quoted, headers={"User-Agent": "mmlib"})
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code >= 500 or error.code in PASSING:
            raise _Passing(reason) from None
        kind = FileNotFoundError if error.code in (404, 410) else ConnectionError
        raise kind(_final(url, reason)) from None
    except (ValueError, http.client.InvalidURL) as error:  # also of one that the server sent us to
        raise ValueError(_final(url, f"an address that cannot be asked for ({error})")) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _receive(url: str, answer: http.client.HTTPResponse, path: Path, file: BinaryIO) -> str:
    """One try; returns the SHA-256."""
    declared, received, sha256 = answer.length, 0, hashlib.sha256()
    if (declared or 0) > MAX_BYTES:
        raise ValueError(_final(url, f"{declared:,} bytes, of which at most {MAX_BYTES:,} are read"))
    while True:
        try:
            block = answer.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(str(error) or type(error).__name__) from None
        if not block:
            break
        received += len(block)
        if received > MAX_BYTES:
            raise ValueError(_final(url, f"more than {MAX_BYTES:,} bytes"))
        sha256.update(block)
        with explained(path):
            file.write(block)
    if received < (declared or 0):
        raise _Passing(f"the connection ended after {received:,} of {declared:,} bytes")
    with explained(path):
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()


def _final(url: str, reason: str) -> str:
    return f"expected a shard at {printable(url)}, found: {printable(reason)}; correct the address"


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


def fetched_path(sha256: str) -> Path:
    """Where a tar with these bytes lies while it is kept on this machine."""
    return files.CACHE / "shards" / "fetched" / f"{sha256[:32]}.tar"


@contextlib.contextmanager
def url_record(url: str) -> Iterator[Path]:
    """The file that notes the SHA-256 of what lies behind a URL, for this process alone."""
    record = files.CACHE / "shards" / "seen" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):
        yield record


def fetch_tar(url: str, record: Path) -> str:
    """Fetch a tar, note its SHA-256 in `record` and return it; three windows of the last ones are kept.

    Raises:
        FileNotFoundError, ConnectionError, ValueError, OSError: as `fetch`.
    """
    part = record.with_suffix(".part")
    try:
        sha256 = fetch(url, part)
        path = fetched_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_flushed(part, path)
    finally:
        part.unlink(missing_ok=True)
    write_text_atomic(record, json.dumps({"sha256": sha256}))
    for old in sorted(path.parent.glob("*.tar"), key=_age)[3 * WINDOW :]:
        old.unlink(missing_ok=True)  # a process that reads it has it open
    return sha256


def _age(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return -path.stat().st_mtime
    return 0.0


def open_tar(tar: Tar) -> BinaryIO:
    """A tar as an open file; one behind a URL is fetched if it is not on this machine.

    If several want one tar, one fetches it and the others wait.

    Raises:
        ValueError: it is another one than that which was indexed.
        FileNotFoundError, ConnectionError, OSError: it is not there, or as `fetch`.
    """
    if not tar.place.is_url:
        return open(tar.place.where, "rb")
    path = fetched_path(tar.sha256)
    while True:  # until it is opened before others that are used replace it
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it was used last
            return open(path, "rb")
        with url_record(tar.place.where) as record:
            if not path.exists() and (found := fetch_tar(tar.place.where, record)) != tar.sha256:
                raise ValueError(
                    f"{tar.place} has changed: expected bytes with SHA-256 {tar.sha256[:16]}…, as indexed,"
                    f" found {found[:16]}…; start again to index it as it is now"
                )


@dataclass(frozen=True, eq=False)
class TarImages:
    """Reads images out of tar files, by name; an `ImageSource`.

    Every image is checked against its SHA-256 when it is read, so what is decoded is what was indexed.

    Attributes:
        tars: the files.
        row: image name to its row in the arrays.
        place_N4: (N, 4) int64, number of the tar, offset and size in it (bytes), row of the look.
        digest_N: (N,) 32 bytes, SHA-256 of the image's file.
    """

    tars: tuple[Tar, ...]
    row: dict[str, int]
    place_N4: np.ndarray
    digest_N: np.ndarray

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
        number, offset, size, _ = self.place_N4[self.row[name]].tolist()
        tar = self.tars[number]
        with open_tar(tar) as file:
            file.seek(offset)
            content = file.read(size)
        if hashlib.sha256(content).digest() != self.digest_N[self.row[name]].tobytes():
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
        place_R4 = self.place_N4[[self.row[name] for name in names]]
        look_RHWC = np.empty((len(names), LOOK_SIDE, LOOK_SIDE, 3), dtype=np.uint8)
        for number in np.unique(place_R4[:, 0]).tolist():
            here_R = place_R4[:, 0] == number
            look_NHWC = np.memmap(self.tars[number].looks, np.uint8, "r").reshape(-1, *look_RHWC.shape[1:])
            look_RHWC[here_R] = look_NHWC[place_R4[here_R, 3]]
        return look_RHWC

    def fetch_soon(self, numbers: Iterable[int]) -> None:
        """Fetch tars behind URLs, by their numbers, in another thread: they are read next."""
        tars = [tar for tar in (self.tars[number] for number in numbers) if tar.place.is_url]

        def work() -> None:
            for tar in tars:
                with contextlib.suppress(OSError, ValueError):  # raised when the tar is read
                    open_tar(tar).close()

        if tars:
            threading.Thread(target=work, name="mmlib-shards", daemon=True).start()
