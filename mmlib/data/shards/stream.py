"""Training pairs from shards: data larger than memory and disk, in an order that any step can be found in.

An epoch is one pass over all samples, a pair for each caption.  What is broken or held out is left
out, and the pairs of a process that has too few for its steps start again from the beginning.

Shapes: S samples of all shards, B pairs of a batch over all processes, R of them in this one,
L positions, H = W pixels.
"""

from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain

import numpy as np
import torch

from mmlib.config import ParameterError, TrainConfig
from mmlib.data.batches import Batch
from mmlib.data.dataset import Dataset
from mmlib.data.shards.fetching import Retry, open_shard
from mmlib.data.shards.guard import LeakGuard
from mmlib.data.shards.index import index_shards
from mmlib.data.shards.members import Broken, read_meta, walk_samples
from mmlib.data.shards.order import Segment, epoch_segments, shuffled
from mmlib.data.shards.places import find_shards
from mmlib.data.shards.reading import Loaded, SampleReader
from mmlib.data.shards.verdicts import UNKNOWN, Verdicts
from mmlib.data.tokenizers import Tokenizer

BUFFER_BYTES = 2**28  # of pixels that wait in the shuffling buffer
BUFFER_PAIRS = (1_000, 10_000)  # least and most of them
Pair = tuple[int, int]  # number of the sample, number of its caption


class ShardStream:
    """The training pairs of `train_shards`, those of one process.

    The order of pairs is a function of seed, epoch and the number of processes; neither workers nor
    their timing change it.  Memory: the shuffling buffer (a quarter of a GiB of pixels, or a thousand
    images), a few batches ahead, and about four bytes for each sample of all shards.

    Args:
        config: shards, batch size, image size, tokens, what is done about leaks.
        tokenizer: may be None until `batches` is called, and set later: a vocabulary is learned from
            `captions_for_tokenizer`.
        held_out: val and test; a training image that is also there is left out unless
            `config.leaks` is `keep`.
        rank, processes: this process and the number of all.
        workers: threads that decode.
        device: where batches are wanted.
        buffer: pairs of the shuffling buffer; by default what fits `BUFFER_BYTES`.
        retry: how often shards behind URLs are tried.

    Attributes:
        steps: batches of an epoch, the same in all processes; a last one that is not full is dropped.
        pairs: pairs of an epoch, over all processes, before any is left out.
        tokenizer: as above.

    Raises:
        FileNotFoundError: a pattern that no shard matches, or a shard that is not there.
        ConnectionError: a shard that cannot be fetched.
        ParameterError: fewer pairs than one batch, or fewer samples than processes.
        ValueError: no shards, no usable sample, a batch that the processes cannot share equally, too many
            broken samples.
    """

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer | None,
        held_out: Dataset,
        rank: int,
        processes: int,
        workers: int,
        device: torch.device,
        *,
        buffer: int | None = None,
        retry: Retry | None = None,
    ):
        if not 0 <= rank < processes or workers < 1 or config.batch_size % processes:
            raise ValueError(
                "expected rank < processes, at least 1 worker and a batch_size that is a multiple of the"
                f" processes, found rank {rank} of {processes}, {workers} workers, batch_size"
                f" {config.batch_size}"
            )
        self.tokenizer = tokenizer
        self._config, self._device, self._retry = config, device, retry or Retry()
        self._rank, self._processes, self._workers = rank, processes, workers
        places = find_shards(config.train_shards, "train_shards")
        self._index = index_shards(places, self._retry, workers)
        self.pairs = self._index.captions
        self.steps = self.pairs // config.batch_size
        self._check_size()
        guards = config.leaks == "exclude" and any(split.images for split in held_out.splits.values())
        self._guard = LeakGuard(held_out) if guards else None
        self._verdicts = Verdicts(self._index, held_out.fingerprint if guards else "keep")
        fitting = BUFFER_BYTES // (3 * config.image_size**2)
        self._epoch, self._seen_S = (0, 0), None
        self._buffer = buffer or min(max(fitting, BUFFER_PAIRS[0]), BUFFER_PAIRS[1])

    def _check_size(self) -> None:
        if not self.steps:
            raise ParameterError(
                f"expected pairs for at least one batch of {self._config.batch_size}, found {self.pairs:,} in"
                f" {len(self._index.places)} shards; name more train_shards or lower batch_size"
            )
        samples = self._index.first[-1]
        if samples < self._processes:
            raise ParameterError(
                f"expected at least one sample for each of {self._processes} processes, found {samples:,};"
                " name more train_shards or start fewer processes"
            )

    @property
    def identity(self) -> dict:
        """Fingerprint (over names, sizes and counts of the shards), number of shards, images, captions."""
        return {
            "fingerprint": self._index.fingerprint,
            "shards": len(self._index.places),
            "images": self._index.images,
            "captions": self._index.captions,
        }

    def report(self) -> dict:
        """What was found in the samples until now, this process's and what earlier ones left behind.

        `samples` in all, of them `read` and `good`; `broken_samples` and `leaks` by reason, each with
        `count` and the `first` names; `broken_shards` by name with `fault` and samples `lost`.
        """
        return self._verdicts.report()

    def epoch_report(self) -> dict:
        """As `report`, of the samples that the last epoch asked for took; ask when its batches have come.

        A function of the shards, seed, epoch and the number of processes: it depends neither on where the
        epoch was started nor on what was known of the samples before.
        """
        if self._seen_S is None:  # started behind its last batch
            seed, epoch = self._epoch
            rows = self._config.batch_size // self._processes
            with closing(self._good_pairs(seed, epoch, self.steps * rows - 1)) as pairs:
                next(pairs)
        return self._verdicts.report(self._seen_S)

    def captions_for_tokenizer(self, limit: int = 100_000) -> Iterator[str]:
        """The first `limit` training captions, in the order of the shards: the same in every process."""
        for place in self._index.places:
            # Of a shard that is cut short, what is whole is read.
            with open_shard(place, self._retry) as file, suppress(Broken):
                for sample in walk_samples(file):
                    with suppress(Broken):
                        captions = read_meta(file, sample).captions[:limit]
                        yield from captions
                        limit -= len(captions)
                    if not limit:
                        return

    def batches(self, seed: int, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start_step` (from 0) on; images are uint8 (R, 3, H, W).

        Started anywhere, they are those of the whole epoch from there, bit for bit.  Samples before
        are passed over without being decoded where an earlier pass has left a verdict on them.

        Raises:
            ConnectionError, OSError: a shard that cannot be fetched or read.
            ValueError: no tokenizer; more than a hundredth of all samples are broken; no sample of this
                process can be used.
        """
        if self.tokenizer is None:
            raise ValueError("expected a tokenizer, found None; set `tokenizer` before asking for batches")
        self._epoch, self._seen_S = (seed, epoch), None
        return self._batches(seed, epoch, start_step)

    def _batches(self, seed: int, epoch: int, start_step: int) -> Iterator[Batch]:
        rows = self._config.batch_size // self._processes
        with closing(self._good_pairs(seed, epoch, start_step * rows)) as pairs:
            for _ in range(start_step, self.steps):
                yield self._batch([next(pairs) for _ in range(rows)])

    def _good_pairs(self, seed: int, epoch: int, skip: int) -> Iterator[tuple[int, str, np.ndarray]]:
        """Sample, caption and pixels of the pairs from the `skip`-th usable one on, round after round."""
        segments = epoch_segments(self._index.samples, seed, epoch, self._rank, self._processes)
        seen_S = self._seen_S = np.zeros(self._index.first[-1], dtype=bool)
        while True:
            order = shuffled(self._planned(segments), self._buffer, seed, epoch, self._rank)
            gone_S = np.zeros(self._index.first[-1], dtype=np.uint16)
            before, rest = self._pass_over(order, skip, gone_S)
            seen_S |= gone_S > 0
            with closing(self._filled(segments, rest, gone_S, seen_S)) as filled:
                for pair in filled:
                    before += 1
                    if before > skip:
                        yield pair
            if not before:
                raise ValueError(
                    f"expected a usable sample for process {self._rank} of {self._processes}, found that all"
                    f" of its samples are broken or held out: {self.report()}"
                )
            skip = max(0, skip - before)

    def _planned(self, segments: list[Segment]) -> Iterator[Pair]:
        for segment in segments:
            captions = self._index.counts[segment.shard].captions_S[segment.start : segment.stop].tolist()
            first = self._index.first[segment.shard] + segment.start
            for sample, count in enumerate(captions, start=first):
                yield from ((sample, caption) for caption in range(count))

    def _pass_over(self, order: Iterator[Pair], skip: int, gone_S: np.ndarray) -> tuple[int, Iterator[Pair]]:
        """How many usable pairs were passed over, as far as verdicts are known, and the rest of `order`."""
        passed = 0
        for pair in order:
            sample = pair[0]
            if passed == skip or self._verdicts.code_S[sample] == UNKNOWN:
                return passed, chain([pair], order)
            gone_S[sample] += 1
            passed += self._verdicts.is_good(sample)
        return passed, iter(())

    def _filled(
        self, segments: list[Segment], order: Iterator[Pair], gone_S: np.ndarray, seen_S: np.ndarray
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """The usable pairs of `order`; holds an image until the last of its pairs has left the buffer."""
        left_S = np.concatenate([count.captions_S for count in self._index.counts]) - gone_S
        held: dict[int, Loaded | None] = {}
        with closing(self._reader().read(segments, lambda sample: left_S[sample] > 0)) as samples:
            for sample, caption in order:
                while sample not in held:
                    number, loaded = next(samples)
                    held[number] = loaded
                loaded = held[sample]
                seen_S[sample] = True
                left_S[sample] -= 1
                if not left_S[sample]:
                    del held[sample]
                if loaded:
                    yield sample, loaded.captions[caption], loaded.pixels_HWC

    def _reader(self) -> SampleReader:
        config = self._config
        ahead = max(2 * config.batch_size // self._processes, 4 * self._workers)
        return SampleReader(
            self._index, self._verdicts, self._guard, config.image_size, config.resize,
            self._workers, ahead, self._retry,
        )  # fmt: skip

    def _batch(self, pairs: list[tuple[int, str, np.ndarray]]) -> Batch:
        samples, captions, images = zip(*pairs)
        tokens_RL, length_R = self.tokenizer.encode(captions, self._config.max_tokens)
        if self._config.padding_mask:  # exact where padding is masked; a model without sees every position
            tokens_RL = tokens_RL[:, : int(length_R.max(initial=1))]
        pixels_RHWC, tokens_RL, length_R, image_id_R = (
            self._on_device(array)
            for array in (np.stack(images), tokens_RL, length_R, np.array(samples, dtype=np.int64))
        )
        return Batch(
            image=pixels_RHWC.permute(0, 3, 1, 2),
            tokens=tokens_RL,
            length_R=length_R,
            image_id_R=image_id_R,
            rows=len(pairs),
            size=self._config.batch_size,
        )

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor
