"""The val and test splits of shards: an ordinary data set whose images are read out of tar files."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from mmlib import paths
from mmlib.config import DataConfig
from mmlib.data.dataset import Dataset, Split
from mmlib.data.decoding import decode_image
from mmlib.data.fingerprint import dataset_fingerprint
from mmlib.data.shards.fetching import Retry, fetch, measure
from mmlib.data.shards.members import Broken, read_file, read_meta, walk_samples
from mmlib.data.shards.places import Place, find_shards
from mmlib.data.shards.source import TarImages
from mmlib.data.shards.verdicts import FIRST, MEANING, MOST_BROKEN
from mmlib.files import write_text_atomic

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is listed changes
WORKERS = 8  # shards listed at once


@dataclass(frozen=True)
class _Listed:
    """One image of a shard: captions, names and place of its file."""

    key: str
    name: str
    dataset: str | None
    captions: list[str]
    offset: int
    size: int
    digest: str


@dataclass(frozen=True)
class _Listing:
    """What a shard holds: its images, broken samples as (reason, key), what is wrong with the file itself."""

    images: list[_Listed]
    broken: list[tuple[str, str]]
    fault: str | None


def load_shards(config: DataConfig, retry: Retry | None = None) -> Dataset:
    """The splits `val` and `test` of `config.val_shards` and `config.test_shards`; `train` is a stream.

    Images come in the order of the shards.  An image is named as its json says (`name`, as
    `write_shards` puts it), else as a photo at Flickr or COCO by its address, else by shard and key.
    A split without shards is not there.  Every image is decoded once, at the first call; broken
    samples are left out and noted.  Shards behind URLs are fetched once and kept.

    Args:
        config: its `dataset` is `shards`.
        retry: how often shards behind URLs are tried.

    Raises:
        FileNotFoundError: a pattern that no shard matches, or a shard that is not there.
        ConnectionError: a shard that cannot be fetched.
        ValueError: no shards for val, a split without samples, more than a hundredth of them broken.
    """
    retry = retry or Retry()
    splits: dict[str, Split] = {}
    members, digests, notes, names = {}, {}, [], Counter()
    sets: set[str | None] = set()
    for split in ("val", "test"):
        places = find_shards(getattr(config, f"{split}_shards"), f"{split}_shards")
        if not places:
            continue
        files = [_local(place, retry) for place in places]
        listings = _list_shards(files)
        notes += _check_broken(split, places, listings)
        images, captions, image_of_caption = [], [], []
        for file, listing in zip(files, listings):
            for listed in listing.images:
                name = _unique(listed, file, names, members)
                members[name] = (str(file), listed.offset, listed.size)
                digests[name] = listed.digest
                image_of_caption += [len(images)] * len(listed.captions)
                captions += listed.captions
                images.append(name)
                sets.add(listed.dataset)
        splits[split] = Split(split, tuple(images), tuple(captions), image_of_caption)
    if not splits:
        raise ValueError("expected val_shards or test_shards, found neither; name tar files of one of them")
    name = sets.pop() if len(sets) == 1 else None
    if name is None or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        name = "shards"
    return Dataset(name, splits, TarImages(members), dataset_fingerprint(splits, digests), tuple(notes))


def _unique(listed: _Listed, file: Path, names: Counter, taken: dict) -> str:
    name = listed.name
    if name in taken:
        name = f"{file.stem}/{name}"
    names[name] += 1
    while name in taken:
        names[name] += 1
        name = f"{name}#{names[name]}"
    return name


def _check_broken(split: str, places: Sequence[Place], listings: Sequence[_Listing]) -> list[str]:
    """Notes on what is left out of a split.

    Raises:
        ValueError: a split without samples, or more than a hundredth of them broken.
    """
    good = sum(len(listing.images) for listing in listings)
    broken = [
        f"{place.name}: {key} ({MEANING[reason]})"
        for place, listing in zip(places, listings)
        for reason, key in listing.broken
    ]
    broken += [f"{place} ({listing.fault})" for place, listing in zip(places, listings) if listing.fault]
    first = ", ".join(broken[:FIRST])
    if not good:
        raise ValueError(
            f"{split}_shards: expected samples of an image and a caption, found none in {len(places)} shards"
            f"{f': {first}' if broken else ''}; name other shards"
        )
    if len(broken) > MOST_BROKEN * (good + len(broken)):
        raise ValueError(
            f"{split}_shards: expected at most {MOST_BROKEN:.0%} broken samples, found {len(broken):,} of"
            f" {good + len(broken):,}: {first}; get these shards again"
        )
    return [f"Left out of {split}: {len(broken)} broken samples or shards: {first}."] if broken else []


def _list_shards(files: Sequence[Path]) -> list[_Listing]:
    """What each file holds; from the cache while its size and time are the same."""
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        listings = pool.map(_list_or_read, files)
        return list(tqdm(listings, total=len(files), desc="listing", unit="shard", disable=None, delay=2))


def _list_or_read(file: Path) -> _Listing:
    status = file.stat()
    key = json.dumps([FORMAT, str(file), status.st_size, status.st_mtime_ns])
    cache = paths.CACHE / "shards" / "listings" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        found = json.loads(cache.read_bytes())
        return _Listing(
            [_Listed(**listed) for listed in found["images"]],
            [(reason, key) for reason, key in found["broken"]],
            found["fault"],
        )
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s) and is made anew", cache, error)
    listing = _list_shard(file)
    try:
        write_text_atomic(cache, json.dumps(asdict(listing)))
    except OSError as error:
        logger.warning("what shards hold is not kept for the next time: %s", error)
    return listing


def _list_shard(path: Path) -> _Listing:
    images, broken, fault = [], [], None
    with open(path, "rb") as file:
        try:
            for sample in walk_samples(file):
                try:
                    meta = read_meta(file, sample)
                    content = read_file(file, sample, sample.image_suffix)
                    decode_image(content, sample.key)
                except Broken as error:
                    broken.append((error.reason, sample.key))
                except ValueError:
                    broken.append(("image", sample.key))
                else:
                    name = meta.name or f"{path.stem}/{sample.key}.{sample.image_suffix}"
                    digest = hashlib.sha256(content).hexdigest()
                    place = sample.files[sample.image_suffix]
                    images.append(
                        _Listed(sample.key, name, meta.dataset, list(meta.captions), *place, digest)
                    )
        except Broken as error:
            fault = str(error)
    return _Listing(images, broken, fault)


def _local(place: Place, retry: Retry) -> Path:
    """The shard as a file on this machine; a remote one is fetched and kept while it stays the same there."""
    if not place.is_url:
        return Path(place.where)
    key = hashlib.sha256(json.dumps([place.where, *measure(place, retry)]).encode()).hexdigest()[:16]
    path = paths.CACHE / "shards" / "fetched" / f"{key}-{place.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            temporary = path.with_name(f"{path.name}.part")
            try:
                with open(temporary, "wb") as file:
                    fetch(place.where, file, retry)
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return path
