"""Tar shards as files: which ones the patterns name, and how those behind URLs come to this machine."""

import errno
import glob
import hashlib
import http.client
import itertools
import logging
import os
import posixpath
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmlib import paths
from mmlib.files import explained, printable
from mmlib.paths import shown

logger = logging.getLogger(__name__)

BLOCK = 2**20  # bytes read at a time
MAX_BYTES = 2**36  # of one shard behind a URL: 64 GiB
MAX_SHARDS = 1_000_000  # that one pattern may stand for
PASSING = (408, 425, 429)  # answers of the 400s that may be another the next time; so may all 500s

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


@dataclass(frozen=True)
class Place:
    """One shard: an absolute path, or a URL."""

    where: str

    @property
    def is_url(self) -> bool:
        """Whether it has to be fetched."""
        return self.where.startswith(("http://", "https://"))

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
    files that match, in the order of their names.

    Args:
        patterns: as in `train_shards`.
        parameter: what error messages call them.

    Raises:
        FileNotFoundError: a pattern that no file matches; names it.
        ValueError: another kind of URL, or braces that cannot be read.
    """
    found: dict[Place, None] = {}
    for pattern in patterns:
        for one in _expanded(pattern, parameter):
            found.update(dict.fromkeys(_matches(one, pattern, parameter)))
    return list(found)


def _expanded(pattern: str, parameter: str) -> list[str]:
    """All texts that a pattern with braces stands for."""
    parts = _BRACES.split(pattern)  # text, inside of braces, text, …
    if any(brace in text for text in parts[::2] for brace in "{}"):
        raise ValueError(f"{parameter}: expected balanced braces, not nested, found {pattern!r}")
    choices: list[Sequence[str]] = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
        elif bounds := _RANGE.fullmatch(part):
            first, last = bounds.groups()
            width = max(len(first), len(last)) if "0" in (first[:1], last[:1]) else 0
            numbers = range(int(first), int(last) + 1)
            _check_count(len(numbers), pattern, parameter)
            choices.append([f"{n:0{width}d}" for n in numbers])
        elif "," in part:
            choices.append(part.split(","))
        else:
            raise ValueError(
                f"{parameter}: expected {{first..last}} or {{a,b}} in {pattern!r}, found {{{part}}}"
            )
    count = 1
    for choice in choices:
        _check_count(count := count * len(choice), pattern, parameter)
    return ["".join(texts) for texts in itertools.product(*choices)]


def _check_count(count: int, pattern: str, parameter: str) -> None:
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(
            f"{parameter}: expected a pattern for 1 to {MAX_SHARDS:,} shards, found {count:,} in {pattern!r}"
        )


def _matches(one: str, pattern: str, parameter: str) -> Iterator[Place]:
    """The shards that a pattern without braces names; at least one."""
    if (match := _SCHEME.match(one)) and not os.path.exists(paths.from_root(one)):
        scheme = match["scheme"].lower()
        if scheme in ("http", "https"):
            yield Place(scheme + one[len(scheme) :])
            return
        if scheme != "file":
            raise ValueError(
                f"{parameter}: expected a path or a URL of http, https or file, found {one!r}; copy the"
                " shards to a disk or behind a web server"
            )
        one = urllib.request.url2pathname(urllib.parse.urlsplit(one).path)
    path = paths.from_root(one)
    if path.is_file():
        yield Place(str(path))
        return
    matching = sorted(match for match in glob.glob(str(path)) if os.path.isfile(match))
    if not matching:
        inside = f"; it is a folder, add /train-*.tar or the like: {shown(path)}" if path.is_dir() else ""
        part = "" if one == pattern else f" (for {one!r} of it)"
        raise FileNotFoundError(
            f"{parameter}: expected tar files that match {pattern!r}, found none{part}{inside};"
            f" relative paths are read from {paths.ROOT}"
        )
    yield from (Place(match) for match in matching)


@dataclass(frozen=True)
class Retry:
    """How often a URL is tried.

    Attributes:
        tries: at most, the first included.
        wait: seconds before the second try, doubled before each further one.
        timeout: seconds without an answer or a byte after which a try has failed.
    """

    tries: int = 6
    wait: float = 1.0
    timeout: float = 60.0


class _Final(Exception):
    """A failure that no further try will mend: the kind of error to raise, and the reason."""


def fetch(url: str, path: Path, retry: Retry, stop: Callable[[], bool] = lambda: False) -> str:
    """Write what lies behind a URL to `path` and return its SHA-256, 64 hex digits.

    Args:
        url: of `http` or `https`.
        path: replaced if it is there; what is there after an error is no shard.
        retry: how often it is tried.
        stop: asked now and then; once it is true, there is an `InterruptedError`.

    Raises:
        FileNotFoundError: the server has no such file.
        ConnectionError: not fetched in `retry.tries` tries; names the URL and the last reason.
        ValueError: more than `MAX_BYTES`, more than the server says, or a size that is no number.
        OSError: no space on the disk.
    """
    reason = ""
    for number in range(1, retry.tries + 1):
        try:
            with explained(path):
                file = open(path, "wb")  # noqa: SIM115 - closed below
            with file:
                return _receive(url, path, file, retry, stop)
        except _Final as final:
            kind, reason = final.args
            raise kind(
                f"expected a shard at {printable(url)}, found: {printable(reason)}; correct the address"
            ) from None
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        reason = printable(reason)
        if number < retry.tries:
            wait = retry.wait * 2 ** (number - 1)
            logger.warning(
                "%s: %s; try %d of %d in %g s", printable(url), reason, number + 1, retry.tries, wait
            )
            end = time.monotonic() + wait
            while (left := end - time.monotonic()) > 0:
                _check(stop)
                time.sleep(min(left, 0.1))
    raise ConnectionError(
        f"expected a shard at {printable(url)}, found none in {retry.tries} tries, the last time: {reason};"
        " try again later, or copy the shards to a disk"
    )


def _receive(url: str, path: Path, file: BinaryIO, retry: Retry, stop: Callable[[], bool]) -> str:
    """One try; errors of the network are those of urllib, others that end all tries are `_Final`."""
    with _answer(url, retry) as answer:
        declared = answer.headers.get("Content-Length")
        if declared is not None and not (declared.isascii() and declared.isdecimal() and len(declared) < 19):
            raise _Final(ValueError, f"a Content-Length that is no number of bytes ({declared[:40]!r})")
        limit = MAX_BYTES if declared is None else int(declared)
        if limit > MAX_BYTES:
            raise _Final(ValueError, f"{limit:,} bytes, of which at most {MAX_BYTES:,} are read")
        if declared is not None and limit > shutil.disk_usage(path.parent).free:
            with explained(path, f" of {limit:,} bytes"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sha256, received = hashlib.sha256(), 0
        while block := answer.read(BLOCK):
            _check(stop)
            received += len(block)
            if received > limit:
                raise _Final(ValueError, f"more than {limit:,} bytes")
            sha256.update(block)
            with explained(path):
                file.write(block)
    if declared is not None and received != limit:
        raise ConnectionError(f"the connection ended after {received:,} of {limit:,} bytes")
    return sha256.hexdigest()


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise InterruptedError("the shard is no longer needed")


def _answer(url: str, retry: Retry) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "mmlib"})
    try:
        return urllib.request.urlopen(request, timeout=retry.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            raise _Final(FileNotFoundError, reason) from None
        if error.code < 500 and error.code not in PASSING:
            raise _Final(ConnectionError, reason) from None
        raise ConnectionError(reason) from None
