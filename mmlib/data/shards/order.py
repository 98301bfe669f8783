"""The order of an epoch over shards: who reads what, and in which order pairs come out.

All of it is arithmetic on counts, so any step of any epoch can be found again without an image.
The order depends on seed, epoch and the number of processes; never on the timing or the number of
decoders.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
_SHARDS, _PAIRS = 0, 1  # streams of random numbers, apart from each other
_DRAWS = 4096  # random numbers drawn at a time


@dataclass(frozen=True)
class Segment:
    """Samples `start` to `stop` (not included) of a shard, counted from 0 in the order of its tar."""

    shard: int
    start: int
    stop: int


def epoch_segments(samples: Sequence[int], seed: int, epoch: int, rank: int, processes: int) -> list[Segment]:
    """What process `rank` reads in an epoch, in order.

    The shards are permuted and laid end to end; each process takes an equal stretch (sizes differ
    by one sample at most), which may begin and end inside a shard.  Together the processes read
    every sample once, however many shards there are.

    Args:
        samples: number of samples of each shard.
    """
    order = np.random.default_rng([_SHARDS, seed, epoch]).permutation(len(samples))
    total = sum(samples)
    first, last = total * rank // processes, total * (rank + 1) // processes
    segments, before = [], 0
    for shard in order.tolist():
        start, stop = max(first - before, 0), min(last - before, samples[shard])
        if start < stop:
            segments.append(Segment(shard, start, stop))
        before += samples[shard]
    return segments


def shuffled(items: Iterable[Item], buffer: int, seed: int, epoch: int, rank: int) -> Iterator[Item]:
    """`items` mixed by a buffer: a random one of the next `buffer` leaves, the next one takes its place.

    A function of its arguments alone.
    """
    generator = np.random.default_rng([_PAIRS, seed, epoch, rank])
    held: list[Item] = []
    places: list[int] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        if not places:
            places = generator.integers(buffer, size=_DRAWS).tolist()
        place = places.pop()
        yield held[place]
        held[place] = item
    yield from (held[place] for place in generator.permutation(len(held)).tolist())
