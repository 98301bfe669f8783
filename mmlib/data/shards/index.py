"""What a list of shards holds: samples and captions, counted once and kept under `data/cache/`.

Counts come from the `shards.json` beside the shards where its sizes are those of the files; otherwise
from the headers and texts of each tar, which a remote shard is fetched for.
"""

import hashlib
import json
import logging
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from mmlib import paths
from mmlib.data.shards.fetching import Retry, measure, open_shard, read_if_there
from mmlib.data.shards.members import Broken, read_meta, walk_samples
from mmlib.data.shards.places import Place
from mmlib.files import write_text_atomic

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is counted changes
MANIFEST = "shards.json"
ASKING = 16  # shards whose size is asked for at once


@dataclass(frozen=True)
class ShardCount:
    """What one shard holds.

    Attributes:
        captions_S: (S,) uint16, captions of each of its samples; 0 for a broken one.
        size: bytes of its file.
        broken: number in the shard, reason and key of the samples that are known to be broken.
        fault: what is wrong with the file itself; None if it is whole.
        lost: how many samples the file lacks for that, estimated where nothing says.
    """

    captions_S: np.ndarray
    size: int
    broken: tuple[tuple[int, str, str], ...] = ()
    fault: str | None = None
    lost: int = 0


@dataclass(frozen=True)
class ShardIndex:
    """What a list of shards holds; samples are numbered through all of them, in the order of the list."""

    places: tuple[Place, ...]
    counts: tuple[ShardCount, ...]
    marks: tuple[str, ...]  # change when the content of a shard does

    @cached_property
    def samples(self) -> list[int]:
        """Samples of each shard, broken ones included."""
        return [len(count.captions_S) for count in self.counts]

    @cached_property
    def first(self) -> list[int]:
        """Number of each shard's first sample, and behind them the number of all samples."""
        return np.cumsum([0, *self.samples]).tolist()

    @property
    def images(self) -> int:
        """Samples with captions."""
        return sum(int(np.count_nonzero(count.captions_S)) for count in self.counts)

    @cached_property
    def captions(self) -> int:
        """Captions of all samples: the pairs of an epoch."""
        return sum(int(count.captions_S.sum(dtype=np.int64)) for count in self.counts)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over names, sizes and counts of the shards in their order."""
        content = [
            [place.name, count.size, samples, int(count.captions_S.sum(dtype=np.int64))]
            for place, count, samples in zip(self.places, self.counts, self.samples)
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def index_shards(places: Sequence[Place], retry: Retry, workers: int) -> ShardIndex:
    """Counts shards, or reads the counts of an earlier call while size and time of the files are the same.

    Of several processes that want the same counts one counts and the others wait.

    Args:
        places: from `find_shards`.
        retry: for shards behind URLs.
        workers: shards counted at once.

    Raises:
        FileNotFoundError, ConnectionError: a shard that is not there or cannot be fetched.
        ValueError: not one sample with a caption.
    """
    with ThreadPoolExecutor(ASKING) as pool:
        measures = list(pool.map(lambda place: measure(place, retry), places))
    manifests = {folder: _read_manifest(folder, retry) for folder in {p.folder for p in places}}
    listed = [manifests[place.folder].get(place.name) for place in places]
    counts = [
        known if known and measured[0] in (None, known.size) else _read_cached(place, measured)
        for place, measured, known in zip(places, measures, listed)
    ]
    if None in counts:
        folder = paths.CACHE / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "index.lock"), ThreadPoolExecutor(workers) as pool:
            tasks = zip(places, measures, counts)
            counted = pool.map(lambda task: task[2] or _count_and_keep(*task[:2], retry), tasks)
            counts = list(tqdm(counted, total=len(places), desc="counting", unit="shard", disable=None))
    index = ShardIndex(
        tuple(places), tuple(_with_losses(counts, listed)), tuple(f"{s} {mark}" for s, mark in measures)
    )
    if not index.captions:
        faults = [f"{place}: {count.fault}" for place, count in zip(places, counts) if count.fault]
        raise ValueError(
            f"expected samples of an image and a caption in {len(places)} shards, found none"
            f"{'; ' + faults[0] if faults else ''}; is this a webdataset of .jpg with .txt or .json?"
        )
    return index


def _with_losses(counts: Sequence[ShardCount], listed: Sequence[ShardCount | None]) -> list[ShardCount]:
    """Counts with what damaged files lack: as listed, else as if they were as long as the mean whole one."""
    whole = [len(count.captions_S) for count in counts if not count.fault]
    mean = round(sum(whole) / len(whole)) if whole else 0
    return [
        ShardCount(
            count.captions_S,
            count.size,
            count.broken,
            count.fault,
            max(1, (len(known.captions_S) if known else mean) - len(count.captions_S)),
        )
        if count.fault
        else count
        for count, known in zip(counts, listed)
    ]


def _count_and_keep(place: Place, measured: tuple[int | None, str], retry: Retry) -> ShardCount:
    if count := _read_cached(place, measured):  # another process may have counted meanwhile
        return count
    count = count_shard(place, retry)
    if any(measured):
        try:
            write_text_atomic(_cache_file(place, measured), json.dumps(_record(count)))
        except OSError as error:
            logger.warning("counts of shards are not kept for the next time: %s", error)
    return count


def count_shard(place: Place, retry: Retry) -> ShardCount:
    """Counts one shard by reading its headers and texts; what is wrong in it is part of the count."""
    captions, broken, fault = [], [], None
    with open_shard(place, retry) as file:
        try:
            for number, sample in enumerate(walk_samples(file)):
                try:
                    captions.append(len(read_meta(file, sample).captions))
                except Broken as error:
                    captions.append(0)
                    broken.append((number, error.reason, sample.key))
        except Broken as error:
            fault = str(error)
        size = file.seek(0, 2)
    return ShardCount(np.array(captions, dtype=np.uint16), size, tuple(broken), fault)


def run_lengths(values_S: np.ndarray) -> list[list[int]]:
    """`[[value, how often in a row], …]`."""
    starts = np.flatnonzero(np.diff(values_S, prepend=-1))
    lengths = np.diff(starts, append=len(values_S))
    return [[int(values_S[start]), int(length)] for start, length in zip(starts, lengths)]


def _from_run_lengths(runs: list) -> np.ndarray:
    values = np.array(runs, dtype=np.int64).reshape(-1, 2)
    return np.repeat(values[:, 0], values[:, 1]).astype(np.uint16)


def _record(count: ShardCount) -> dict:
    return {
        "format": FORMAT,
        "bytes": count.size,
        "captions_per_sample": run_lengths(count.captions_S.astype(np.int64)),
        "broken": count.broken,
        "fault": count.fault,
    }


def _from_record(record: dict) -> ShardCount:
    broken = tuple((int(number), str(reason), str(key)) for number, reason, key in record.get("broken", ()))
    captions_S = _from_run_lengths(record["captions_per_sample"])
    return ShardCount(captions_S, int(record["bytes"]), broken, record.get("fault"))


def _cache_file(place: Place, measured: tuple[int | None, str]):
    key = hashlib.sha256(json.dumps([FORMAT, place.where, *measured]).encode()).hexdigest()[:32]
    return paths.CACHE / "shards" / "index" / f"{key}.json"


def _read_cached(place: Place, measured: tuple[int | None, str]) -> ShardCount | None:
    try:
        return _from_record(json.loads(_cache_file(place, measured).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("counts of %s cannot be read (%s) and are made anew", place, error)
        return None


def _read_manifest(folder: str, retry: Retry) -> dict[str, ShardCount]:
    """Counts by name of shard, from the `shards.json` of a folder; empty without one that can be used."""
    place = Place(posixpath.join(folder, MANIFEST))
    try:
        if place.is_url:
            content = read_if_there(place.where, retry)
        else:
            with open_shard(place, retry) as file:
                content = file.read()
        if content is None:
            return {}
        manifest = json.loads(content)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"format {manifest.get('format')!r}, expected {FORMAT}")
        return {str(name): _from_record(record) for name, record in manifest["shards"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is not used: %s", place, error)
        return {}
