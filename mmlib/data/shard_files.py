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

_WEB = ("http://", "https://")
_URL_MARKS = "%/:=&?~#+!$,;'@()*[]"  # that stay as they are in an address; spaces and é are escaped
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
        return self.where.startswith(_WEB)

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
        ValueError: another kind of URL, one without a host, or braces that cannot be read.
    """
    found: dict[Place, None] = {}
    for pattern in patterns:
        if "\0" in pattern:
            raise ValueError(f"{parameter}: expected a path or a URL, found {pattern!r}")
        if (match := _SCHEME.match(pattern)) and not os.path.exists(paths.from_root(pattern)):
            path = _path_of_url(pattern, match["scheme"].lower(), parameter)
        else:
            path = pattern
        folder, rest = _literal_start(path) if path is not None else ("", pattern)
        for one in _expanded(rest, pattern, parameter):
            web = path is None
            places = [_web_place(one, parameter)] if web else _matches(folder, one, pattern, parameter)
            found.update(dict.fromkeys(places))
    return list(found)


def _path_of_url(pattern: str, scheme: str, parameter: str) -> str | None:
    """The path that a URL of `file` names, None for one of `http` or `https`."""
    if scheme in ("http", "https"):
        return None
    if scheme != "file":
        raise ValueError(
            f"{parameter}: expected a path or a URL of http, https or file, found {pattern!r}; copy the"
            " shards to a disk or behind a web server"
        )
    return urllib.request.url2pathname(urllib.parse.urlsplit(pattern).path)


def _literal_start(path: str) -> tuple[str, str]:
    """The folders that a pattern begins with and that are there by these very names, and the rest of it.

    All of it is literal if there is such a file or folder.
    """
    if os.path.exists(paths.from_root(path)):
        return path, ""
    folder, rest = "", path
    while "/" in rest:
        head, _, tail = rest.partition("/")
        if not os.path.isdir(paths.from_root(f"{folder}{head}/")):
            break
        folder, rest = f"{folder}{head}/", tail
    return folder, rest


def _web_place(url: str, parameter: str) -> Place:
    """The shard behind an address, which is checked as far as can be without the network."""
    scheme, colon, rest = url.partition(":")
    url = f"{scheme.lower()}{colon}{rest}"
    try:
        parts = urllib.parse.urlsplit(url)
        (parts.hostname or "").encode("idna")
        usable = url.startswith(_WEB) and bool(parts.hostname) and parts.port != 0  # .port may raise too
    except ValueError:  # also of encodings
        usable = False
    if not usable:
        raise ValueError(
            f"{parameter}: expected an address such as https://host/shard.tar, found {url!r}; correct it"
        )
    return Place(url)


def _expanded(text: str, pattern: str, parameter: str) -> list[str]:
    """All texts that a text with braces, the end of a pattern, stands for."""
    parts = _BRACES.split(text)  # text, inside of braces, text, …
    if any(brace in part for part in parts[::2] for brace in "{}"):
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


def _matches(folder: str, one: str, pattern: str, parameter: str) -> Iterator[Place]:
    """The shards in a folder that a pattern without braces names; at least one."""
    path = paths.from_root(folder + one)
    if path.is_file():
        yield Place(str(path))
        return
    whole = os.path.join(glob.escape(str(paths.from_root(folder))), one)
    matching = sorted(match for match in glob.glob(whole) if os.path.isfile(match))
    if not matching:
        inside = f"; it is a folder, add /train-*.tar or the like: {shown(path)}" if path.is_dir() else ""
        part = "" if folder + one == pattern else f" (for {folder + one!r} of it)"
        raise FileNotFoundError(
            f"{parameter}: expected tar files that match {pattern!r}, found none{part}{inside};"
            f" relative paths are read from {paths.ROOT}"
        )
    yield from (Place(os.path.normpath(match)) for match in matching)


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
    """Write what lies behind a URL to `path`, flushed to the disk, and return its SHA-256, 64 hex digits.

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
                sha256 = _receive(url, path, file, retry, stop)
                with explained(path):
                    file.flush()
                    os.fsync(file.fileno())
                return sha256
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
    quoted = urllib.parse.quote(url, safe=_URL_MARKS)
    request = urllib.request.Request(quoted, headers={"User-Agent": "mmlib"})
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
    except (ValueError, http.client.InvalidURL) as error:  # of an address that the server sent us to
        raise _Final(ValueError, f"an address that cannot be asked for ({error})") from None
