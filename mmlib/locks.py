"""Folders that one process alone writes to: who holds one, and how to wait for nobody who only asks."""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from mmlib.files import explained, flush_folder, printable, shown

_LOCK = ".lock"  # in a locked folder: who holds it
_RECORD = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # never what a link in its place leads to
_TRIES = 1000  # a millisecond apart, to take a lock that others only ask about


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
                f"{shown(self.folder)} is gone: it was deleted, moved or replaced while {self._what}"
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
