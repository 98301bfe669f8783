"""What is known of every sample: usable, broken or held out; remembered from run to run.

One byte per sample in a file under `data/cache/`, mapped into memory: what a process has found out
survives its end, so that a run that goes on needs not decode again what it passes over.  Nothing
depends on the file being there: an unknown sample is looked at (anew).

Shapes: S samples of all shards.
"""

import hashlib
import json
import logging
import mmap
import os

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
        self._names: dict[str, dict[int, str]] = {reason: {} for reason in (*BROKEN, *LEAKED)}
        self.code_S = _map(index, guard)
        for shard, count in enumerate(index.counts):
            for number, reason, key in count.broken:
                self.code_S[index.first[shard] + number] = BROKEN[reason]
                self._note(reason, index.first[shard] + number, f"{index.places[shard].name}: {key}")
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
        self.code_S[sample] = code
        self._note(reason, sample, name)
        if is_new and reason in BROKEN:
            self._broken += 1
            self._check()

    def is_good(self, sample: int) -> bool:
        """Whether it is known that a sample can be used."""
        return self.code_S[sample] == GOOD

    def reason(self, sample: int) -> str | None:
        """Why a sample cannot be used; None if it can, or nothing is known."""
        return _REASON.get(int(self.code_S[sample]))

    def report(self) -> dict:
        """Counts by reason with the first names, as JSON types; see `ShardStream.report`."""
        count = np.bincount(self.code_S, minlength=256)
        faults = {
            place.name: {"fault": found.fault, "lost": found.lost}
            for place, found in zip(self._index.places, self._index.counts)
            if found.fault
        }
        return {
            "samples": len(self.code_S),
            "read": int(len(self.code_S) - count[UNKNOWN]),
            "good": int(count[GOOD]),
            "broken_samples": self._by_reason(BROKEN, count),
            "broken_shards": faults,
            "leaks": self._by_reason(LEAKED, count),
        }

    def _by_reason(self, codes: dict[str, int], count: np.ndarray) -> dict:
        return {
            reason: {"count": int(count[code]), "first": list(self._names[reason].values())}
            for reason, code in codes.items()
            if count[code]
        }

    def _note(self, reason: str, sample: int, name: str) -> None:
        if len(self._names[reason]) < FIRST:
            self._names[reason].setdefault(sample, name)

    def _check(self) -> None:
        total = len(self.code_S) + self.lost
        if self._broken + self.lost <= MOST_BROKEN * total:
            return
        parts = [
            f"{len(names)} or more with {MEANING[reason]} ({', '.join(names.values())})"
            for reason, names in self._names.items()
            if reason in BROKEN and names
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


def _map(index: ShardIndex, guard: str) -> np.ndarray:
    """The bytes of an index, shared with all processes of this machine; in memory where that fails."""
    samples = index.first[-1]
    key = json.dumps([index.fingerprint, [p.where for p in index.places], index.marks, guard])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = paths.CACHE / "shards" / f"{name}.verdicts"
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
