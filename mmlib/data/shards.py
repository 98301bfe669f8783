"""Tar shards as an ordinary data set, and any data set as tar shards.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmlib.config import DataConfig
from mmlib.data.dataset import SPLITS, Dataset, ImageSource, Split, dataset_fingerprint
from mmlib.data.decoding import image_suffix
from mmlib.data.leaks import photo_id
from mmlib.data.shard_files import Tar, TarImages, find_shards
from mmlib.data.shard_index import FIRST, Content, Sample, index_shards
from mmlib.files import from_root, printable, replace_flushed, shown, write_text_atomic

MOST_BROKEN = 0.01  # share of broken samples that is still passed over
MAX_NAME = 255  # characters of an image's name

MANIFEST = "shards.json"
FORMAT = 2  # of the manifest
SAMPLES_PER_SHARD = 1_000

_SHARD_NAME = re.compile(r"(train|val|test)-[0-9]{6}\.tar")

Indexes = Sequence[tuple[Tar, Content]]


@dataclass
class _Image:
    """An image with the captions of all samples that show it."""

    sample: Sample
    tar: int
    captions: list[str]
    keys: set[str]


@dataclass
class _Loading:
    """What all splits share while they are loaded: images by name, tars, notes."""

    images: dict[str, _Image] = field(default_factory=dict)
    tars: list[Tar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    loading, splits = _Loading(), {}
    for split in SPLITS:
        parameter = f"{split}_shards"
        if places := find_shards(getattr(config, parameter), parameter):
            splits[split] = _split(split, index_shards(places), loading)
    if not splits:
        raise ValueError(
            "expected train_shards, val_shards or test_shards, found none; name tar files of one of them"
        )
    samples = {name: image.sample for name, image in loading.images.items()}
    digests = {name: sample.sha256 for name, sample in samples.items()}
    held_out = {name: split for name, split in splits.items() if name != "train"}
    sets = {samples[name].dataset for split in (held_out or splits).values() for name in split.images}
    name = (sets.pop() if len(sets) == 1 else None) or ""
    places = [
        (image.tar, s.offset, s.size, s.look) for image in loading.images.values() for s in [image.sample]
    ]
    source = TarImages(
        tuple(loading.tars),
        {name: row for row, name in enumerate(samples)},
        np.array(places, dtype=np.int64),
        np.frombuffer(bytes.fromhex("".join(digests.values())), dtype=np.uint8).reshape(-1, 32),
    )
    return Dataset(
        name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) else "shards",
        splits,
        source,
        dataset_fingerprint(splits, digests),
        tuple(loading.notes),
        held_out_fingerprint=dataset_fingerprint(held_out, digests),
    )


def _split(split: str, indexes: Indexes, loading: _Loading) -> Split:
    once = list({tar.sha256: (tar, content) for tar, content in reversed(indexes)}.values())[::-1]
    if len(once) < len(indexes):
        loading.notes.append(
            f"Read once: {len(indexes) - len(once):,} shards of {split} with the same bytes as another one."
        )
    loading.notes += _check_broken(split, once)
    images, joined, repeated = _joined(once, loading)
    if repeated:
        loading.notes.append(
            f"Left out of {split}: {repeated:,} samples that repeat the image and captions of an earlier one."
        )
    if joined:
        loading.notes.append(
            f"Joined {joined:,} samples of {split} to images that other samples show (same bytes, or same"
            f" name in a data set): {len(images):,} images."
        )
    captions = [image.captions for image in images.values()]
    return Split(
        split,
        tuple(images),
        tuple(itertools.chain.from_iterable(captions)),
        np.repeat(np.arange(len(images)), [len(texts) for texts in captions]),
        shard_of_image_N=np.array([image.tar for image in images.values()]) if split == "train" else None,
    )


def _joined(indexes: Indexes, loading: _Loading) -> tuple[dict[str, _Image], int, int]:
    """The images of a split by name, each with the captions of all samples that show it.

    Also how many samples were joined to the images of others, and how many were left out as repeated: those
    whose captions are there already under the same key, as where two tars overlap.  Equal captions under
    another key may be two people's; not so in shards of `write_shards`, where a sample has all captions.
    """
    images: dict[str, _Image] = {}
    known: dict[tuple, _Image] = {}
    joined = repeated = 0
    for tar, content in indexes:
        loading.tars.append(tar)
        for sample in content.samples:
            # Images that a data set names are as many as their names: two of Flickr8k's have the same bytes.
            is_named = bool(sample.dataset and sample.name)
            sign = (sample.dataset, sample.name) if is_named else (sample.sha256,)
            image = known.get(sign)
            if image is None or (is_named and image.sample.sha256 != sample.sha256):
                name = _free_name(sample, tar, loading.images)
                image = _Image(sample, len(loading.tars) - 1, list(sample.captions), {sample.key})
                images[name] = loading.images[name] = image
                known.setdefault(sign, image)
            elif (is_named or sample.key in image.keys) and set(sample.captions) <= set(image.captions):
                repeated += 1
            else:
                image.captions += sample.captions
                image.keys.add(sample.key)
                joined += 1
    return images, joined, repeated


def _free_name(sample: Sample, tar: Tar, taken: dict) -> str:
    """A name for an image that no other image of any split has; its last part may hold a photo's id."""
    shard = tar.place.name.partition(".")[0]
    own = sample.name
    if not own and sample.url and photo_id(sample.url):
        own = posixpath.basename(urllib.parse.urlsplit(sample.url).path)
    if not own or len(own) > MAX_NAME:
        # A number for a key counts the samples of these shards, and is no photo's id.
        counts = posixpath.basename(sample.key).isdecimal()
        own = f"{shard}-{sample.key}.{sample.suffix}" if counts else f"{sample.key}.{sample.suffix}"
    folders = itertools.chain([shard], (f"{shard}-{number}" for number in itertools.count(2)))
    # A key is there once in a tar, so not even a million images that are all called `dog` take long.
    names = itertools.chain([own, f"{shard}/{own}"], (f"{folder}/{sample.key}/{own}" for folder in folders))
    return next(name for name in names if name not in taken)


def _check_broken(split: str, indexes: Indexes) -> list[str]:
    """Notes on what is left out: broken samples and shards, and files that belong to no sample.

    A shard that is cut short or damaged counts as if it were as long as the others.

    Raises:
        ValueError: no samples, or more than a hundredth of them broken; names the first ones.
    """
    contents = [content for _, content in indexes]
    good = sum(len(content.samples) for content in contents)
    broken = sum(content.broken.count for content in contents)
    unused = sum(content.unused.count for content in contents)
    lengths = [len(content.samples) + content.broken.count for content in contents]
    whole = [length for length, content in zip(lengths, contents) if not content.fault]
    mean = round(sum(whole) / len(whole)) if whole else 0
    damaged = [max(1, mean - length) for length, content in zip(lengths, contents) if content.fault]
    lost = broken + sum(damaged)
    first = [f"{tar.place.name}: {text}" for tar, content in indexes for text in content.broken.first][:FIRST]
    first += [f"{tar.place} ({content.fault})" for tar, content in indexes if content.fault][:FIRST]
    named = printable("; ".join(first)).replace("\n", " ")
    others = [text for content in contents for text in content.unused.first][:FIRST]
    strange = printable(f"{unused:,} files that belong to no sample: {'; '.join(others)}").replace("\n", " ")
    if not good:
        raise ValueError(
            f"{split}_shards: expected samples of an image and a caption, found none in {len(indexes)} shards"
            f" ({named or 'none broken'}; {strange}); name tar files of .jpg with .txt or .json"
        )
    if lost > MOST_BROKEN * (good + lost):
        raise ValueError(
            f"{split}_shards: expected at most {MOST_BROKEN:.0%} broken samples, found {lost:,} of"
            f" {good + lost:,}: {named}; get these shards again"
        )
    notes = []
    if lost:
        rest = f" and the rest of {len(damaged):,} damaged shards" if damaged else ""
        notes.append(f"Left out of {split}: {broken:,} broken samples{rest}: {named}.")
    return [*notes, f"In {split}'s tar files, {strange}."] if unused else notes


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
    shards = {
        f"{split.name}-{number:06d}.tar": (split, start)
        for split in dataset.splits.values()
        for number, start in enumerate(range(0, len(split.images), samples_per_shard))
    }
    if not shards:
        raise ValueError(f"expected images to write, found none in data set {dataset.name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, shards.keys())
    captions = {split.name: _captions_by_image(dataset, split) for split in dataset.splits.values()}
    listed = {}
    total = len(dataset.images())
    with tqdm(total=total, desc=f"writing {dataset.name}", unit="image", disable=None) as bar:
        for name, (split, start) in shards.items():
            rows = range(start, min(start + samples_per_shard, len(split.images)))
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


def _check_folder(folder: Path, names: Iterable[str]) -> None:
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
    if hasattr(source, "read"):
        content = source.read(name)
        return image_suffix(content, name), content
    file = io.BytesIO()
    source.load(name).save(file, format="PNG")
    return "png", file.getvalue()
