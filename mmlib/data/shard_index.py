"""The index of tar shards: what each holds, found once and kept in the cache under the hash of its bytes."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from mmlib import paths
from mmlib.data.fingerprint import SETTLED_NS
from mmlib.data.shard_files import Place, Retry, fetch
from mmlib.data.shard_samples import Found, Sample, TarReader
from mmlib.data.tar_images import LOOK_SIDE, Tar, fetched_path, record_path
from mmlib.files import explained, read_json, replace_flushed, write_text_atomic

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when what is found changes
WORKERS = 8  # shards read at once


@dataclass(frozen=True)
class ShardIndex:
    """What a shard holds.

    Attributes:
        tar: the file.
        samples: in the order in which their first files come.
        broken: samples that cannot be used, by a reason of `BROKEN`.
        unused: members that belong to no sample, by a reason of `UNUSED`.
        fault: what is wrong with the tar itself; None if it is whole.
    """

    tar: Tar
    samples: list[Sample]
    broken: Found
    unused: Found
    fault: str | None


def index_shards(places: Sequence[Place], keep: bool, retry: Retry) -> list[ShardIndex]:
    """Read what shards hold, or what an earlier call found in the same bytes.

    If several processes want the same shard, one reads it and the others wait.

    Args:
        places: from `find_shards`.
        keep: keep those behind URLs on this machine.
        retry: how often a URL is tried.

    Raises:
        FileNotFoundError, ConnectionError, OSError: a shard that is not there or cannot be read or fetched.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda place: _index(place, keep, retry), places)
        try:
            return list(tqdm(found, total=len(places), desc="shards", unit="shard", disable=None, delay=2))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that are being read end first
            raise


def _index(place: Place, keep: bool, retry: Retry) -> ShardIndex:
    record = record_path(place)
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):
        stamp = [] if place.is_url else _stamp(place.where)
        sha256 = _remembered(record, place, stamp)
        if index := sha256 and _read_index(sha256, place):
            return index
        if not place.is_url:
            index = _make_index(Path(place.where), place)
        else:
            part = fetched_path(record.stem).with_suffix(".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch(place.where, part, retry)
                index = _make_index(part, place)
                if keep:
                    replace_flushed(part, fetched_path(index.tar.sha256))
            finally:
                part.unlink(missing_ok=True)
        _remember(record, place, stamp, index.tar.sha256)
        return index


def _stamp(path: str) -> list[int] | None:
    """What changes when a file does: writing to it, or giving another file its name, sets the last one.

    None where it was changed so lately that a second change might bear the same time.
    """
    now, status = time.time_ns(), os.stat(path)
    if status.st_ctime_ns > now - SETTLED_NS:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _remembered(record: Path, place: Place, stamp: list[int] | None) -> str | None:
    """SHA-256 of a shard; of a file with another stamp than then it is found anew.  None: never read."""
    try:
        known = read_json(record)
        if stamp is not None and known["stamp"] == stamp:
            return str(known["sha256"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    # Perhaps it was only touched: then the index of its bytes is still good.
    with open(place.where, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if _index_path(sha256).exists():
        _remember(record, place, stamp, sha256)
    return sha256


def _remember(record: Path, place: Place, stamp: list[int] | None, sha256: str) -> None:
    content = {"where": place.where, "stamp": stamp, "sha256": sha256}
    write_text_atomic(record, json.dumps(content))


def _index_path(sha256: str) -> Path:
    return paths.CACHE / "shards" / f"{sha256[:32]}.json"


def _looks_path(sha256: str) -> Path:
    return _index_path(sha256).with_suffix(".looks")


def _read_index(sha256: str, place: Place) -> ShardIndex | None:
    path = _index_path(sha256)
    try:
        found = json.loads(path.read_bytes())
        looks = _looks_path(sha256)
        if found["format"] != FORMAT or looks.stat().st_size != found["looks"] * LOOK_SIDE**2 * 3:
            return None
        samples = [Sample(*sample) for sample in found["samples"]]
        return ShardIndex(
            Tar(place, sha256, looks), samples, found["broken"], found["unused"], found["fault"]
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s) and is made anew", path, error)
        return None


def _make_index(path: Path, place: Place) -> ShardIndex:
    """Read a shard and keep what is found; `path` is where it lies now."""
    temporary = paths.CACHE / "shards" / f"{record_path(place).stem}.part"  # the caller has the place's lock
    try:
        with open(path, "rb") as file, open(temporary, "wb") as looks:

            def keep(look: memoryview) -> None:
                with explained(temporary):
                    looks.write(look)

            reading = TarReader(file, keep)
            fault = reading.read()
            sha256 = reading.sha256()
            with explained(temporary):
                looks.flush()
                os.fsync(looks.fileno())
        replace_flushed(temporary, _looks_path(sha256))
    finally:
        temporary.unlink(missing_ok=True)
    samples = reading.samples()
    content = {
        "format": FORMAT, "sha256": sha256, "looks": reading.looks, "fault": fault,
        "broken": reading.broken, "unused": reading.unused, "samples": samples,
    }  # fmt: skip
    with explained(_index_path(sha256)):
        write_text_atomic(_index_path(sha256), json.dumps(content))
    return ShardIndex(Tar(place, sha256, _looks_path(sha256)), samples, reading.broken, reading.unused, fault)
