"""Samples of a webdataset shard: the files of a tar that share a key, and the captions among them.

Two layouts are read.  Ours has all captions in the json (`{"captions": […], "name": …}`); img2dataset's
has one, in the txt or as `"caption"` of the json.
"""

import json
import os
import tarfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
META_SUFFIXES = ("json", "txt")
MOST_CAPTIONS = 65_535  # of an image: they are counted in two bytes


class Broken(Exception):
    """A sample or the rest of a shard cannot be used.

    Attributes:
        reason: `image`, `caption`, `json` or `shard`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """Files of one key: suffix to their offset and size in the shard, bytes."""

    key: str
    files: dict[str, tuple[int, int]]

    @property
    def image_suffix(self) -> str | None:
        """Which of its files is the image."""
        return next((suffix for suffix in IMAGE_SUFFIXES if suffix in self.files), None)


@dataclass(frozen=True)
class Meta:
    """What a sample says besides its pixels.

    Attributes:
        captions: as published, at least one.
        name: of the image's file where it came from, which may hold the id of the photo
            (`mmlib.data.leaks.photo_id`); None if that is not known.
        dataset: name of the data set that it came from, or None.
    """

    captions: tuple[str, ...]
    name: str | None
    dataset: str | None


def walk_samples(file: BinaryIO) -> Iterator[Sample]:
    """The samples of a shard in their order; headers alone are read.

    Raises:
        Broken: the file is no tar, or ends before its end mark; after the samples that are whole.
    """
    from webdataset.tariterators import base_plus_ext, meta_prefix

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    key, files = None, {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # or every header stays in memory
                prefix, suffix = base_plus_ext(member.name) if member.isreg() else (None, None)
                if prefix is None or prefix.startswith(meta_prefix):
                    continue
                if prefix != key:
                    if files:
                        yield Sample(key, files)
                    key, files = prefix, {}
                if member.offset_data + member.size > size:
                    raise Broken("shard", f"it is cut short in {member.name}")
                files.setdefault(suffix.lower(), (member.offset_data, member.size))
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        raise Broken("shard", f"it is no whole tar file: {error}") from error
    # tarfile takes any damaged header but the first for the end of the archive.
    if end != tarfile.NUL * tarfile.BLOCKSIZE:
        raise Broken("shard", "it is cut short or damaged: no end mark")
    if files:
        yield Sample(key, files)


def read_file(file: BinaryIO, sample: Sample, suffix: str) -> bytes:
    """The bytes of one file of a sample."""
    offset, size = sample.files[suffix]
    file.seek(offset)
    return file.read(size)


def read_meta(file: BinaryIO, sample: Sample) -> Meta:
    """Captions and names of a sample.

    Raises:
        Broken: no image, no caption, or a json that is none.
    """
    if sample.image_suffix is None:
        raise Broken("image", f"no image ({', '.join(IMAGE_SUFFIXES)})")
    return parse_meta(sample, {s: read_file(file, sample, s) for s in META_SUFFIXES if s in sample.files})


def parse_meta(sample: Sample, content: dict[str, bytes]) -> Meta:
    """`read_meta` of a sample whose json and txt are read already."""
    facts = {}
    if "json" in content:
        try:
            facts = json.loads(content["json"])
        except ValueError as error:
            raise Broken("json", f"its json cannot be read: {error}") from error
        if not isinstance(facts, dict):
            raise Broken("json", f"expected a json object, found {type(facts).__name__}")
    name = _text(facts, "name")
    if name is None:
        name = _name_in(facts["url"]) if "url" in facts else f"{sample.key}.{sample.image_suffix}"
    return Meta(_captions(facts, content), name, _text(facts, "dataset"))


def _captions(facts: dict, content: dict[str, bytes]) -> tuple[str, ...]:
    if "captions" in facts:
        captions = facts["captions"]
        if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise Broken("caption", "expected a list of texts as captions in its json")
        if not 1 <= len(captions) <= MOST_CAPTIONS:
            raise Broken("caption", f"expected 1 to {MOST_CAPTIONS:,} captions, found {len(captions):,}")
        return tuple(captions)
    if "txt" in content:
        try:
            caption = content["txt"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Broken("caption", f"its txt is not UTF-8: {error}") from error
    else:
        caption = _text(facts, "caption") or ""
    if not caption.strip():
        raise Broken("caption", "no caption")
    return (caption,)


def _text(facts: dict, name: str) -> str | None:
    value = facts.get(name)
    return value if isinstance(value, str) else None


def _name_in(url: object) -> str | None:
    """The file name in the address of a photo at a host whose file names hold ids.

    img2dataset's keys are numbers of its own, and numbers in other hosts' addresses mean nothing.
    """
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        host = parts.hostname or ""
    except ValueError:
        return None
    known = ("flickr.com", "staticflickr.com", "cocodataset.org")
    return parts.path.rsplit("/", 1)[-1] if host.endswith(known) else None
