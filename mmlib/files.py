"""Files and names: folders and their locks, atomic writes, bounded reads, JSON, checked names, fetching.

In the repository nothing depends on the working directory: papermill starts a notebook's kernel in the
shell's folder, Jupyter and nbval in the notebook's own.  A relative path in a parameter is therefore read
from `ROOT`.  A package that is installed without the repository has the working directory as its root.

`MMLIB_ROOT` (environment) moves the root;
`MMLIB_RUNS`, `MMLIB_REPORTS` and `MMLIB_CACHE` move only the run folders, the reports and the packed
images, so that tests never touch a person's.
"""

import contextlib
import datetime
import difflib
import errno
import fcntl
import json
import logging
import math
import os
import re
import socket
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO


def _root() -> Path:
    """The repository around this package, else around the working directory, else that directory."""
    if given := os.environ.get("MMLIB_ROOT"):
        return Path(given).resolve()
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted, which the commands say that need it
        here = Path("/")
    for folder in (Path(__file__).resolve().parent.parent, here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


ROOT = _root()
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
RUNS = Path(os.environ.get("MMLIB_RUNS") or ROOT / "runs").resolve()
REPORTS = Path(os.environ.get("MMLIB_REPORTS") or ROOT / "reports").resolve()
PUBLISHED = ROOT / "reports" / "published"  # committed; changed by `make publish` alone
CACHE = Path(os.environ.get("MMLIB_CACHE") or ROOT / "data" / "cache").resolve()

MAX_JSON_BYTES = 256 << 20  # a results file has thousands of rows; COCO's captions are 60 MB
MAX_NAME_BYTES = 100  # leaves room for endings and temporary names in the 255 bytes of a file name

PATIENCE = 10.0  # seconds of silence after which a server counts as not there

_LOCK = ".lock"  # in a locked folder: who holds it
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


def from_root(path: str | os.PathLike) -> Path:
    """`path` as an absolute path: `~` expanded, relative paths read from the repository's root."""
    return (ROOT / Path(path).expanduser()).resolve()


def shown(path: str | os.PathLike) -> str:
    """`path` for a person to read: relative to the root when it lies under it, absolute otherwise."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """`written_whole` of `data`."""
    with written_whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def written_whole(path: Path, alone: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which gets its name when it is complete and flushed to the disk.

    Args:
        path: of the file.
        alone: nobody else writes it meanwhile; then what a killed process left is overwritten by the next.

    Raises:
        OSError: the folder cannot be written to or the disk is full; nothing is left behind and
            `path` is as it was.
    """
    temporary = path.with_name(f"{path.name}.{'' if alone else uuid.uuid4().hex}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
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
            f"could not write {shown(path)}{about}: {reason}{kept}. {what_to_do}",
        ) from error


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file that may come from a stranger.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger than `limit` bytes; nothing of it was kept.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected the file {shown(path)}, found nothing there")
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(
            f"{shown(path)}: expected at most {limit:,} bytes, found {path.stat().st_size:,}; this is"
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
        f"{shown(path)}, line {line}: expected UTF-8 text, found byte {content[wrong]:#04x}; convert"
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
    value = parse_json(read_bounded(path), shown(path))
    if not isinstance(value, dict):
        raise ValueError(f"{shown(path)} is damaged: expected a JSON object, found {type(value).__name__}")
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


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'lr'?` for the known name that is most like `name`; nothing if none is."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
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


@contextlib.contextmanager
def fetching(what: str, hub: bool) -> Iterator[None]:
    """Surrounds a library that looks for files in its cache and downloads what is missing; says so.

    A server that is silent for `PATIENCE` is given up; a slow one is not.  The hub of Hugging Face is asked
    first whether it answers, since its client tries for a minute to reach it, and also for what lies in its
    cache; if it does not, the cache alone is read.

    Args:
        what: is looked for, as `weights 'default' of timm:resnet50`.
        hub: whether it is on that hub.

    Raises:
        ConnectionError: the hub does not answer, and what is wanted is not in the cache.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    logging.getLogger(__name__).warning("looking for %s in the library's cache, or downloading it", what)
    silent, offline, timeout = None, constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    if hub and not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception as error:  # those of its HTTP client, which changes with its versions
            silent = f"{constants.ENDPOINT} does not answer: {type(error).__name__} {error}".strip()
    socket.setdefaulttimeout(timeout or PATIENCE)  # urlopen, which torch and open_clip use, has none
    constants.HF_HUB_OFFLINE = offline or silent is not None
    try:
        yield
    except OSError as error:
        if silent:
            raise ConnectionError(silent) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


class InUse(RuntimeError):
    """Another process is at work in a folder."""


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[Callable[[], None]]:
    """Makes `folder` if it is missing, and holds it for this process alone while the block lasts.

    The operating system's lock (flock) is held on the folder itself, since a file in it could be deleted and
    locked anew by another process; and on `.lock` in it, which says who holds it, and which network file
    systems pass on to other machines, as they do not for folders.  The system frees both when the process
    ends, however it ends.  A file system without locks guards nothing.

    Args:
        folder: to write to.
        what: is at work there, for messages: `run 'demo'`.

    Yields:
        A function that raises a RuntimeError unless the path still names the very folder that was locked.

    Raises:
        InUse: another process holds it, which is named.
        OSError: the folder cannot be made or written to.
    """
    with contextlib.ExitStack() as held:
        with explained(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                flush_folder(folder.parent)
            descriptor = held.enter_context(_opened(folder, os.O_DIRECTORY))
        with explained(folder / _LOCK):  # never what a link in its place leads to
            record = held.enter_context(_opened(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
        if not (_take(descriptor) and _take(record)):
            raise InUse(
                f"{what} is being written by another process ({_named(folder)}); wait for it, stop it, or"
                " choose another name"
            )

        def check() -> None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    return
            raise RuntimeError(
                f"{shown(folder)} is gone: it was deleted, moved or replaced while {what} was at work there;"
                " nothing more is written to it"
            )

        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
        with contextlib.suppress(OSError):  # a full disk costs the name, not the lock
            os.ftruncate(record, 0)
            held.callback(os.ftruncate, record, 0)
            os.pwrite(record, text.encode(), 0)
        yield check


def holder(folder: Path) -> str | None:
    """The process that holds `folder` by `locked`, in words; None if none does.

    Nothing is written, and a process that takes the lock meanwhile gets it.
    """
    for path, flags in ((folder, os.O_DIRECTORY), (folder / _LOCK, os.O_NOFOLLOW)):
        with contextlib.suppress(OSError), _opened(path, flags) as descriptor:
            if not _is_free(descriptor):
                return _named(folder)
    return None


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)  # which waits for nobody at a pipe
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Whether the exclusive lock was to be had; those who only ask (`_is_free`) are waited for."""
    for _ in range(1000):
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


def _named(folder: Path) -> str:
    text = b""
    with contextlib.suppress(OSError), _opened(folder / _LOCK, os.O_NOFOLLOW) as record:
        text = os.read(record, 200)
    return printable(text.decode(errors="replace").strip()) or "it has not said which"
