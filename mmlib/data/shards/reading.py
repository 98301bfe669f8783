"""Samples of shards, read in order in one thread and decoded in others, a bounded number ahead.

Shapes: H = W pixels.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, TypeVar

import numpy as np

from mmlib.data.decoding import decode_image
from mmlib.data.packing import Resize, resize_image
from mmlib.data.shards.fetching import Retry, open_shard
from mmlib.data.shards.guard import LeakGuard
from mmlib.data.shards.index import ShardIndex
from mmlib.data.shards.members import META_SUFFIXES, Broken, Sample, parse_meta, read_file, walk_samples
from mmlib.data.shards.order import Segment
from mmlib.data.shards.verdicts import Verdicts

Item = TypeVar("Item")


@dataclass(frozen=True)
class Loaded:
    """A sample that can be used."""

    captions: tuple[str, ...]
    pixels_HWC: np.ndarray  # uint8


class SampleReader:
    """Reads the samples of segments of shards and notes a verdict on each.

    Args:
        index: the shards.
        verdicts: what is known of their samples; known bad ones are not read, new verdicts are noted.
        guard: the leak guard; None for none.
        size, resize: as for `mmlib.data.packing.resize_image`.
        workers: threads that decode.
        ahead: samples that are read or decoded before they are asked for, at most.
        retry: for shards behind URLs; one is fetched while the one before it is read.
    """

    def __init__(
        self,
        index: ShardIndex,
        verdicts: Verdicts,
        guard: LeakGuard | None,
        size: int,
        resize: Resize,
        workers: int,
        ahead: int,
        retry: Retry,
    ):
        self._index, self._verdicts, self._guard = index, verdicts, guard
        self._size, self._resize = size, resize
        self._workers, self._ahead, self._retry = workers, ahead, retry

    def read(
        self, segments: list[Segment], wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Loaded | None]]:
        """Numbers of samples with captions and the samples, None for a bad one, in the order of the segments.

        Args:
            segments: what is read.
            wanted: whether a sample, by its number, is; the others are neither read nor decoded.

        Raises:
            FileNotFoundError, ConnectionError, OSError: a shard that cannot be read at all.
            ValueError: more than a hundredth of all samples are broken.
        """
        retry = replace(self._retry, stop=threading.Event())
        with ThreadPoolExecutor(self._workers) as pool, ThreadPoolExecutor(1) as fetcher:
            jobs = self._jobs(segments, wanted, pool, fetcher, retry)
            with closing(_ahead(jobs, self._ahead, retry.stop)) as results:
                for sample, name, job in results:
                    outcome = job.result() if isinstance(job, Future) else job
                    if isinstance(outcome, Loaded):
                        self._verdicts.good(sample)
                        yield sample, outcome
                    else:
                        self._verdicts.bad(sample, outcome, name)
                        yield sample, None

    def _jobs(self, segments, wanted, pool, fetcher, retry) -> Iterator[tuple[int, str, Future | str]]:
        """Number and name of each sample with its decoding under way, or the reason why there is none."""
        with closing(_opened(self._index, segments, fetcher, retry)) as files:
            for segment, file in files:
                captions_S = self._index.counts[segment.shard].captions_S
                first = self._index.first[segment.shard]
                left = [n for n in range(segment.start, segment.stop) if captions_S[n] and wanted(first + n)]
                left.reverse()
                name = self._index.places[segment.shard].name
                # A shard that ends early leaves some of them behind.
                with suppress(Broken):
                    for number, found in enumerate(walk_samples(file)):
                        if not left:
                            break
                        if number == left[-1]:
                            left.pop()
                            yield (
                                first + number,
                                f"{name}: {found.key}",
                                self._start(file, found, first + number, int(captions_S[number]), pool),
                            )
                for number in reversed(left):
                    yield first + number, f"{name}: sample {number + 1}", "shard"

    def _start(
        self, file: BinaryIO, found: Sample, number: int, captions: int, pool: ThreadPoolExecutor
    ) -> Future | str:
        if reason := self._verdicts.reason(number):
            return reason
        wanted = [*META_SUFFIXES, found.image_suffix]
        content = {suffix: read_file(file, found, suffix) for suffix in wanted if suffix in found.files}
        is_new = not self._verdicts.is_good(number)
        return pool.submit(self._load, found, content, captions, is_new)

    def _load(self, found: Sample, content: dict[str, bytes], captions: int, is_new: bool) -> Loaded | str:
        """The sample, or why it cannot be used; runs in a thread."""
        if found.image_suffix is None:
            return "image"
        try:
            meta = parse_meta(found, content)
        except Broken as error:
            return error.reason
        if len(meta.captions) != captions:  # not what was counted
            return "caption"
        image_bytes = content[found.image_suffix]
        try:
            image = decode_image(image_bytes, found.key)
        except ValueError:
            return "image"
        if is_new and self._guard and (sign := self._guard.sign(meta.name, image_bytes, image, meta.dataset)):
            return sign
        return Loaded(meta.captions, resize_image(image, self._size, self._resize))


def _opened(
    index: ShardIndex, segments: list[Segment], fetcher: ThreadPoolExecutor, retry: Retry
) -> Iterator[tuple[Segment, BinaryIO]]:
    """Each segment with its shard as a file, the next one opened meanwhile; closes them."""
    waiting: deque[tuple[Segment, Future]] = deque()
    rest = iter(segments)
    try:
        while True:
            while len(waiting) < 2 and (segment := next(rest, None)):
                waiting.append((segment, fetcher.submit(open_shard, index.places[segment.shard], retry)))
            if not waiting:
                return
            segment, task = waiting.popleft()
            with task.result() as file:
                yield segment, file
    finally:
        for _, task in waiting:
            if not task.cancel():
                with suppress(Exception):
                    task.result().close()


def _ahead(items: Iterator[Item], size: int, stop: threading.Event) -> Iterator[Item]:
    """`items`, made by a thread that is at most `size` of them ahead; sets `stop` when it is closed."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(size)

    def make() -> None:
        end: BaseException = StopIteration()
        try:
            with closing(items):
                for item in items:
                    ready.put((item, None))
                    if stop.is_set():
                        break
        except BaseException as error:
            end = error
        ready.put((None, end))

    threading.Thread(target=make, name="mmlib-shards", daemon=True).start()
    end = None
    try:
        while True:
            item, end = ready.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item
    finally:
        stop.set()
        while end is None:  # the thread may wait for room; the last thing that it puts is its end
            _, end = ready.get()
