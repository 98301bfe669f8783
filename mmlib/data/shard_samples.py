"""The samples of one tar shard, which is read once from front to back.

Every member of a tar is a file of a sample, or counted with the reason why it is not.  Files belong to
one sample if their names are equal up to the first dot of the last part, folder included.

A shard is a stranger's file: headers, texts and images are bounded before they are read.
"""

import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np

from mmlib.data.decoding import decode_image
from mmlib.data.image_folder import SYSTEM_FOLDERS
from mmlib.data.packing import resize_image
from mmlib.data.shard_files import BLOCK
from mmlib.data.tar_images import LOOK_SIDE
from mmlib.files import parse_json

FIRST = 5  # names that are kept of each reason
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_HEADERS = 2**20  # bytes of the headers of one member: names and PAX records
MAX_TEXT = 2**20  # of a txt or json
MAX_TEXTS = 2**28  # of all of them in a shard
MAX_IMAGE = 2**26  # of an image's file
MAX_KEY = 1_000  # characters

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard

BROKEN = {
    "image": "no image, or one that cannot be decoded",
    "caption": "no caption",
    "json": "a json that cannot be read",
    "size": "a file that is too large",
}
UNUSED = {
    "folder": "folders",
    "link": "links",
    "special": "devices and other special files",
    "hidden": "hidden files and those in folders of systems",
    "name": "names that lead elsewhere or are too long",
    "kind": "files of another kind",
    "double": "files that their sample already has",
}
Found = dict[str, tuple[int, list[str]]]  # by reason: how many, and the first names


class Sample(NamedTuple):
    """An image with its captions, and where its file is in the tar."""

    key: str
    suffix: str
    offset: int
    size: int
    sha256: str
    look: int
    captions: list[str]
    name: str | None  # of the image's file where it came from, as its json says
    url: str | None
    dataset: str | None


class _File:
    """A file that tarfile reads once from front to back, in bounded pieces, while all of it is hashed."""

    def __init__(self, file: BinaryIO):
        self._file, self._sha256, self._offset = file, hashlib.sha256(), 0
        self.budget = 0  # bytes of headers that may still be read
        self.last = b""  # what was read last

    def tell(self) -> int:
        return self._offset

    def read(self, size: int) -> bytes:
        """Headers."""
        if not 0 <= size <= self.budget:
            raise tarfile.ReadError(f"expected headers of at most {MAX_HEADERS:,} bytes, found more")
        self.budget -= size
        self.last = self.content(size)
        return self.last

    def seek(self, offset: int) -> None:
        """Passes over content."""
        if offset < self._offset:
            raise tarfile.ReadError("a header that points backwards")
        while self._offset < offset and self.content(min(BLOCK, offset - self._offset)):
            pass

    def content(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        content = self._file.read(size)
        self._sha256.update(content)
        self._offset += len(content)
        return content

    def sha256(self) -> str:
        """Of the whole file, whose rest is read."""
        while self.content(BLOCK):
            pass
        return self._sha256.hexdigest()


class _Broken(Exception):
    """A sample that cannot be used; its argument is a reason of `BROKEN`."""


@dataclass
class _Parts:
    """The files of a key."""

    image: tuple[str, int, int, str, int] | None = None  # suffix, offset, size, SHA-256, row of its look
    texts: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    reason: str | None = None


class TarReader:
    """Reads a tar member by member.

    Args:
        file: the tar.
        keep_look: takes the pixels of the small picture of each image.

    Attributes:
        looks: images whose small picture was taken.
        broken: samples that cannot be used, by a reason of `BROKEN`.
        unused: members that belong to no sample, by a reason of `UNUSED`.
    """

    def __init__(self, file: BinaryIO, keep_look: Callable[[memoryview], object]):
        self._file, self._keep_look = _File(file), keep_look
        self.looks = 0
        self.broken: Found = {}
        self.unused: Found = {}
        self._parts: dict[str, _Parts] = {}
        self._texts, self._last = 0, ""

    def read(self) -> str | None:
        """Reads all members; returns what is wrong with the tar itself."""
        if fault := self._read_members():
            self._parts.pop(self._last, None)  # it may lack files that came behind
            return fault
        while block := self._file.content(BLOCK):
            if block.strip(tarfile.NUL):
                return "more data behind its end mark, as of tar files that were joined"
        return None

    def _read_members(self) -> str | None:
        try:
            for member in _members(self._file):
                if not self._take(member):
                    return f"it is cut short in {member.name[:MAX_KEY]}"
        except OSError:
            raise
        except Exception as error:  # tarfile raises anything on damaged headers
            if self._file.tell() <= tarfile.BLOCKSIZE and self._file.last.startswith(COMPRESSED):
                return "it is compressed: unpack it, since images are read at any place of it"
            return f"it is no whole tar file: {error or type(error).__name__}"
        if self._file.last != tarfile.NUL * tarfile.BLOCKSIZE:
            return "it is cut short or damaged: no end mark"
        return None

    def sha256(self) -> str:
        """Of the whole file, whose rest is read."""
        return self._file.sha256()

    def samples(self) -> list[Sample]:
        """The samples of all files that were read; notes those that are broken."""
        samples = []
        for key, parts in self._parts.items():
            try:
                samples.append(_sample(key, parts))
            except _Broken as broken:
                _note(self.broken, str(broken), key)
        return samples

    def _take(self, member: tarfile.TarInfo) -> bool:
        """Reads a member; False if the file ends in it."""
        if reason := _strangeness(member):
            _note(self.unused, reason, member.name)
            return True
        self._last, suffix = _key_and_suffix(member.name)
        parts = self._parts.setdefault(self._last, _Parts())
        kind = "image" if suffix in IMAGE_SUFFIXES else suffix
        if kind in parts.seen:
            _note(self.unused, "double", member.name)
            return True
        parts.seen.add(kind)
        limit = MAX_IMAGE if kind == "image" else min(MAX_TEXT, MAX_TEXTS - self._texts)
        if member.size > limit:
            parts.reason = "size"
            return True
        content = self._file.content(member.size)
        if len(content) < member.size:
            return False
        if kind == "image":
            self._take_image(parts, suffix, member.offset_data, content)
        else:
            parts.texts[kind] = content
            self._texts += len(content)
        return True

    def _take_image(self, parts: _Parts, suffix: str, offset: int, content: bytes) -> None:
        try:
            look_HWC = resize_image(decode_image(content, suffix).convert("RGB"), LOOK_SIDE, "squash")
        except (OSError, ValueError):
            parts.reason = parts.reason or "image"
            return
        self._keep_look(np.ascontiguousarray(look_HWC).data)
        sha256 = hashlib.sha256(content).hexdigest()
        parts.image = (suffix, offset, len(content), sha256, self.looks)
        self.looks += 1


def _members(file: _File) -> Iterator[tarfile.TarInfo]:
    file.budget = MAX_HEADERS
    archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    while member := archive.next():
        archive.members = []  # or every header stays in memory
        yield member
        file.budget = MAX_HEADERS


def _note(found: Found, reason: str, name: str) -> None:
    count, first = found.get(reason, (0, []))
    found[reason] = (count + 1, [*first, name[:MAX_KEY]] if len(first) < FIRST else first)


def _strangeness(member: tarfile.TarInfo) -> str | None:
    """Why a member belongs to no sample, a reason of `UNUSED`; None if it may."""
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg() or member.issparse():
        return "special"
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or len(member.name) > MAX_KEY or "\0" in member.name:
        return "name"
    if any(part.startswith(SYSTEM_FOLDERS) and part != "." for part in parts[:-1]) or parts[-1][0:1] == ".":
        return "hidden"
    _, suffix = _key_and_suffix(member.name)
    return None if suffix in (*IMAGE_SUFFIXES, "txt", "json") else "kind"


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
        raise _Broken("image")
    facts: object = {}
    if "json" in parts.texts:
        try:
            facts = parse_json(parts.texts["json"], key, finite=False)
        except ValueError:
            raise _Broken("json") from None
        if not isinstance(facts, dict):
            raise _Broken("json")
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
        raise _Broken("caption")
    for value in (facts.get("captions"), facts.get("caption")):
        if isinstance(value, list) and value:
            if not all(isinstance(caption, str) for caption in value):
                raise _Broken("caption")
            return value
    one = facts.get("caption")
    one = one if isinstance(one, str) and one.strip() else None
    if text is not None:
        try:
            lines = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _Broken("caption") from None
        if "\0" in lines:  # UTF-16 without its mark
            raise _Broken("caption")
        if one is None or one.strip() != lines.strip():
            captions = [line for line in re.split(r"\r\n|\r|\n", lines) if line.strip()]
            if captions:
                return captions
    if one is None:
        raise _Broken("caption")
    return [one]
