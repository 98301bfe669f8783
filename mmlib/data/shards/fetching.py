"""Shards behind URLs: fetched whole, tried again while that may help, then an error that says why."""

import http.client
import logging
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from mmlib import paths
from mmlib.data.shards.places import Place

logger = logging.getLogger(__name__)

BLOCK = 2**20  # bytes read at a time
PASSING = (408, 425, 429)  # answers of the 400s that may be another the next time; so may all 500s
Result = TypeVar("Result")


@dataclass(frozen=True)
class Retry:
    """How often a URL is tried.

    Attributes:
        tries: at most, the first included.
        wait: seconds before the second try, doubled before each further one.
        timeout: seconds without an answer or a byte after which a try has failed.
        stop: ends waiting and fetching when it is set, from another thread.
    """

    tries: int = 6
    wait: float = 1.0
    timeout: float = 60.0
    stop: threading.Event = field(default_factory=threading.Event, compare=False)


class _Final(Exception):
    """A failure that no further try will mend."""


def open_shard(place: Place, retry: Retry) -> BinaryIO:
    """A shard as a file that can be read and sought in.

    A remote one is fetched into a file without a name, which takes disk until it is closed and is
    gone whatever ends the process.

    Raises:
        FileNotFoundError: there is no such file or the server has none; names it.
        ConnectionError: not fetched in `retry.tries` tries; names the URL and the last reason.
        OSError: no space on the disk.
    """
    if not place.is_url:
        return open(place.where, "rb")
    folder = paths.CACHE / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    try:
        fetch(place.where, file, retry)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def fetch(url: str, file: BinaryIO, retry: Retry) -> None:
    """Writes what lies behind a URL to `file`, from its beginning; errors are those of `open_shard`."""

    def attempt() -> None:
        file.seek(0)
        file.truncate()
        with _answer(url, "GET", retry) as answer:
            while block := answer.read(BLOCK):
                file.write(block)
                _check_stop(url, retry)
            expected = answer.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise ConnectionError(f"the connection ended after {file.tell():,} of {int(expected):,} bytes")

    _try(url, attempt, retry)


def read_if_there(url: str, retry: Retry) -> bytes | None:
    """What lies behind a URL; None where the server has no such thing.

    Raises:
        ConnectionError: as for `open_shard`.
    """
    with tempfile.SpooledTemporaryFile(max_size=BLOCK) as file:
        try:
            fetch(url, file, retry)
        except FileNotFoundError:
            return None
        file.seek(0)
        return file.read()


def measure(place: Place, retry: Retry) -> tuple[int | None, str]:
    """Size in bytes (None if the server does not say) and a text that changes when the shard does.

    Raises:
        FileNotFoundError, ConnectionError: as for `open_shard`.
    """
    if not place.is_url:
        status = Path(place.where).stat()
        return status.st_size, str(status.st_mtime_ns)

    def attempt() -> tuple[int | None, str]:
        with _answer(place.where, "HEAD", retry) as answer:
            size = answer.headers.get("Content-Length")
            mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        return None if size is None else int(size), mark

    try:
        return _try(place.where, attempt, retry)
    except PermissionError:
        return None, ""  # a signed URL may allow GET alone


def _answer(url: str, method: str, retry: Retry) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "mmlib"})
    try:
        return urllib.request.urlopen(request, timeout=retry.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            raise _Final(FileNotFoundError, reason) from None
        if method == "HEAD" and error.code in (401, 403, 405, 501):
            raise _Final(PermissionError, reason) from None
        if error.code < 500 and error.code not in PASSING:
            raise _Final(ConnectionError, reason) from None
        raise ConnectionError(reason) from None


def _check_stop(url: str, retry: Retry) -> None:
    if retry.stop.is_set():
        raise _Final(InterruptedError, "the stream was closed")


def _try(url: str, attempt: Callable[[], Result], retry: Retry) -> Result:
    reason = ""
    for number in range(1, retry.tries + 1):
        try:
            return attempt()
        except _Final as final:
            kind, reason = final.args
            raise kind(f"expected a shard at {url}, found: {reason}; correct the address") from None
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if number < retry.tries:
            wait = retry.wait * 2 ** (number - 1)
            logger.warning("%s: %s; try %d of %d in %g s", url, reason, number + 1, retry.tries, wait)
            retry.stop.wait(wait)
            _check_stop(url, retry)
    raise ConnectionError(
        f"expected a shard at {url}, found none in {retry.tries} tries, the last time: {reason}; try again"
        " later, or copy the shards to a disk"
    )
