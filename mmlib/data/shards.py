"""Tar shards as an ordinary data set, and any data set as tar shards.

Shapes: N images, M captions of a split; R images asked for, H = W = `LOOK_SIDE` pixels.
"""

import contextlib
import glob
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
import threading
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mmlib import files
from mmlib.config import DataConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split, dataset_fingerprint, file_sha256
from mmlib.data.decoding import decode_image, image_suffix
from mmlib.data.shard_files import (
    FIRST,
    LOOK_SIDE,
    Sample,
    Tar,
    index_shards,
    is_url,
    open_tar,
    shard_name,
)
from mmlib.files import from_root, is_name, printable, shown, write_text_atomic, written_whole
from mmlib.output import progress

MOST_BROKEN = 0.01  # share of broken samples that is still passed over
MAX_SHARDS = 1_000_000  # that one pattern may stand for

MANIFEST = "shards.json"
FORMAT = 2  # of the manifest
SAMPLES_PER_SHARD = 1_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_SHARD_NAME = re.compile(rf"(train|val|test)-[0-9]{{6}}\.tar|{re.escape(MANIFEST)}")


@dataclass(frozen=True, eq=False)
class TarImages:
    """Reads images out of tar files, by name; an `ImageSource`.

    Every image is checked against its SHA-256 when it is read, so what is decoded is what was indexed.

    Attributes:
        tars: the files.
        samples: image name to the number of its tar, and its sample.
    """

    tars: list[Tar] = field(default_factory=list)
    samples: dict[str, tuple[int, Sample]] = field(default_factory=dict)

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as `decode_image` gives it.

        Raises:
            OSError, ValueError: the tar is missing or was changed, or the image cannot be decoded.
        """
        return decode_image(self.read(name), name, size)

    def read(self, name: str) -> bytes:
        """The bytes of the image's file.

        Raises:
            FileNotFoundError: there is no such tar any more.
            ValueError: the tar is not the one that was indexed.
            ConnectionError, OSError: it cannot be fetched or read.
        """
        number, sample = self.samples[name]
        tar = self.tars[number]
        with open_tar(tar) as file:
            file.seek(sample.offset)
            content = file.read(sample.size)
        if hashlib.sha256(content).hexdigest() != sample.sha256:
            raise ValueError(
                f"{printable(shown(tar.where))} has changed: expected the bytes of {printable(name)} as they"
                " were indexed, found others; start again to index it as it is now"
            )
        return content

    def digest(self, name: str) -> str:
        """SHA-256 of the image's file, 64 hex digits."""
        return self.samples[name][1].sha256

    def looks(self, names: Sequence[str]) -> np.ndarray:
        """The images squashed to `LOOK_SIDE` pixels a side, (R, H, W, 3) uint8."""
        shape = (-1, LOOK_SIDE, LOOK_SIDE, 3)
        numbers = sorted({self.samples[name][0] for name in names})
        looks = {
            number: np.memmap(self.tars[number].looks, np.uint8, "r").reshape(shape) for number in numbers
        }
        places = [self.samples[name] for name in names]
        return np.stack([looks[number][sample.look] for number, sample in places])

    def fetch_soon(self, numbers: Iterable[int]) -> None:
        """Fetch tars behind URLs, by their numbers, in another thread: they are read next."""

        def work() -> None:
            for tar in tars:
                with contextlib.suppress(OSError, ValueError):  # raised when the tar is read
                    open_tar(tar).close()

        if tars := [tar for tar in (self.tars[number] for number in numbers) if is_url(tar.where)]:
            threading.Thread(target=work, name="mmlib-shards", daemon=True).start()


# --- reading


def find_shards(patterns: Sequence[str], parameter: str) -> list[str]:
    """List the shards that patterns name, absolute paths and URLs, in the order of the patterns, each once.

    A pattern is a path (relative ones are read from the repository's root) or a URL of `file`, `http` or
    `https`.  Braces stand for several (`{000..099}`, `{a,b}`); `*`, `?` and `[…]` in paths stand for the
    files that match, in the order of their names.  A folder or file that is there by the very name, such
    as `photos [2024]/`, is meant by it.

    Args:
        patterns: as in `train_shards`.
        parameter: what error messages call them.

    Raises:
        FileNotFoundError: a pattern that no file matches; names it.
        ValueError: another kind of URL, or braces that cannot be read.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            if is_url(pattern) and not urllib.parse.urlsplit(pattern).hostname:
                raise ValueError("expected an address with a host")
            shards = _expanded(pattern) if is_url(pattern) else _matches(pattern.removeprefix("file://"))
            found.update(dict.fromkeys(shards))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{parameter}: {pattern!r}: {error}") from None
    return list(found)


def _expanded(text: str) -> list[str]:
    """All texts that a text with braces stands for."""
    match = _BRACES.search(text)
    before, after = (text[: match.start()], text[match.end() :]) if match else (text, "")
    if "{" in before or "}" in before:
        raise ValueError("expected balanced braces, not nested")
    if not match:
        return [text]
    choices, width = match[1].split(","), 0
    if bounds := _RANGE.fullmatch(match[1]):
        choices, width = range(int(bounds[1]), int(bounds[2]) + 1), len(bounds[1])
    ends = _expanded(after)
    if not 1 <= len(choices) * len(ends) <= MAX_SHARDS:
        raise ValueError(f"expected 1 to {MAX_SHARDS:,} shards, found {len(choices) * len(ends):,}")
    return [f"{before}{str(choice).zfill(width)}{end}" for choice in choices for end in ends]


def _matches(pattern: str) -> Iterator[str]:
    """The files that a path with wildcards and braces names, at least one for each choice of the braces."""
    path = files.from_root(pattern)
    if path.is_file():
        yield str(path)
        return
    there = next(part for part in (path, *path.parents) if part.exists())
    for rest in _expanded(str(path.relative_to(there))):
        matching = [str(there / match) for match in sorted(glob.glob(rest, root_dir=there))]
        shards = [match for match in matching if os.path.isfile(match)]
        if not shards:
            raise FileNotFoundError(
                "expected tar files, as in folder/train-*.tar, or a URL of http, https or file, found none"
                f" that match {rest!r} in {there}; relative paths are read from {files.ROOT}"
            )
        yield from shards


def load_shards(config: DataConfig) -> Dataset:
    """Load the splits of `train_shards`, `val_shards` and `test_shards`; one without shards is not there.

    Each tar is read once, at the first call.  Broken samples are left out, samples of one image are joined,
    and notes say how many.  Images come in the order of the shards; those of val and test are packed like
    those of any data set, those of train are read from the tars during training.

    An image is named as its json says (`name`, as `write_shards` puts it), else as a photo at Flickr or
    COCO by its address, else by its key, with the shard's name before it where the key is a number or taken.

    Args:
        config: its `dataset` is `shards`.

    Raises:
        FileNotFoundError: a pattern that no shard matches, or a shard that is not there.
        ConnectionError: a shard that cannot be fetched.
        ValueError: no shards, a split without samples, more than a hundredth of them broken.
    """
    splits: dict[str, Split] = {}
    source, notes = TarImages(), []
    for split in SPLITS:
        parameter = f"{split}_shards"
        if shards := find_shards(getattr(config, parameter), parameter):
            splits[split] = _load_split(split, index_shards(shards), source, notes)
    if not splits:
        raise ValueError(
            "expected train_shards, val_shards or test_shards, found none; name tar files of one of them"
        )
    digests = {name: sample.sha256 for name, (_, sample) in source.samples.items()}
    held_out = {name: split for name, split in splits.items() if name != "train"}
    images = itertools.chain.from_iterable(split.images for split in (held_out or splits).values())
    sets = {source.samples[image][1].dataset for image in images}
    name = sets.pop() if len(sets) == 1 else None
    return Dataset(
        name if is_name(name) else "shards",
        splits,
        source,
        dataset_fingerprint(splits, digests),
        tuple(notes),
        held_out_fingerprint=dataset_fingerprint(held_out, digests),
    )


def _load_split(split: str, tars: Sequence[Tar], source: TarImages, notes: list[str]) -> Split:
    """One split; its tars and images are added to `source`, what was odd to `notes`.

    Samples of one image are joined.  One is left out as repeated if its captions are there already under the
    same key, as where two tars overlap; equal captions under another key may be two people's.  Images that
    a data set names are as many as their names (two of Flickr8k's have the same bytes).
    """
    once = list({tar.sha256: tar for tar in tars}.values())
    if len(once) < len(tars):
        again = len(tars) - len(once)
        notes.append(f"Read once: {again:,} shards of {split} with the same bytes as another one.")
    notes += _left_out(split, once)
    names: dict[tuple, str] = {}  # image → its name, and below its captions
    captions: dict[tuple, list[str]] = defaultdict(list)
    seen, taken = set(), Counter()
    joined = repeated = 0
    for tar in once:
        source.tars.append(tar)
        for sample in tar.samples:
            image = (sample.sha256, sample.dataset, sample.name if sample.dataset else "")
            pairs = (image, "" if sample.dataset else sample.key, tuple(sample.captions))
            if pairs in seen:
                repeated += 1
                continue
            seen.add(pairs)
            if image in names:
                joined += 1
            else:
                names[image] = _free_name(sample, shard_name(tar.where), source.samples, taken)
                source.samples[names[image]] = (len(source.tars) - 1, sample)
            captions[image] += sample.captions
    if repeated:
        notes.append(
            f"Left out of {split}: {repeated:,} samples that repeat the image and captions of an earlier one."
        )
    if joined:
        notes.append(
            f"Joined {joined:,} samples of {split} to images that other samples show (same bytes, or same"
            f" name in a data set): {len(names):,} images."
        )
    return Split(
        split,
        tuple(names.values()),
        tuple(itertools.chain.from_iterable(captions.values())),
        np.repeat(np.arange(len(names)), [len(texts) for texts in captions.values()]),
        shard_of_image_N=[source.samples[n][0] for n in names.values()] if split == "train" else None,
    )


def _free_name(sample: Sample, shard: str, names: dict, taken: Counter) -> str:
    """A name for an image that no other image of any split has; its last part may hold a photo's id."""
    shard, own = shard.partition(".")[0], sample.name
    if not own:
        # A number for a key counts the samples of these shards, and is no photo's id.
        counts = posixpath.basename(sample.key).isdecimal()
        own = f"{shard}-{sample.key}.{sample.suffix}" if counts else f"{sample.key}.{sample.suffix}"
    name = own
    while name in names:
        taken[shard, own] += 1
        number = taken[shard, own]
        name = f"{shard}/{own}" if number == 1 else f"{shard}-{number}/{own}"
    return name


def _left_out(split: str, tars: Sequence[Tar]) -> list[str]:
    """Notes on what is left out: broken samples and shards, and files that belong to no sample.

    Raises:
        ValueError: no samples, more than a hundredth of them broken or of the tars damaged; names the first.
    """
    good = sum(len(tar.samples) for tar in tars)
    broken = sum(tar.broken.count for tar in tars)
    unused = sum(tar.unused.count for tar in tars)
    damaged = [f"{shown(tar.where)} ({tar.fault})" for tar in tars if tar.fault]
    first = [f"{shard_name(tar.where)}: {text}" for tar in tars for text in tar.broken.first]
    named = _one_line([*damaged[:FIRST], *first[:FIRST]])
    first_unused = _one_line([text for tar in tars for text in tar.unused.first][:FIRST])
    strange = f"{unused:,} files that belong to no sample: {first_unused}"
    if not good or broken > MOST_BROKEN * (good + broken) or len(damaged) > MOST_BROKEN * len(tars):
        raise ValueError(
            f"{split}_shards: expected samples of an image (.jpg or the like) and a caption (.txt, .json), at"
            f" most {MOST_BROKEN:.0%} of them broken, found {good:,} that can be used, {broken:,} broken ones"
            f" and {len(damaged):,} damaged tar files of {len(tars):,} ({named}; {strange}); get these"
            " shards again"
        )
    found = []
    if broken or damaged:
        rest = f" and the rest of {len(damaged):,} damaged shards" if damaged else ""
        found.append(f"Left out of {split}: {broken:,} broken samples{rest}: {named}.")
    return [*found, f"In {split}'s tar files, {strange}."] if unused else found


def _one_line(texts: Sequence[str]) -> str:
    return printable("; ".join(texts)).replace("\n", " ")


# --- writing


def write_shards(
    dataset: Dataset, folder: str | os.PathLike, *, samples_per_shard: int = SAMPLES_PER_SHARD
) -> dict:
    """Write a data set as `train-000000.tar`, `val-…`, `test-…` and `shards.json`.

    Each image is one sample: its file's bytes as `.jpg` where the source reads files, else a lossless
    `.png`; a `.json` with name, captions (all, as published), data set and fingerprint; a `.txt` with
    the first caption.  Images keep their order.  The same data give the same bytes.  Each file is
    complete or not there; `shards.json`, which says that all are, is written last.

    Args:
        dataset: any loaded data set.
        folder: made if it is not there; a relative path is read from the repository's root.
        samples_per_shard: images of a shard; the last one of a split may have fewer.

    Returns:
        What `shards.json` says: data set, and samples, captions, bytes and SHA-256 of each shard.

    Raises:
        FileExistsError: the folder holds shards that this call would not write, or a `shards.json`.
        ValueError: an image without a caption; nothing to write.
        OSError: an image that cannot be read, or the folder cannot be written to.
    """
    folder = from_root(folder)
    captions = {split.name: _captions_by_image(split) for split in dataset.splits.values()}
    shards = {
        f"{split.name}-{number:06d}.tar": (split, range(len(split.images))[start : start + samples_per_shard])
        for split in dataset.splits.values()
        for number, start in enumerate(range(0, len(split.images), samples_per_shard))
    }
    if not shards:
        raise ValueError(f"expected images to write, found none in data set {dataset.name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    strange = sorted(
        name for name in os.listdir(folder) if _SHARD_NAME.fullmatch(name) and name not in shards
    )
    if strange:
        raise FileExistsError(
            f"expected a folder without finished or other shards, found {strange[0]} ({len(strange)} in all)"
            f" in {shown(folder)}; choose another folder, or delete them"
        )
    listed = {}
    for name, (split, rows) in progress(shards.items(), desc=f"writing {dataset.name}", unit="shard"):
        _write_shard(folder / name, dataset, split, rows, captions[split.name])
        listed[name] = {
            "split": split.name,
            "samples": len(rows),
            "captions": sum(len(captions[split.name][row]) for row in rows),
            "bytes": (folder / name).stat().st_size,
            "sha256": file_sha256(folder / name),
        }
    manifest = {"format": FORMAT, "dataset": dataset.identity, "shards": listed}
    write_text_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _captions_by_image(split: Split) -> list[list[str]]:
    captions: list[list[str]] = [[] for _ in split.images]
    for caption, row in zip(split.captions, split.image_of_caption_M.tolist()):
        captions[row].append(caption)
    if [] in captions:
        raise ValueError(
            f"expected a caption of every image, found none of {split.images[captions.index([])]!r} in"
            f" {split.name} ({captions.count([])} in all); shards hold pairs: leave such images out"
        )
    return captions


def _write_shard(path: Path, dataset: Dataset, split: Split, rows: range, captions: list[list[str]]) -> None:
    """Write one shard, whole or not at all."""
    with written_whole(path, alone=True) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for row in rows:
            suffix, content = _image_bytes(dataset.source, split.images[row])
            facts = {
                "name": split.images[row],
                "captions": captions[row],
                "dataset": dataset.name,
                "fingerprint": dataset.fingerprint,
            }
            parts = {
                suffix: content,
                "json": json.dumps(facts, ensure_ascii=False).encode(),
                "txt": captions[row][0].encode(),
            }
            for ending in sorted(parts):
                member = tarfile.TarInfo(f"{row:09d}.{ending}")  # of time 0 and nobody
                member.size = len(parts[ending])
                archive.addfile(member, io.BytesIO(parts[ending]))


def _image_bytes(source: ImageSource, name: str) -> tuple[str, bytes]:
    """Suffix and bytes of an image's file, or of a PNG of it where there is no file."""
    if hasattr(source, "read"):
        content = source.read(name)
        return image_suffix(content, name), content
    file = io.BytesIO()
    source.load(name).save(file, format="PNG")
    return "png", file.getvalue()
