"""A loaded data set: splits of images and captions, a way to read an image, an identity.

Loaders (`shapes`, `flickr8k`, …) return a `Dataset`; everything after them (packed store,
tokenizers, training, metrics, galleries) knows nothing else of where the data came from.

Shapes: N images of a split, M captions of it; M >= N, any number of captions per image.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from mmlib.config import ParameterError
from mmlib.data.decoding import MAX_BYTES, decode_image
from mmlib.files import printable, read_bounded, shown, write_text_atomic
from mmlib.output import progress

SPLITS = ("train", "val", "test")


class ImageSource(Protocol):
    """Reads images by name.  Threads call `load` at once."""

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as an RGB picture.

        `size` is a wish in pixels: a source that draws its images may draw at that size; one that
        reads files returns them as they are, or reduced as `decode_image` says.

        Raises:
            OSError: the image cannot be read.
            ValueError: it cannot be decoded, or is not the one that was hashed.
        """
        ...


@dataclass(frozen=True)
class Split:
    """One split: image names (unique, in order), captions, and the image of each caption."""

    name: str
    images: tuple[str, ...]  # N names, unique
    captions: tuple[str, ...]  # M texts, as published: never stripped, lower-cased or deduplicated
    image_of_caption_M: np.ndarray  # (M,) int64: caption m describes images[image_of_caption_M[m]]
    # (M,) float64: appearances of caption m in an epoch that are expected; None: one of each.
    weight_of_caption_M: np.ndarray | None = None
    # (N,) int64: the tar of image n, where images are read from tars when they are needed, not packed.
    shard_of_image_N: np.ndarray | None = None

    def __post_init__(self):
        for attribute, dtype, length in (
            ("image_of_caption_M", np.int64, len(self.captions)),
            ("weight_of_caption_M", np.float64, len(self.captions)),
            ("shard_of_image_N", np.int64, len(self.images)),
        ):
            if getattr(self, attribute) is None:
                continue
            values = np.asarray(getattr(self, attribute), dtype=dtype)
            object.__setattr__(self, attribute, values)
            if values.shape != (length,):
                raise ValueError(
                    f"split {self.name!r}: expected {attribute} to have shape ({length},),"
                    f" found {values.shape}"
                )
        image_M, weight_M = self.image_of_caption_M, self.weight_of_caption_M
        if len(image_M) and not (image_M.min() >= 0 and image_M.max() < len(self.images)):
            raise ValueError(
                f"split {self.name!r}: image_of_caption_M must lie in 0..{len(self.images) - 1}, found"
                f" {image_M.min()}..{image_M.max()}"
            )
        if weight_M is not None and not (np.isfinite(weight_M) & (weight_M > 0)).all():
            raise ValueError(
                f"split {self.name!r}: expected positive weights, found {weight_M.min()} to {weight_M.max()}"
            )


@dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
        name: what reports call it, for example `flickr8k`.
        splits: by name; `train`, `val` and, where the published data have one, `test`.
        source: reads an image by its name.
        fingerprint: 16 hex digits over file names, captions and image bytes; equal if and only if
            the data are.
        notes: one sentence for each oddity that the loader met and what it did about it.
        held_out_fingerprint: of the data set whose val and test splits these are, where the training
            split has more than that set's; results with equal ones may be compared.
        redistributable: whether its pictures and captions may stand in a page that is passed on.
    """

    name: str
    splits: dict[str, Split]
    source: ImageSource
    fingerprint: str
    notes: tuple[str, ...] = ()
    redistributable: bool = False
    held_out_fingerprint: str | None = None

    @property
    def identity(self) -> dict:
        """Name, fingerprints and split sizes: what a run records and a report compares."""
        sizes = {s.name: {"images": len(s.images), "captions": len(s.captions)} for s in self.splits.values()}
        identity = {"name": self.name, "fingerprint": self.fingerprint, "splits": sizes}
        if self.held_out_fingerprint:
            identity["held_out_fingerprint"] = self.held_out_fingerprint
        return identity

    def split(self, name: str) -> Split:
        """The split `name`.

        Raises:
            ParameterError: the data set has none of that name.
        """
        if name not in self.splits:
            raise ParameterError(
                f"split: expected one of {', '.join(self.splits)}, which is what the files of {self.name}"
                f" hold, found {name!r}; choose one of them, or bring the file that holds that split"
            )
        return self.splits[name]

    @property
    def packed(self) -> list[Split]:
        """The splits whose images are packed: all but those that are read from tars."""
        return [split for split in self.splits.values() if split.shard_of_image_N is None]

    def images(self, packed: bool = False) -> list[str]:
        """Names of all images (or of packed splits), split after split, each once."""
        splits = self.packed if packed else self.splits.values()
        return list(dict.fromkeys(name for split in splits for name in split.images))


@dataclass(frozen=True)
class ImageFolder:
    """Reads the images of one folder by name.

    Attributes:
        folder: where the files lie.
        digests: image name to the SHA-256 that the data set's fingerprint counts.  What is read later
            must still have it, so no other pixels are ever packed under that fingerprint.
        on_disk: image name to its file's name, where the two are spelled differently.
    """

    folder: Path
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    on_disk: Mapping[str, str] = field(default_factory=dict, repr=False)

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is cut short or no image, or has changed since it was hashed.
        """
        return decode_image(self.read(name), name, size)

    def read(self, name: str) -> bytes:
        """The bytes of the file, checked against its digest if that is known.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is too large for an image, or has changed since it was hashed.
        """
        path = self.folder / self.on_disk.get(name, name)
        content = read_bounded(path, MAX_BYTES)
        if name in self.digests and hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise ValueError(
                f"{printable(shown(path))} has changed since the data set was loaded: expected the bytes that"
                " its fingerprint counts; load the data set again"
            )
        return content

    def digest(self, name: str) -> str:
        """The SHA-256 of the file's bytes, 64 hex digits."""
        return self.digests.get(name) or hashlib.sha256(self.read(name)).hexdigest()


logger = logging.getLogger(__name__)

THREADS = 8  # hashing releases the interpreter lock; more readers than this do not help a disk
SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system (FAT) ticks every 2 s


def dataset_fingerprint(splits: Mapping[str, Split], digests: Mapping[str, str]) -> str:
    """16 hex digits over everything that training or evaluation can see of a data set.

    Counted: split names, image names, captions, which image each caption describes, the image
    bytes (through their digests), and the order of images and captions in a split, because it
    decides which pairs share a batch.  Not counted: the order in which the splits are given, and
    where the files lie.

    Args:
        splits: by name.
        digests: image name to a digest of its bytes, for every image of the splits.
    """
    # JSON quotes and escapes every text, so no two data sets can run together into the same bytes.
    content = [
        (name, s.images, [digests[i] for i in s.images], s.captions, s.image_of_caption_M.tolist())
        for name, s in sorted(splits.items())
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def file_digests(paths: Sequence[Path], cache_file: Path) -> list[str]:
    """SHA-256 (64 hex digits) of each file's bytes, in the order of `paths`.

    Digests are kept in `cache_file` under the file's absolute path and reused while its size, time of
    modification and time of inode change (both ns) are what they were, so that a second call only stats
    the files.  The system sets the inode's time at each write, rename and change of times, and no program
    can set it back: a file replaced by one of equal size and time is caught.  Not caught is what never
    passes through this system's clock: a clock that was set back, or a network or FAT disk that does not
    keep that time and whose size and time of modification are made equal.  A file that was changed less
    than `SETTLED_NS` before it was read, or while it was, is hashed again the next time, since its time
    may be too coarse to tell a second change.  A cache that is damaged is built anew; one that cannot be
    written costs time at the next call and no more.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    keys = [os.path.abspath(path) for path in paths]
    cached = _read_cache(cache_file)
    marks = {key: _mark(key) for key in keys}
    stale = [key for key, mark in marks.items() if cached.get(key, ())[:3] != mark]
    if stale:
        latest_ns = time.time_ns() - SETTLED_NS
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(file_sha256, stale)
            digests = progress(digests, total=len(stale), desc="fingerprint", unit="file")
            cached |= {key: (*marks[key], digest) for key, digest in zip(stale, digests)}
        unsettled = {key for key in stale if marks[key][2] > latest_ns or _mark(key) != marks[key]}
        kept = {key: entry for key, entry in cached.items() if key not in unsettled}
        try:
            write_text_atomic(cache_file, json.dumps(kept))
        except OSError as error:
            logger.warning("digests are not kept for the next time: %s", error)
    return [cached[key][3] for key in keys]


def _mark(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(cache_file: Path) -> dict[str, tuple[int, int, int, str]]:
    """Path to size, mtime_ns, ctime_ns, sha256; empty if the file is missing or not such a table."""
    try:
        return TypeAdapter(dict[str, tuple[int, int, int, str]]).validate_json(cache_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is built anew", shown(cache_file), error)
        return {}
