"""What is known of every sample: usable, broken or held out; remembered from run to run.

One byte per sample in a file under `data/cache/`, mapped into memory: what a process has found out
survives its end, so that a run that goes on needs not decode again what it passes over.  Nothing
depends on the file being there: an unknown sample is looked at (anew).

Shapes: S samples of all shards.
"""

import bisect
import contextlib
import hashlib
import json
import logging
import mmap
import os
from pathlib import Path

import numpy as np
from filelock import FileLock

from mmlib import paths
from mmlib.data.shards.index import ShardIndex

logger = logging.getLogger(__name__)

UNKNOWN, GOOD = 0, 1
BROKEN = {"image": 2, "caption": 3, "json": 4, "shard": 5}
LEAKED = {"id": 6, "bytes": 7, "look": 8}
MEANING = {
    "image": "no image, or one that cannot be decoded",
    "caption": "no caption",
    "json": "a json that cannot be read",
    "shard": "missing from a shard that is cut short or damaged",
}
MOST_BROKEN = 0.01  # share of broken samples that is still passed over
FIRST = 5  # names that are kept of each kind


class Verdicts:
    """Verdicts on the samples of an index.

    Args:
        index: the shards.
        guard: what they are guarded against: a text that changes with the held-out images.
    """

    def __init__(self, index: ShardIndex, guard: str):
        self._index = index
        self._path = _file(index, guard)
        self.code_S = _map(self._path, index.first[-1])
        self._names = _read_names(_names_file(self._path))  # of the samples that cannot be used
        for shard, count in enumerate(index.counts):
            for number, reason, key in count.broken:
                self.code_S[index.first[shard] + number] = BROKEN[reason]
                self._names[index.first[shard] + number] = f"{index.places[shard].name}: {key}"
        self.lost = sum(count.lost for count in index.counts)
        self._broken = int(np.isin(self.code_S, list(BROKEN.values())).sum())
        self._check()

    def good(self, sample: int) -> None:
        """Notes that a sample can be used."""
        self.code_S[sample] = GOOD

    def bad(self, sample: int, reason: str, name: str) -> None:
        """Notes that a sample cannot be used: `reason` is one of `BROKEN` or `LEAKED`.

        Raises:
            ValueError: with it, more than a hundredth of all samples are broken.
        """
        code = (BROKEN | LEAKED)[reason]
        is_new = self.code_S[sample] != code
        if self._names.get(sample) != name:
            self._names[sample] = name
            _keep_name(_names_file(self._path), sample, name)  # before the verdict, which is found with it
        self.code_S[sample] = code
        if is_new and reason in BROKEN:
            self._broken += 1
            self._check()

    def is_good(self, sample: int) -> bool:
        """Whether it is known that a sample can be used."""
        return self.code_S[sample] == GOOD

    def reason(self, sample: int) -> str | None:
        """Why a sample cannot be used; None if it can, or nothing is known."""
        return _REASON.get(int(self.code_S[sample]))

    def report(self, seen_S: np.ndarray | None = None) -> dict:
        """Counts by reason with the first names, as JSON types; see `ShardStream.report`.

        Args:
            seen_S: (S,) bool, the samples that are reported on; by default all.
        """
        code_S = self.code_S if seen_S is None else np.where(seen_S, self.code_S, UNKNOWN)
        faults = {
            place.name: {"fault": found.fault, "lost": found.lost}
            for place, found in zip(self._index.places, self._index.counts)
            if found.fault
        }
        return {
            "samples": len(code_S),
            "read": int(np.count_nonzero(code_S != UNKNOWN)),
            "good": int(np.count_nonzero(code_S == GOOD)),
            "broken_samples": self._by_reason(BROKEN, code_S),
            "broken_shards": faults,
            "leaks": self._by_reason(LEAKED, code_S),
        }

    def _by_reason(self, codes: dict[str, int], code_S: np.ndarray) -> dict:
        found = {reason: np.flatnonzero(code_S == code) for reason, code in codes.items()}
        return {
            reason: {"count": len(samples), "first": [self._name(int(sample)) for sample in samples[:FIRST]]}
            for reason, samples in found.items()
            if len(samples)
        }

    def _name(self, sample: int) -> str:
        if sample not in self._names:  # another process of this machine may have found it
            self._names = _read_names(_names_file(self._path)) | self._names
        if sample not in self._names:
            shard = bisect.bisect_right(self._index.first, sample) - 1
            number = sample - self._index.first[shard] + 1
            self._names[sample] = f"{self._index.places[shard].name}: sample {number}"
        return self._names[sample]

    def _check(self) -> None:
        total = len(self.code_S) + self.lost
        if self._broken + self.lost <= MOST_BROKEN * total:
            return
        parts = [
            f"{found['count']:,} with {MEANING[reason]} ({', '.join(found['first'])})"
            for reason, found in self._by_reason(BROKEN, self.code_S).items()
        ]
        parts += [
            f"{found.lost:,} missing from {place} ({found.fault})"
            for place, found in zip(self._index.places, self._index.counts)
            if found.fault
        ][:FIRST]
        raise ValueError(
            f"expected at most {MOST_BROKEN:.0%} broken samples, found {self._broken + self.lost:,} of"
            f" {total:,}: {'; '.join(parts)}; get these shards again"
        )


_REASON = {code: reason for reason, code in (BROKEN | LEAKED).items()}


def merged_reports(reports: list[dict]) -> dict:
    """The reports of several processes, each on samples of its own, as one."""
    merged = {**reports[0], "read": sum(r["read"] for r in reports), "good": sum(r["good"] for r in reports)}
    for kind, codes in (("broken_samples", BROKEN), ("leaks", LEAKED)):
        found = {reason: [r[kind][reason] for r in reports if reason in r[kind]] for reason in codes}
        merged[kind] = {
            reason: {
                "count": sum(part["count"] for part in parts),
                "first": [name for part in parts for name in part["first"]][:FIRST],
            }
            for reason, parts in found.items()
            if parts
        }
    return merged


def _file(index: ShardIndex, guard: str) -> Path:
    key = json.dumps([index.fingerprint, [p.where for p in index.places], index.marks, guard])
    return paths.CACHE / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.verdicts"


def _map(path: Path, samples: int) -> np.ndarray:
    """The bytes of an index, shared with all processes of this machine; in memory where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated: another process may be writing to it.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        with file, FileLock(f"{path}.lock"):
            # Written, not only lengthened: on a full disk, writing to a hole of a map kills the process.
            if (missing := samples - file.seek(0, os.SEEK_END)) > 0:
                file.write(bytes(missing))
                file.flush()
            code_S = np.frombuffer(mmap.mmap(file.fileno(), samples), dtype=np.uint8)
    except OSError as error:
        logger.warning("what is found out about samples is not kept for the next time: %s", error)
        return np.zeros(samples, dtype=np.uint8)
    code_S[code_S > max(LEAKED.values())] = UNKNOWN
    return code_S


def _names_file(path: Path) -> Path:
    return path.with_suffix(".names")


def _read_names(path: Path) -> dict[int, str]:
    """Names by number of sample; a line that a crash cut is passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return {}
    return {int(number): name for number, _, name in (x.partition(" ") for x in lines) if number.isdecimal()}


def _keep_name(path: Path, sample: int, name: str) -> None:
    """Adds a line in one piece, which several processes may do at once."""
    line = f"{sample} {name}".replace("\n", " ") + "\n"
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        file.write(line.encode(errors="replace"))
