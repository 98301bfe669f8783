"""Writing a data set as tar shards, which this and other tools of the webdataset layout read."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mmlib.data.dataset import Dataset, ImageSource, Split
from mmlib.data.decoding import image_suffix
from mmlib.data.image_folder import ImageFolder
from mmlib.data.tar_images import TarImages
from mmlib.files import replace_flushed, write_text_atomic
from mmlib.paths import from_root, shown

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
