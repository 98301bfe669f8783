"""The index of tar shards: what each holds, found once and kept in the cache under the hash of its bytes.

Every member of a tar is a file of a sample, or counted with the reason why it is not.  Files belong to one
sample if their names are equal up to the first dot of the last part, folder included.  A shard is a
stranger's file: headers, texts and images are bounded before they are read.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock
from tqdm import tqdm

from mmlib import files
from mmlib.data.dataset import file_digests
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.photos import SYSTEM_FOLDERS
from mmlib.data.shard_files import (
    BLOCK,
    LOOK_SIDE,
    Place,
    Tar,
    fetch_tar,
    open_tar,
    url_record,
)
from mmlib.files import explained, parse_json, read_json, replace_flushed, write_text_atomic

logger = logging.getLogger(__name__)

FORMAT = 3  # raised when what is found changes
WORKERS = 8  # shards read at once
FIRST = 5  # names that are kept of each reason
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_HEADERS = 2**20  # bytes of the headers of one member: names and PAX records
MAX_TEXT = 2**20  # of a txt or json
MAX_TEXTS = 2**28  # of all of them in a shard
MAX_IMAGE = 2**26  # of an image's file
MAX_KEY = 1_000  # characters

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard

_IMAGE = "no image, or one that cannot be decoded"


class Sample(NamedTuple):
    """An image with its captions, and where its file is in the tar."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str
    look: int  # row of its small picture
    captions: list[str]
    name: str | None  # of the image's file where it came from, as its json says
    url: str | None
    dataset: str | None


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
class Content:
    """What a tar holds.

    Attributes:
        samples: in the order in which their first files come.
        broken: samples that cannot be used.
        unused: members that belong to no sample.
        fault: what is wrong with the tar itself; None if it is whole.
    """

    samples: list[Sample] = field(default_factory=list)
    broken: LeftOut = field(default_factory=LeftOut)
    unused: LeftOut = field(default_factory=LeftOut)
    fault: str | None = None


def index_shards(places: Sequence[Place]) -> list[tuple[Tar, Content]]:
    """Read what shards hold, or what an earlier call found in the same bytes.

    If several processes want the same shard, one reads it and the others wait.

    Args:
        places: from `find_shards`.

    Raises:
        FileNotFoundError, ConnectionError, OSError: a shard that is not there or cannot be read or fetched.
    """
    local = [Path(place.where) for place in places if not place.is_url]
    digests = dict(zip(map(str, local), file_digests(local, files.CACHE / "shards-digests.json")))
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda place: _index(place, digests.get(place.where)), places)
        try:
            return list(tqdm(found, total=len(places), desc="shards", unit="shard", disable=None, delay=2))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that are being read end first
            raise


def _index(place: Place, sha256: str | None) -> tuple[Tar, Content]:
    if sha256 is None:
        with url_record(place.where) as record:
            try:
                sha256 = str(read_json(record)["sha256"])
            except (FileNotFoundError, ValueError, KeyError):
                sha256 = fetch_tar(place.where, record)
    path = files.CACHE / "shards" / f"{sha256[:32]}.json"
    tar = Tar(place, sha256, path.with_suffix(".looks"))
    with FileLock(f"{path}.lock"):
        content = _stored(path, tar)
        if content is None:
            content = _read(tar)
            with explained(path):
                write_text_atomic(path, json.dumps({"format": FORMAT, **asdict(content)}))
    return tar, content


def _stored(path: Path, tar: Tar) -> Content | None:
    """The index in the cache; None if there is none that can be used."""
    try:
        found = json.loads(path.read_bytes())
        looks = 1 + max((sample[5] for sample in found["samples"]), default=-1)
        if found.pop("format") == FORMAT and tar.looks.stat().st_size >= looks * LOOK_SIDE**2 * 3:
            samples = [Sample(*sample) for sample in found["samples"]]
            return Content(samples, LeftOut(**found["broken"]), LeftOut(**found["unused"]), found["fault"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, IndexError) as error:
        logger.warning("%s cannot be read (%s) and is made anew", path, error)
    return None


def _read(tar: Tar) -> Content:
    """Read a shard and keep the small pictures of its images; the caller holds the index's lock."""
    temporary = tar.looks.with_suffix(".part")
    try:
        with open_tar(tar) as file, open(temporary, "wb") as looks:
            content = read_tar(file, looks, temporary)
            with explained(temporary):
                looks.flush()
                os.fsync(looks.fileno())
        replace_flushed(temporary, tar.looks)
    finally:
        temporary.unlink(missing_ok=True)
    return content


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


class _Broken(Exception):
    """A sample that cannot be used; its argument is the reason."""


@dataclass
class _Parts:
    """The files of a key."""

    image: tuple[str, int, int, str, int] | None = None  # suffix, offset, size, SHA-256, row of its look
    texts: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    reason: str | None = None


def read_tar(file: BinaryIO, looks: BinaryIO, looks_path: Path | None = None) -> Content:
    """Read a tar member by member.

    Args:
        file: the tar.
        looks: takes the pixels of the small picture of each image.
        looks_path: its path, for errors.
    """
    content, parts, bounded = Content(), {}, _Bounded(file)
    key, row, texts = "", 0, 0
    try:
        for member in _members(bounded):
            if reason := _strangeness(member):
                content.unused.add(member.name, reason)
                continue
            key, suffix = _key_and_suffix(member.name)
            part, kind = parts.setdefault(key, _Parts()), "image" if suffix in IMAGE_SUFFIXES else suffix
            if kind in part.seen:
                content.unused.add(member.name, "its sample has one")
                continue
            part.seen.add(kind)
            if member.size > (MAX_IMAGE if kind == "image" else min(MAX_TEXT, MAX_TEXTS - texts)):
                part.reason = "a file that is too large"
                continue
            file.seek(member.offset_data)
            data = file.read(member.size)
            if len(data) < member.size:
                raise tarfile.ReadError(f"cut short in {member.name[:MAX_KEY]}")
            if kind != "image":
                part.texts[kind] = data
                texts += len(data)
            elif (look := _look(data, suffix)) is None:
                part.reason = part.reason or _IMAGE
            else:
                with explained(looks_path or Path(".")):
                    looks.write(look)
                sha256 = hashlib.sha256(data).hexdigest()
                part.image, row = (suffix, member.offset_data, len(data), sha256, row), row + 1
        content.fault = _fault_of_end(file, bounded)
    except OSError:
        raise
    except Exception as error:  # tarfile raises anything on damaged headers
        content.fault = f"it is no whole tar file: {error or type(error).__name__}"
        if file.tell() <= tarfile.BLOCKSIZE and bounded.last.startswith(COMPRESSED):
            content.fault = "it is compressed: unpack it, since images are read at any place of it"
    if content.fault and "behind its end mark" not in content.fault:
        parts.pop(key, None)  # it may lack files that came behind
    for key, part in parts.items():
        try:
            content.samples.append(_sample(key, part))
        except _Broken as broken:
            content.broken.add(key, str(broken))
    return content


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


def _fault_of_end(file: BinaryIO, bounded: _Bounded) -> str | None:
    if bounded.last != tarfile.NUL * tarfile.BLOCKSIZE:
        return "it is cut short or damaged: no end mark"
    while block := file.read(BLOCK):
        if block.strip(tarfile.NUL):
            return "more data behind its end mark, as of tar files that were joined"
    return None


def _look(content: bytes, suffix: str) -> bytes | None:
    """The pixels of an image's small picture; None if it cannot be decoded."""
    try:
        return resize_image(decode_image(content, suffix).convert("RGB"), LOOK_SIDE, "squash").tobytes()
    except (OSError, ValueError):
        return None


def _strangeness(member: tarfile.TarInfo) -> str | None:
    """Why a member belongs to no sample; None if it may."""
    if member.isdir():
        return "a folder"
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "a special file"
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or len(member.name) > MAX_KEY or "\0" in member.name:
        return "its name leads elsewhere or is too long"
    if any(part.startswith(SYSTEM_FOLDERS) and part != "." for part in parts[:-1]) or parts[-1][0:1] == ".":
        return "hidden, or of the system"
    _, suffix = _key_and_suffix(member.name)
    return None if suffix in (*IMAGE_SUFFIXES, "txt", "json") else "a file of another kind"


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
        raise _Broken(_IMAGE)
    facts: object = {}
    if "json" in parts.texts:
        try:
            facts = parse_json(parts.texts["json"], key, finite=False)
        except ValueError:
            raise _Broken("a json that cannot be read") from None
        if not isinstance(facts, dict):
            raise _Broken("a json that cannot be read")
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
        raise _Broken("no caption")
    for value in (facts.get("captions"), facts.get("caption")):
        if isinstance(value, list) and value:
            if not all(isinstance(caption, str) for caption in value):
                raise _Broken("no caption")
            return value
    one = facts.get("caption")
    one = one if isinstance(one, str) and one.strip() else None
    if text is not None:
        try:
            lines = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _Broken("no caption") from None
        if "\0" in lines:  # UTF-16 without its mark
            raise _Broken("no caption")
        if one is None or one.strip() != lines.strip():
            captions = [line for line in re.split(r"\r\n|\r|\n", lines) if line.strip()]
            if captions:
                return captions
    if one is None:
        raise _Broken("no caption")
    return [one]
