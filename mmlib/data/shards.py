"""Tar shards as an ordinary data set, from the index of each tar.

Shapes: N images, M captions of a split.
"""

import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import tarfile
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmlib.config import DataConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split, dataset_fingerprint
from mmlib.data.decoding import image_suffix
from mmlib.data.folders import ImageFolder
from mmlib.data.leaks import near_duplicates
from mmlib.data.shard_files import Retry, find_shards
from mmlib.data.shard_index import (
    BROKEN,
    FIRST,
    UNUSED,
    FetchedTars,
    Found,
    Sample,
    ShardIndex,
    Tar,
    TarImages,
    index_shards,
)
from mmlib.files import printable, replace_flushed, write_text_atomic
from mmlib.paths import from_root, shown

__all__ = ["load_shards", "write_shards"]

MOST_BROKEN = 0.01  # share of broken samples that is still passed over
MAX_NAME = 255  # characters of an image's name

_PHOTO_HOSTS = ("flickr.com", "staticflickr.com", "cocodataset.org")


@dataclass
class _Image:
    """An image with the captions of all samples that show it."""

    name: str
    sample: Sample
    tar: int
    captions: list[str]
    keys: set[str]


@dataclass
class _Loading:
    """What all splits share while they are loaded: names that are taken, tars, notes."""

    names: dict[str, _Image] = field(default_factory=dict)
    tars: list[Tar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_shards(config: DataConfig, retry: Retry | None = None) -> Dataset:
    """Load the splits of `train_shards`, `val_shards` and `test_shards`; one without shards is not there.

    Each tar is read once, at the first call.  Broken samples are left out, samples of one image are joined,
    and notes say how many.  Images come in the order of the shards; those of val and test are packed like
    those of any data set, those of train are read from the tars during training.

    An image is named as its json says (`name`, as `write_shards` puts it), else as a photo at Flickr or
    COCO by its address, else by its key, with the shard's name before it where the key is a number or taken.

    Args:
        config: its `dataset` is `shards`.
        retry: how often shards behind URLs are tried.

    Raises:
        FileNotFoundError: a pattern that no shard matches, or a shard that is not there.
        ConnectionError: a shard that cannot be fetched.
        ValueError: no shards, a split without samples, more than a hundredth of them broken.
    """
    retry = retry or Retry()
    loading = _Loading()
    splits = {}
    for split in SPLITS:
        parameter = f"{split}_shards"
        if places := find_shards(getattr(config, parameter), parameter):
            indexes = index_shards(places, split != "train", retry)
            splits[split] = _split(split, indexes, loading)
    if not splits:
        raise ValueError(
            "expected train_shards, val_shards or test_shards, found none; name tar files of one of them"
        )
    digests = {name: image.sample.sha256 for name, image in loading.names.items()}
    held_out = {name: split for name, split in splits.items() if name != "train"}
    return Dataset(
        _name_of(loading, held_out or splits),
        splits,
        _source(loading, retry),
        dataset_fingerprint(splits, digests),
        tuple(loading.notes),
        held_out_fingerprint=dataset_fingerprint(held_out, digests),
    )


def _name_of(loading: _Loading, splits: dict[str, Split]) -> str:
    """The name of the data set that all images of these splits come from, `shards` if there is none."""
    names = {loading.names[image].sample.dataset for split in splits.values() for image in split.images}
    name = names.pop() if len(names) == 1 else None
    return name if name and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) else "shards"


def _source(loading: _Loading, retry: Retry) -> TarImages:
    images = loading.names.values()
    return TarImages(
        tuple(loading.tars),
        {name: row for row, name in enumerate(loading.names)},
        np.array([image.tar for image in images], dtype=np.int64),
        np.array([[image.sample.offset, image.sample.size] for image in images], dtype=np.int64),
        np.frombuffer(
            b"".join(bytes.fromhex(image.sample.sha256) for image in images), dtype=np.uint8
        ).reshape(-1, 32),
        np.array([image.sample.look for image in images], dtype=np.int64),
        FetchedTars(retry),
    )


def _split(split: str, indexes: Sequence[ShardIndex], loading: _Loading) -> Split:
    _check_broken(split, indexes)
    once = list({index.tar.sha256: index for index in reversed(indexes)}.values())[::-1]
    if len(once) < len(indexes):
        loading.notes.append(
            f"Read once: {len(indexes) - len(once):,} shards of {split} with the same bytes as another one."
        )
    loading.notes += _notes_on_left_out(split, once)
    images, joined, repeated = _joined(once, loading)
    if repeated:
        loading.notes.append(
            f"Left out of {split}: {repeated:,} samples that repeat the image and captions of an earlier one."
        )
    if joined:
        loading.notes.append(
            f"Joined {joined:,} samples of {split} to images that other samples show (same bytes, or same"
            f" address or name and same look): {len(images):,} images."
        )
    image_of_caption_M = np.repeat(np.arange(len(images)), [len(image.captions) for image in images])
    return Split(
        split,
        tuple(image.name for image in images),
        tuple(caption for image in images for caption in image.captions),
        image_of_caption_M,
        shard_of_image_N=np.array([image.tar for image in images]) if split == "train" else None,
    )


def _joined(indexes: Sequence[ShardIndex], loading: _Loading) -> tuple[list[_Image], int, int]:
    """The images of a split, each with the captions of all samples that show it.

    Also how many samples were joined to the images of others, and how many were left out as repeated.
    """
    images: list[_Image] = []
    known: dict[tuple, _Image] = {}
    joined = repeated = 0
    for index in indexes:
        tar = len(loading.tars)
        loading.tars.append(index.tar)
        for sample in index.samples:
            signs = _signs(sample)
            found = (known[sign] for sign in signs if sign in known)
            image = next((other for other in found if _is_same(other, sample, index.tar, loading)), None)
            if image and _repeats(image, sample):
                repeated += 1
                continue
            if image:
                image.captions += sample.captions
                image.keys.add(sample.key)
                joined += 1
                continue
            name = _free_name(sample, index.tar, loading.names)
            image = loading.names[name] = _Image(name, sample, tar, list(sample.captions), {sample.key})
            known.update((sign, image) for sign in signs if sign not in known)
            images.append(image)
    return images, joined, repeated


def _repeats(image: _Image, sample: Sample) -> bool:
    """Whether a sample of this image was there before, as where two tars overlap.

    Two samples with keys of their own may be two people's equal captions, as in one-sample-per-caption sets;
    not so those of `write_shards`, which puts all captions of an image into one.
    """
    is_again = sample.key in image.keys or (sample.dataset and sample.name)
    return bool(is_again) and set(sample.captions) <= set(image.captions)


def _signs(sample: Sample) -> list[tuple]:
    """By what it is found that two samples may show one image.

    Images that are named as a data set publishes them are as many as their names, though some may have
    the same bytes, as two of Flickr8k's have.
    """
    if sample.dataset and sample.name:
        return [("name", sample.dataset, sample.name)]
    is_address = sample.url and sample.url.startswith(("http://", "https://"))
    return [("bytes", sample.sha256), *([("address", sample.url)] if is_address else [])]


def _is_same(image: _Image, sample: Sample, tar: Tar, loading: _Loading) -> bool:
    """Same bytes or look: an address alone may be that of a page, or of nothing."""
    if image.sample.sha256 == sample.sha256:
        return True
    one_1HWC = loading.tars[image.tar].look(image.sample.look)
    return len(near_duplicates(one_1HWC, tar.look(sample.look))) > 0


def _free_name(sample: Sample, tar: Tar, taken: dict) -> str:
    """A name for an image that no other image of any split has; its last part may hold a photo's id."""
    shard = tar.place.name.partition(".")[0]
    own = next((name for name in (sample.name, _name_in(sample.url)) if name and len(name) <= MAX_NAME), None)
    if own is None:
        # A number for a key counts the samples of these shards, and is no photo's id.
        counts = posixpath.basename(sample.key).isdecimal()
        own = f"{shard}-{sample.key}.{sample.suffix}" if counts else f"{sample.key}.{sample.suffix}"
    folders = itertools.chain([shard], (f"{shard}-{number}" for number in itertools.count(2)))
    # A key is there once in a tar, so not even a million images that are all called `dog` take long.
    names = itertools.chain([own, f"{shard}/{own}"], (f"{folder}/{sample.key}/{own}" for folder in folders))
    return next(name for name in names if name not in taken)


def _name_in(url: str | None) -> str | None:
    """The file name in the address of a photo at a host whose file names hold ids.

    img2dataset's keys are numbers of its own, and numbers in other hosts' addresses mean nothing.
    """
    try:
        parts = urllib.parse.urlsplit(url or "")
        host = parts.hostname or ""
    except ValueError:
        return None
    known = any(host == one or host.endswith(f".{one}") for one in _PHOTO_HOSTS)
    return (parts.path.rsplit("/", 1)[-1] or None) if known else None


def _check_broken(split: str, indexes: Sequence[ShardIndex]) -> None:
    """Passes if there are samples, and at most a hundredth of them is broken.

    A shard that is cut short or damaged counts as if it were as long as the others.

    Raises:
        ValueError: names the first broken ones.
    """
    good = sum(len(index.samples) for index in indexes)
    broken = sum(count for index in indexes for count, _ in index.broken.values())
    whole = [_length(index) for index in indexes if not index.fault]
    mean = round(sum(whole) / len(whole)) if whole else 0
    lost = sum(max(1, mean - _length(index)) for index in indexes if index.fault)
    first = "; ".join(_first_broken(indexes))
    if not good:
        unused = _totals(index.unused for index in indexes)
        others = ", ".join(f"{count:,} {UNUSED[reason]}" for reason, (count, _) in unused.items())
        raise ValueError(
            f"{split}_shards: expected samples of an image and a caption, found none in {len(indexes)} shards"
            f"{f': {first}' if first else ''}{f'; besides, {others}' if others else ''}; name tar files of"
            " .jpg with .txt or .json"
        )
    if broken + lost > MOST_BROKEN * (good + broken + lost):
        raise ValueError(
            f"{split}_shards: expected at most {MOST_BROKEN:.0%} broken samples, found {broken + lost:,} of"
            f" {good + broken + lost:,}: {first}; get these shards again"
        )


def _length(index: ShardIndex) -> int:
    return len(index.samples) + sum(count for count, _ in index.broken.values())


def _first_broken(indexes: Sequence[ShardIndex]) -> list[str]:
    """The first broken samples with the reason, and the first damaged shards."""
    samples = [
        f"{index.tar.place.name}: {key} ({BROKEN[reason]})"
        for index in indexes
        for reason, (_, first) in index.broken.items()
        for key in first
    ]
    shards = [f"{index.tar.place} ({index.fault})" for index in indexes if index.fault]
    return [printable(text).replace("\n", " ") for text in samples[:FIRST] + shards[:FIRST]]


def _notes_on_left_out(split: str, indexes: Sequence[ShardIndex]) -> Iterator[str]:
    """A sentence on broken samples and shards, and one on files that belong to no sample."""
    broken = sum(count for index in indexes for count, _ in index.broken.values())
    faults = sum(index.fault is not None for index in indexes)
    if broken or faults:
        damaged = f" and the rest of {faults:,} damaged shards" if faults else ""
        yield (
            f"Left out of {split}: {broken:,} broken samples{damaged}: {'; '.join(_first_broken(indexes))}."
        )
    unused = _totals(index.unused for index in indexes)
    if unused:
        kinds = "; ".join(
            f"{count:,} {UNUSED[reason]} ({printable(', '.join(first))})"
            for reason, (count, first) in unused.items()
        )
        yield f"Members of {split}'s tar files that belong to no sample: {kinds}.".replace("\n", " ")


def _totals(found: Iterator[Found]) -> Found:
    """Counts and first names of several shards together."""
    counts, names = Counter(), {}
    for one in found:
        for reason, (count, first) in one.items():
            counts[reason] += count
            names[reason] = [*names.get(reason, []), *first][:FIRST]
    return {reason: (count, names[reason]) for reason, count in counts.items()}


MANIFEST = "shards.json"
FORMAT = 2  # of the manifest
SAMPLES_PER_SHARD = 1_000

_SHARD_NAME = re.compile(r"(train|val|test)-[0-9]{6}\.tar")


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
        ValueError: an image without a caption; fewer than 1 sample per shard; nothing to write.
        OSError: an image that cannot be read, or the folder cannot be written to.
    """
    folder = from_root(folder)
    if samples_per_shard < 1:
        raise ValueError(f"expected at least 1 sample per shard, found {samples_per_shard}")
    shards = list(_shards(dataset, samples_per_shard))
    if not shards:
        raise ValueError(f"expected images to write, found none in data set {dataset.name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, [name for name, _, _ in shards])
    captions = {split: _captions_by_image(dataset, dataset.splits[split]) for split in dataset.splits}
    listed = {}
    bar = tqdm(total=len(dataset.images()), desc=f"writing {dataset.name}", unit="image", disable=None)
    with bar:
        for name, split, rows in shards:
            path = folder / name
            _write_shard(path, dataset, split, rows, captions[split.name], bar)
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            listed[name] = {
                "split": split.name,
                "samples": len(rows),
                "captions": sum(len(captions[split.name][row]) for row in rows),
                "bytes": path.stat().st_size,
                "sha256": sha256,
            }
    manifest = {"format": FORMAT, "dataset": dataset.identity, "shards": listed}
    write_text_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _shards(dataset: Dataset, samples_per_shard: int) -> Iterator[tuple[str, Split, range]]:
    """Name, split and image rows of each shard."""
    for split in dataset.splits.values():
        for number, start in enumerate(range(0, len(split.images), samples_per_shard)):
            stop = min(start + samples_per_shard, len(split.images))
            yield f"{split.name}-{number:06d}.tar", split, range(start, stop)


def _check_folder(folder: Path, names: list[str]) -> None:
    there = {path.name for path in folder.iterdir()}
    if MANIFEST in there:
        raise FileExistsError(
            f"expected a folder to write shards to, found finished ones in {shown(folder)}; choose another"
            f" folder, or delete its {MANIFEST} to write them again"
        )
    strange = sorted(name for name in there - set(names) if _SHARD_NAME.fullmatch(name))
    if strange:
        raise FileExistsError(
            f"expected a folder without other shards, found {strange[0]} ({len(strange)} in all) in"
            f" {shown(folder)}, which would be taken for a part of these; choose another folder"
        )


def _captions_by_image(dataset: Dataset, split: Split) -> list[list[str]]:
    captions: list[list[str]] = [[] for _ in split.images]
    for caption, row in zip(split.captions, split.image_of_caption_M.tolist()):
        captions[row].append(caption)
    silent = [image for image, texts in zip(split.images, captions) if not texts]
    if silent:
        raise ValueError(
            f"expected a caption of every image, found none of {silent[0]!r} in {split.name} of"
            f" {dataset.name!r} ({len(silent)} in all); shards hold pairs: leave such images out"
        )
    return captions


def _write_shard(
    path: Path, dataset: Dataset, split: Split, rows: range, captions: list[list[str]], bar: tqdm
) -> None:
    """Write one shard, whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for row in rows:
                    suffix, content = _image_bytes(dataset.source, split.images[row])
                    facts = {
                        "name": split.images[row],
                        "captions": captions[row],
                        "dataset": dataset.name,
                        "fingerprint": dataset.fingerprint,
                    }
                    files = {
                        suffix: content,
                        "json": json.dumps(facts, ensure_ascii=False).encode(),
                        "txt": captions[row][0].encode(),
                    }
                    for ending in sorted(files):
                        member = tarfile.TarInfo(f"{row:09d}.{ending}")  # of time 0 and nobody
                        member.size = len(files[ending])
                        archive.addfile(member, io.BytesIO(files[ending]))
                    bar.update()
            file.flush()
            os.fsync(file.fileno())
        replace_flushed(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _image_bytes(source: ImageSource, name: str) -> tuple[str, bytes]:
    """Suffix and bytes of an image's file, or of a PNG of it where there is no file."""
    if isinstance(source, ImageFolder | TarImages):
        content = source.read(name)
        return image_suffix(content, name), content
    file = io.BytesIO()
    source.load(name).save(file, format="PNG")
    return "png", file.getvalue()
