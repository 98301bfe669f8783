"""Files and names: atomic writes, bounded reads, JSON, checked names, and foreign text made printable.

One place each: what is written whole or not at all, how much of a file from a stranger is read, which
names may become a path, and how text that others wrote reaches a terminal.
"""

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import socket
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmlib import paths

MAX_JSON_BYTES = 256 << 20  # a results file has thousands of rows; COCO's captions are 60 MB
MAX_NAME_BYTES = 100  # leaves room for endings and temporary names in the 255 bytes of a file name

_MOVING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: controls, marks of direction, line breaks
_NAME = re.compile(r"[^\W_](?:[\w.-]*[\w-])?")  # starts with a letter or digit and does not end in a dot

_WHAT_TO_DO = {
    errno.ENOSPC: "Free some space and start again",
    errno.EDQUOT: "Free some space within your quota and start again",
    errno.EROFS: "The file system is read-only: make it writable, or choose another folder (MMLIB_RUNS,"
    " MMLIB_CACHE, MMLIB_REPORTS)",
    errno.EACCES: "You may not write there: change the folder's rights, or choose another folder",
    errno.EPERM: "You may not write there: change the folder's rights, or choose another folder",
    errno.ENOENT: "Its folder is gone: it was deleted or moved while this was at work",
}


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to a temporary file beside `path`, flushes it to the disk and renames it.

    The folder is flushed too, so that a power cut cannot bring the old file back.

    Raises:
        OSError: the folder cannot be written to or the disk is full; nothing is left behind and
            `path` is as it was.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only file system must not hide what went wrong
            temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, where the file system can: renames and new files then stay."""
    with contextlib.suppress(OSError):  # some network file systems refuse
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class InUse(RuntimeError):
    """Another process is at work in a folder."""


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Makes `folder` if it is missing, and holds it for this process alone while the block lasts.

    The lock is held on the folder itself, since a file in it could be deleted and locked anew; `.lock` in it
    says who holds it.  The system frees it when the process ends, however it ends.

    Args:
        folder: to write to.
        what: is at work there, for messages: `experiment 'demo'`.

    Raises:
        InUse: another process holds it, which is named.
        OSError: the folder cannot be made or written to.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        record = folder / ".lock"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = printable(record.read_text(errors="replace")[:200]) if record.is_file() else "not named"
            raise InUse(
                f"{what} is being written by another process ({who}); wait for it, stop it, or choose another"
                " name"
            ) from None
        with explained(record):
            record.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: Path, about: str = "", kept: str = "", afterwards: str = "") -> Iterator[None]:
    """Gives a system's error in writing `path` its meaning: which file, what the system said, what to do.

    Args:
        path: of the file.
        about: what follows its name, as its size.
        kept: what is said of the file that was there before.
        afterwards: what the user gains by doing it, as ", the run goes on where it stopped".

    Raises:
        OSError: of the same number.
    """
    try:
        yield
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno, "Mend that and start again")
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"could not write {paths.shown(path)}{about}: {reason}{kept}. {what_to_do}{afterwards}",
        ) from error


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file that may come from a stranger.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger than `limit` bytes; nothing of it was kept.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected the file {paths.shown(path)}, found nothing there")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(
            f"{paths.shown(path)}: expected at most {limit:,} bytes, found {path.stat().st_size:,}; this is"
            " not the kind of file that is read here"
        )
    return data


def parse_json(data: bytes | str, where: str) -> Any:
    """The value in JSON text.

    Args:
        data: the text.
        where: the file (and the place in it) that errors name.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deeply, or a number of too many digits.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{where} is damaged: expected JSON, found brackets nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is damaged: expected JSON, found {error}") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold a JSON object, or is larger than `MAX_JSON_BYTES`.
    """
    value = parse_json(read_bounded(path), paths.shown(path))
    if not isinstance(value, dict):
        raise ValueError(
            f"{paths.shown(path)} is damaged: expected a JSON object, found {type(value).__name__}"
        )
    return value


def write_json(path: Path, value: dict) -> None:
    """Writes an object as indented JSON, whole or not at all; NaN is refused, as JSON has none.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with explained(path):
        write_text_atomic(path, text)


def checked_name(name: str, what: str) -> str:
    """`name`, if it may become a file or folder name: letters, digits, `-`, `_`, and dots inside.

    Args:
        name: of an experiment, run, figure, arm, report or the like.
        what: what the error calls it.

    Raises:
        ValueError: it is empty, too long, starts or ends with a dot, or holds anything else, such as `/`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(
            f"{what}: expected a name of letters, digits, '-', '_' and dots inside, at most {MAX_NAME_BYTES}"
            f" bytes long, found {printable(repr(name))[:200]}"
        )
    return name


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'lr'?` for the known name that is most like `name`; nothing if none is."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def printable(text: str) -> str:
    """Foreign text for a terminal or a log: control characters and text-direction marks as escapes.

    Line breaks and tabs stay; everything that could move the cursor, change colours, or reorder the line
    is shown as `\\x1b` and the like.
    """
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    joins = character in "\u200c\u200d"  # within words of some scripts, and in emoji
    return joins or character in "\n\t" or unicodedata.category(character) not in _MOVING
