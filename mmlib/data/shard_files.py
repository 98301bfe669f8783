"""Tar shards as files: those behind URLs are fetched, and what each one holds is found.

What a tar holds is found once and kept in the cache.  Every member is a file of a sample, or counted with
the reason why it is not.  Files belong to one sample if their names are equal up to the first dot of the
last part, folder included.  A shard is a stranger's file: headers, texts and images are bounded before they
are read.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import logging
import os
import posixpath
import re
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock

from mmlib import files
from mmlib.data.dataset import file_digests, file_sha256
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.leaks import photo_id
from mmlib.data.photos import SYSTEM_FOLDERS
from mmlib.files import (
    explained,
    parse_json,
    printable,
    read_json,
    write_text_atomic,
    written_whole,
)
from mmlib.output import progress

logger = logging.getLogger(__name__)

FORMAT = 4  # raised when what is found changes
WINDOW = 8  # shards whose pairs are mixed; while they are read, the next ones are fetched
LOOK_SIDE = 32  # of the small pictures that are kept of all images for the leak guard, pixels
WORKERS = 8  # shards indexed at once
BLOCK = 2**20  # bytes read at a time
FIRST = 5  # names that are kept of each reason
MAX_BYTES = 2**36  # of one shard behind a URL: 64 GiB
MAX_HEADERS = 2**20  # bytes of the headers of one member: names and PAX records
MAX_TEXT = 2**20  # of a txt or json
MAX_TEXTS = 2**28  # of all of them in a shard
MAX_IMAGE = 2**26  # of an image's file
MAX_KEY = 1_000  # characters
MAX_NAME = 255  # of an image's name
TRIES = 6  # of a URL
WAIT = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 60.0  # seconds without an answer or a byte after which a try has failed
PASSING = (408, 425, 429)  # answers of the 400s that may be another the next time; so may all 500s
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # no try mends these

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")

NO_IMAGE = "no image, or one that cannot be decoded"

_URL_MARKS = "%/:=&?~#+!$,;'@()*[]"  # that stay as they are in an address; spaces and é are escaped


# --- URLs


def is_url(where: str) -> bool:
    """Whether a shard has to be fetched."""
    return where.lower().startswith(("http:", "https:"))


def shard_name(where: str) -> str:
    """The file name of a shard, without folder, query and fragment."""
    return os.path.basename(urllib.parse.urlsplit(where).path if is_url(where) else where)


def fetch(url: str, path: Path) -> None:
    """Write what lies behind a URL to `path`, flushed to the disk.

    Args:
        url: of `http` or `https`.
        path: replaced if it is there; after an error it is as it was.

    Raises:
        FileNotFoundError: the server has no such file.
        ConnectionError: it refuses, or `TRIES` tries have failed; names the URL and the last reason.
        ValueError: more than `MAX_BYTES`.
        OSError: no space on the disk.
    """
    for number in range(1, TRIES + 1):
        try:
            with written_whole(path, alone=True) as file:
                return _receive(url, path, file)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in PASSING:
                kind = FileNotFoundError if error.code in (404, 410) else ConnectionError
                message = f"expected a shard at {url}, found: {reason}; correct the address"
                raise kind(printable(message)) from None
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in DISK:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if number < TRIES:
            wait = WAIT * 2 ** (number - 1)
            logger.warning("%s; try %d of %d in %g s", printable(f"{url}: {reason}"), number + 1, TRIES, wait)
            time.sleep(wait)
    raise ConnectionError(
        f"expected a shard at {printable(url)}, found none in {TRIES} tries, the last time:"
        f" {printable(reason)}; try again later, or copy the shards to a disk"
    )


def _receive(url: str, path: Path, file: BinaryIO) -> None:
    """One try."""
    address = urllib.parse.quote(url, safe=_URL_MARKS)
    request = urllib.request.Request(address, headers={"User-Agent": "mmlib"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        while True:
            if file.tell() + (answer.length or 0) > MAX_BYTES:
                message = f"expected a shard of at most {MAX_BYTES:,} bytes at {printable(url)}, found more"
                raise ValueError(message)
            if not (block := answer.read(BLOCK)):
                break
            with explained(path):
                file.write(block)
        if answer.length:
            raise ConnectionError(f"the connection ended {answer.length:,} bytes before the end")


# --- what a tar holds


class Sample(NamedTuple):
    """An image with its captions, and where its file is in the tar."""

    key: str
    suffix: str  # of the image's file
    offset: int
    size: int
    sha256: str
    look: int  # row of its small picture
    captions: list[str]
    name: str  # of the image, as its json or a photo's address says; may be empty
    dataset: str  # that gave it its name, as its json says; may be empty


@dataclass
class LeftOut:
    """What is left out of a tar: how many, and the first ones, each with the reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(f"{name[:MAX_KEY]} ({reason})")


@dataclass
class Tar:
    """A tar file and what it holds.

    Attributes:
        where: its path or URL.
        index: the file in the cache that says what it holds.
        sha256: of its bytes, 64 hex digits; empty before it is read.
        samples: in the order in which their first files come.
        broken: samples that cannot be used.
        unused: members that belong to no sample.
        fault: what is wrong with the tar itself; empty if it is whole.
    """

    where: str
    index: Path
    sha256: str = ""
    samples: list[Sample] = field(default_factory=list)
    broken: LeftOut = field(default_factory=LeftOut)
    unused: LeftOut = field(default_factory=LeftOut)
    fault: str = ""

    @property
    def looks(self) -> Path:
        """The file of the small pictures of its images."""
        return self.index.with_suffix(".looks")


def open_tar(tar: Tar) -> BinaryIO:
    """Open a tar; one behind a URL is fetched if it is not on this machine.

    If several want one tar, one fetches it and the others wait.  Three windows of the last ones are kept.

    Raises:
        ValueError: it has changed behind its URL since it was indexed.
        FileNotFoundError, ConnectionError, OSError: it is not there, or as `fetch`.
    """
    if not is_url(tar.where):
        return open(tar.where, "rb")
    path = files.CACHE / "shards" / "fetched" / f"{_sha256(tar.where)[:32]}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:  # until it is opened before others that are used replace it
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # it was used last
            return open(path, "rb")
        with FileLock(f"{path}.lock"):
            if not path.exists():
                fetch(tar.where, path)
                if tar.sha256 and file_sha256(path) != tar.sha256:
                    tar.index.unlink(missing_ok=True)
                    changed = f"{printable(tar.where)} has changed since it was indexed"
                    raise ValueError(f"{changed}; start again to index it anew")
        with contextlib.suppress(FileNotFoundError):  # another process deletes them too
            for old in sorted(path.parent.glob("*.tar"), key=os.path.getmtime)[: -3 * WINDOW]:
                old.unlink()  # a process that reads it has it open


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def index_shards(shards: Sequence[str]) -> list[Tar]:
    """Read what shards hold, or what an earlier call found in the same bytes, or behind the same URL.

    If several processes want the same shard, one reads it and the others wait.

    Args:
        shards: from `find_shards`.

    Raises:
        FileNotFoundError, ConnectionError, OSError: a shard that is not there or cannot be read or fetched.
        ValueError: an index in the cache that was damaged.
    """
    local = [Path(where) for where in shards if not is_url(where)]
    digests = dict(zip(map(str, local), file_digests(local, files.CACHE / "shards-digests.json")))
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda where: _index(where, digests.get(where)), shards)
        return list(progress(found, total=len(shards), desc="shards", unit="shard", delay=2))


def _index(where: str, sha256: str | None) -> Tar:
    path = files.CACHE / "shards" / f"{(sha256 or _sha256(where))[:32]}-{FORMAT}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tar = Tar(where, path)
    with FileLock(f"{path}.lock"):
        if path.exists() and tar.looks.exists():
            found = read_json(path)
            tar.sha256, tar.fault = found["sha256"], found["fault"]
            tar.samples = [Sample(*sample) for sample in found["samples"]]
            tar.broken, tar.unused = LeftOut(**found["broken"]), LeftOut(**found["unused"])
            return tar
        with open_tar(tar) as file, written_whole(tar.looks, alone=True) as looks:
            read_tar(tar, file, looks)
            file.seek(0)
            tar.sha256 = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        content = {name: value for name, value in asdict(tar).items() if name not in ("where", "index")}
        with explained(path):
            write_text_atomic(path, json.dumps(content))
    return tar


class _Bounded:
    """A tar of which tarfile reads at most `MAX_HEADERS` bytes for each member."""

    def __init__(self, file: BinaryIO):
        self._file, self.tell = file, file.tell
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.budget = MAX_HEADERS
        self.last = b""  # what was read last

    def seek(self, offset: int) -> None:
        """Passes over content."""
        if offset > self._size:
            raise tarfile.ReadError("cut short")
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        """Headers."""
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"expected headers of at most {MAX_HEADERS:,} bytes, found more")
        self.budget -= size
        self.last = self._file.read(size)
        return self.last


def _members(file: _Bounded) -> Iterator[tarfile.TarInfo]:
    archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    end = 0
    while member := archive.next():
        if member.offset_data < end or member.size < 0:
            raise tarfile.ReadError("a header that points backwards")
        end = member.offset_data + member.size
        archive.members = []  # or every header stays in memory
        yield member
        file.budget = MAX_HEADERS


def read_tar(tar: Tar, file: BinaryIO, looks: BinaryIO) -> None:
    """Read a tar member by member: samples, what is broken, what is unused, what is wrong with it.

    Args:
        tar: takes them.
        file: its bytes.
        looks: a named file that takes the pixels of the small picture of each image.
    """
    bounded = _Bounded(file)
    # Of each key, what its files are by kind: texts, an image (as `Sample` has it), or why it is broken.
    parts: dict[str, dict[str, bytes | tuple | str]] = defaultdict(dict)
    key, text_bytes = "", 0
    try:
        for member in _members(bounded):
            stem, suffix = _key_and_suffix(member.name)
            kind = "image" if suffix in IMAGE_SUFFIXES else suffix
            reason = _strangeness(member, kind) or ("its sample has one" if kind in parts[stem] else None)
            if reason:
                tar.unused.add(member.name, reason)
                continue
            key = stem
            if member.size > (MAX_IMAGE if kind == "image" else min(MAX_TEXT, MAX_TEXTS - text_bytes)):
                parts[key][kind] = "a file that is too large"
                continue
            file.seek(member.offset_data)
            data = file.read(member.size)
            if len(data) < member.size:
                raise tarfile.ReadError(f"cut short in {member.name[:MAX_KEY]}")
            if kind != "image":
                parts[key][kind] = data
                text_bytes += len(data)
            elif look := _look(data, suffix):
                place = (suffix, member.offset_data, len(data), hashlib.sha256(data).hexdigest())
                parts[key][kind] = (*place, looks.tell() // len(look))
                with explained(Path(looks.name)):
                    looks.write(look)
            else:
                parts[key][kind] = NO_IMAGE
        if bounded.last != tarfile.NUL * tarfile.BLOCKSIZE or file.read(BLOCK).strip(tarfile.NUL):
            raise tarfile.ReadError("no end mark at its end: cut short, damaged, or several that were joined")
    except OSError:
        raise
    except Exception as error:  # tarfile raises anything on damaged headers
        tar.fault = f"it is no whole tar file without compression: {error or type(error).__name__}"
        parts.pop(key, None)  # it may lack files that came behind
    for key, part in parts.items():
        sample = _sample(key, part)
        if isinstance(sample, Sample):
            tar.samples.append(sample)
        else:
            tar.broken.add(key, sample)


def _look(content: bytes, suffix: str) -> bytes | None:
    """The pixels of an image's small picture; None if it cannot be decoded."""
    try:
        return resize_image(decode_image(content, suffix), LOOK_SIDE, "squash").tobytes()
    except (OSError, ValueError):
        return None


def _key_and_suffix(name: str) -> tuple[str, str]:
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
    stem, _, suffix = last.partition(".")
    return "/".join([*folders, stem]), suffix.lower()


def _strangeness(member: tarfile.TarInfo, kind: str) -> str | None:
    """Why a member belongs to no sample; None if it may."""
    if member.isdir():
        return "a folder"
    if not member.isreg() or member.issparse():
        return "a link or special file"
    *folders, last = member.name.split("/")
    if member.name.startswith("/") or ".." in folders or len(member.name) > MAX_KEY or "\0" in member.name:
        return "its name leads elsewhere or is too long"
    if last.startswith(".") or any(f.startswith(SYSTEM_FOLDERS) and f != "." for f in folders):
        return "hidden, or of the system"
    return None if kind in ("image", "txt", "json") else "a file of another kind"


def _sample(key: str, part: dict[str, bytes | tuple | str]) -> Sample | str:
    """What the files of a key say; a text if they cannot be used: why."""
    for value in part.values():
        if isinstance(value, str):
            return value
    if "image" not in part:
        return NO_IMAGE
    try:
        facts = parse_json(part.get("json", b"{}"), key, finite=False)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        return "a json that cannot be read"
    captions = _captions(facts, part.get("txt", b""))
    if not captions:
        return "no caption"
    name, dataset, url = (
        value if isinstance(value := facts.get(fact), str) else "" for fact in ("name", "dataset", "url")
    )
    if not name and photo_id(url):
        name, dataset = posixpath.basename(urllib.parse.urlsplit(url).path), ""
    if not name or len(name) > MAX_NAME:
        name = dataset = ""
    return Sample(key, *part["image"], captions, name, dataset)


def _captions(facts: dict, text: bytes) -> list[str]:
    """The captions of a sample; none if there are none, or texts that are none.

    A list in the json (`captions` or `caption`) is taken as it is.  Else every line of the txt that is not
    blank is a caption, unless the json has the same text as its one `caption`: then it is one, however
    many lines it has.  Without a txt, the json's `caption` is.
    """
    for value in (facts.get("captions"), facts.get("caption")):
        if isinstance(value, list) and value:
            return value if all(isinstance(caption, str) for caption in value) else []
    one = facts.get("caption")
    one = one if isinstance(one, str) else ""
    try:
        lines = text.decode("utf-8-sig")
    except UnicodeDecodeError:
        return []
    if "\0" in lines:  # UTF-16 without its mark
        return []
    several = [line for line in re.split(r"\r\n|\r|\n", lines) if line.strip()]
    if not several or one.strip() == lines.strip():
        several = [one]
    return [caption for caption in several if caption.strip()]
