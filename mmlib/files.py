"""Files and names: atomic writes, locks, bounded reads, JSON, checked names, foreign text made printable.

One place each: what is written whole or not at all, who writes to a folder, how much of a file from a
stranger is read, which names may become a path, and how text that others wrote reaches a terminal.
"""

import contextlib
import datetime
import difflib
import errno
import fcntl
import json
import math
import os
import re
import socket
import stat
import time
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmlib import paths

MAX_JSON_BYTES = 256 << 20  # a results file has thousands of rows; COCO's captions are 60 MB
MAX_NAME_BYTES = 100  # leaves room for endings and temporary names in the 255 bytes of a file name

_MOVING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: controls, marks of direction, line breaks
NAME_RULE = f"a name of letters, digits, '-', '_' and dots inside, at most {MAX_NAME_BYTES} bytes long"
_NAME = re.compile(r"[^\W_](?:[\w.-]*[\w-])?")  # starts with a letter or digit and does not end in a dot

_WHAT_TO_DO = {
    errno.ENOSPC: "Free some space and start again",
    errno.EDQUOT: "Free some space within your quota and start again",
    errno.EROFS: "The file system is read-only: make it writable, or choose another folder (MMLIB_RUNS,"
    " MMLIB_CACHE, MMLIB_REPORTS)",
    errno.EACCES: "You may not write there: change the folder's rights, or choose another folder",
    errno.EPERM: "You may not write there: change the folder's rights, or choose another folder",
    errno.EFBIG: "Raise the limit on the size of a file (ulimit -f) and start again",
    errno.EMFILE: "Raise the limit on open files (ulimit -n) and start again",
    errno.EIO: "The disk reports an error: look into the system's log before you start again",
    errno.ENOENT: "Its folder is gone: it was deleted or moved while this was at work",
    errno.ESTALE: "Its folder is gone: it was deleted or moved while this was at work",
    errno.ENOTDIR: "A file lies where its folder should be: move it away, or choose another folder",
    errno.EISDIR: "A folder lies in its place: move it away and start again",
    errno.EEXIST: "Something else lies in its place: move it away and start again",
    errno.ELOOP: "A symbolic link lies in its place: remove it and start again",
}

_LOCK = ".lock"  # in a locked folder: who holds it
_RECORD = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # never what a link in its place leads to
_TRIES = 1000  # a millisecond apart, to take a lock that others only ask about


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to a temporary file beside `path`, flushes it to the disk and renames it.

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
        replace_flushed(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a read-only file system must not hide what went wrong
            temporary.unlink(missing_ok=True)


def replace_flushed(temporary: Path, path: Path) -> None:
    """Renames a flushed file and flushes the folder, so that a power cut cannot bring the old file back."""
    os.replace(temporary, path)
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


class FolderLock:
    """A folder that this process alone writes to, as long as the block of `locked` lasts."""

    def __init__(self, folder: Path, what: str, descriptor: int):
        self.folder, self._what, self._descriptor = folder, what, descriptor

    def check(self) -> None:
        """Passes while the path names the very folder that was locked.

        Raises:
            RuntimeError: it was deleted, moved, or replaced by another one.
        """
        if not _is_at(self._descriptor, self.folder):
            raise RuntimeError(
                f"{paths.shown(self.folder)} is gone: it was deleted, moved or replaced while {self._what}"
                " was at work there; nothing more is written to it"
            )


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[FolderLock]:
    """Makes `folder` if it is missing, and holds it for this process alone while the block lasts.

    The operating system's lock (flock) is held on the folder itself, since a file in it could be deleted and
    locked anew by another process; and on `.lock` in it, which says who holds it, and which network file
    systems pass on to other machines, as they do not for folders.  The system frees both when the process
    ends, however it ends.  A file system without locks guards nothing.

    Args:
        folder: to write to.
        what: is at work there, for messages: `run 'demo'`.

    Raises:
        InUse: another process holds it, which is named.
        OSError: the folder cannot be made or written to.
    """
    with contextlib.ExitStack() as held:
        with explained(folder):
            descriptor = _hold(folder, os.O_RDONLY, held)
        with explained(folder / _LOCK):
            record = None if descriptor is None else _hold(folder / _LOCK, _RECORD, held)
        if descriptor is None or record is None:
            raise InUse(
                f"{what} is being written by another process ({_named(folder)}); wait for it, stop it, or"
                " choose another name"
            )
        _sign(record)
        held.callback(_sign, record, "")
        yield FolderLock(folder, what, descriptor)


def holder(folder: Path) -> str | None:
    """The process that holds `folder` by `locked`, in words; None if none does.

    Nothing is written, and a process that takes the lock meanwhile gets it.
    """
    for path, flags in ((folder, os.O_DIRECTORY), (folder / _LOCK, os.O_NOFOLLOW | os.O_NONBLOCK)):
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | flags)
            opened.callback(os.close, descriptor)
            if not _is_free(descriptor):
                return _named(folder)
    return None


def _hold(path: Path, flags: int, held: contextlib.ExitStack) -> int | None:
    """A descriptor of `path` with its lock, closed by `held`; None if another process has the lock."""
    while True:
        if not flags & os.O_CREAT and not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            flush_folder(path.parent)
        try:
            descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise
            continue  # the folder was deleted since it was made
        try:
            if flags & os.O_CREAT and not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileExistsError(errno.EEXIST, "it is no regular file")
            if not _take(descriptor):
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                held.callback(os.close, descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # deleted or replaced between opening and locking


def _take(descriptor: int) -> bool:
    """Whether the exclusive lock was to be had; those who only ask (`_is_free`) are waited for."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not _is_free(descriptor):
                return False
        except OSError:
            return True  # a file system without locks
        time.sleep(0.001)
    return False


def _is_free(descriptor: int) -> bool:
    """Whether nobody has the exclusive lock: asked by a shared one, held for microseconds.

    `_take` tells it from an exclusive one by the same question, so it makes no one believe the folder held.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def _sign(record: int, text: str | None = None) -> None:
    """Writes into `.lock` who holds it; a full disk costs the name, not the lock."""
    if text is None:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
    with contextlib.suppress(OSError):
        os.ftruncate(record, 0)
        os.pwrite(record, text.encode(), 0)


def _named(folder: Path) -> str:
    text = b""
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        record = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        opened.callback(os.close, record)
        text = os.read(record, 200)
    return printable(text.decode(errors="replace").strip()) or "it has not said which"


@contextlib.contextmanager
def explained(path: Path, about: str = "", kept: str = "") -> Iterator[None]:
    """Gives a system's error in writing `path` its meaning: which file, what the system said, what to do.

    Args:
        path: of the file.
        about: what follows its name, as its size.
        kept: what is said of the file that was there before.

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
            f"could not write {paths.shown(path)}{about}: {reason}{kept}. {what_to_do}",
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


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file that may come from a stranger, without byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger than `limit` bytes, not UTF-8, or holds NUL bytes; names the line.
    """
    content = read_bounded(path, limit)
    try:
        text = content.decode("utf-8-sig")
        wrong = content.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong < 0:
        return text
    line = content.count(b"\n", 0, wrong) + 1
    raise ValueError(
        f"{paths.shown(path)}, line {line}: expected UTF-8 text, found byte {content[wrong]:#04x}; convert"
        " the file to UTF-8"
    )


def parse_json(data: bytes | str, where: str, finite: bool = True) -> Any:
    """The value in JSON text.

    Args:
        data: the text.
        where: the file (and the place in it) that errors name.
        finite: refuse NaN and infinity, which JSON has not, although Python writes and reads them.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deeply, a number of too many digits, or one that is not
            finite.
    """
    number = _finite if finite else float
    try:
        return json.loads(data, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError(f"{where} is damaged: expected JSON, found brackets nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is damaged: expected JSON, found {error}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}")
    return value


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
    if not is_name(name):
        raise ValueError(f"{what}: expected {NAME_RULE}, found {printable(repr(name))[:200]}")
    return name


def is_name(name: Any) -> bool:
    """Whether `checked_name` lets a value pass."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and len(name.encode()) <= MAX_NAME_BYTES


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
