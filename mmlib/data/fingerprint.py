"""The identity of a data set: one short hash over names, captions, their map and the image bytes."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mmlib.data.dataset import Split
from mmlib.files import write_text_atomic

logger = logging.getLogger(__name__)

THREADS = 8  # hashing releases the interpreter lock; more readers than this do not help a disk


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

    Digests are kept in `cache_file` under the file's absolute path and reused while its size and
    modification time (ns) are unchanged, so that a second call only stats the files.  A cache that
    is damaged is built anew; one that cannot be written costs time at the next call and no more.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    keys = [os.path.abspath(path) for path in paths]
    stats = [os.stat(key) for key in keys]
    cached = _read_cache(cache_file)
    stale = [
        (key, stat)
        for key, stat in dict(zip(keys, stats)).items()
        if cached.get(key, [])[:2] != [stat.st_size, stat.st_mtime_ns]
    ]
    if stale:
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(_sha256, [key for key, _ in stale])
            bar = tqdm(digests, total=len(stale), desc="fingerprint", unit="file", disable=None)
            for (key, stat), digest in zip(stale, bar):
                cached[key] = [stat.st_size, stat.st_mtime_ns, digest]
        try:
            write_text_atomic(cache_file, json.dumps(cached))
        except OSError as error:
            logger.warning("digests are not kept for the next time: %s", error)
    return [cached[key][2] for key in keys]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(cache_file: Path) -> dict[str, list]:
    """Path to `[size, mtime_ns, sha256]`; empty if the file is missing or not such a table."""
    try:
        cached = json.loads(cache_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is built anew", cache_file, error)
        return {}
    if not isinstance(cached, dict) or not all(_is_entry(entry) for entry in cached.values()):
        logger.warning("%s is not a table of digests and is built anew", cache_file)
        return {}
    return cached


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str] and len(entry[2]) == 64
    )
