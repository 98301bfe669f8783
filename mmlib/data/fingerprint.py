"""The identity of a data set: one short hash over names, captions, their map and the image bytes."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mmlib.data.dataset import Split
from mmlib.files import read_json, write_text_atomic
from mmlib.paths import shown

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

    Raises:
        ValueError: an image of a split has no digest.
    """
    missing = [name for split in splits.values() for name in split.images if name not in digests]
    if missing:
        raise ValueError(
            f"expected a digest for every image of the splits, found none for {missing[0]!r}"
            f" and {len(missing) - 1} more; digest all images first"
        )
    # JSON quotes and escapes every text, so no two data sets can run together into the same bytes.
    content = [
        [
            key,
            splits[key].images,
            [digests[name] for name in splits[key].images],
            splits[key].captions,
            splits[key].image_of_caption_M.tolist(),
        ]
        for key in sorted(splits)
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
    marks = {key: _mark(os.stat(key)) for key in keys}
    stale = [key for key, mark in marks.items() if cached.get(key, [])[:3] != mark]
    if stale:
        latest_ns = time.time_ns() - SETTLED_NS
        with ThreadPoolExecutor(THREADS) as pool:
            bar = tqdm(
                pool.map(_sha256, stale), total=len(stale), desc="fingerprint", unit="file", disable=None
            )
            for key, digest in zip(stale, bar):
                cached[key] = [*marks[key], digest]
        unsettled = {key for key in stale if marks[key][2] > latest_ns or _mark(os.stat(key)) != marks[key]}
        kept = {key: entry for key, entry in cached.items() if key not in unsettled}
        try:
            write_text_atomic(cache_file, json.dumps(kept))
        except OSError as error:
            logger.warning("digests are not kept for the next time: %s", error)
    return [cached[key][3] for key in keys]


def _mark(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(cache_file: Path) -> dict[str, list]:
    """Path to `[size, mtime_ns, ctime_ns, sha256]`; empty if the file is missing or not such a table."""
    try:
        cached = read_json(cache_file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is built anew", shown(cache_file), error)
        return {}
    if not all(_is_entry(entry) for entry in cached.values()):
        logger.warning("%s is not a table of digests and is built anew", shown(cache_file))
        return {}
    return cached


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and [type(part) for part in entry] == [int, int, int, str]
        and len(entry[3]) == 64
    )
