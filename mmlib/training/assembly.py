"""What a run trains and validates on, put together from its parameters."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from mmlib.config import TrainConfig
from mmlib.data import Dataset, Tokenizer, open_store
from mmlib.data.augment import VERSION, Augment
from mmlib.data.batches import Batch, PairSource, SplitTensors
from mmlib.data.prefetch import prefetched
from mmlib.data.shards import ShardStream
from mmlib.data.shards.verdicts import merged_reports
from mmlib.model import DualEncoder
from mmlib.model.encoders import Encoder
from mmlib.training.features import open_features, open_text_features
from mmlib.training.processes import Processes, share

DECODERS = 2  # threads of each process that decode shards
STATISTICS = 2_000  # training items whose features give a head its mean and deviation
COMPILED_LENGTHS = 8  # token positions of a compiled model come in multiples of this


class Source(Protocol):
    """The training pairs of one process, epoch by epoch and step by step."""

    def steps(self, epoch: int) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from step `start` (from 0) on, always the same ones."""

    def report(self) -> dict:
        """What the history of an epoch keeps of its reading."""


@dataclass
class ShardSource:
    """The pairs of a stream of shards, augmented and normalised, made ahead by another thread."""

    stream: ShardStream
    config: TrainConfig
    processes: Processes
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def steps(self, epoch: int) -> int:
        """Batches of an epoch, the same in all epochs."""
        return self.stream.steps

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from step `start` (from 0) on."""
        made = self.stream.batches(self.config.seed, epoch, start)
        return prefetched(self._ready(made, epoch, start), self.processes.device)

    def _ready(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        augment, rows = Augment(self.config), self.processes.rows(self.config.batch_size)
        for step, batch in enumerate(batches, start):
            place_R = torch.arange(rows.start, rows.stop) + step * self.config.batch_size
            pixels_RHWC = batch.image.permute(0, 2, 3, 1)
            image = augment(pixels_RHWC, self.config.seed, epoch, place_R, self.mean, self.std)
            yield replace(batch, image=image)

    def report(self) -> dict:
        """Samples that the epoch took, broken and held out ones among them; a call of all processes."""
        return {"shards": merged_reports(self.processes.collect(self.stream.epoch_report()))}


def open_stream(config: TrainConfig, held_out: Dataset, processes: Processes) -> ShardStream | None:
    """The stream of training shards, without a tokenizer yet; None for other data sets.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: shards that are not there or broken.
    """
    if config.dataset != "shards":
        return None
    return ShardStream(config, None, held_out, processes.rank, processes.count, DECODERS, processes.device)


def training_data(
    config: TrainConfig,
    dataset: Dataset,
    stream: ShardStream | None,
    tokenizer: Tokenizer,
    model: DualEncoder,
    processes: Processes,
    compiled: bool,
) -> tuple[Source, SplitTensors]:
    """The training pairs of this process, and the validation split.

    Raises:
        ParameterError: fewer training pairs than one batch.
        ValueError: images that cannot be packed, or features of other weights.
    """
    val = split_tensors(config, dataset, tokenizer, model, "val", processes, compiled)
    if stream:
        stream.tokenizer = tokenizer
        return ShardSource(stream, config, processes, model.image_encoder.mean, model.image_encoder.std), val
    train = split_tensors(config, dataset, tokenizer, model, "train", processes, compiled)
    source = PairSource(
        train,
        config.batch_size,
        config.captions_per_image,
        config.seed,
        config,
        lambda count: share(count, processes.rank, processes.count),
    )
    return source, val


def split_tensors(
    config: TrainConfig,
    dataset: Dataset,
    tokenizer: Tokenizer,
    model: DualEncoder,
    split: str,
    processes: Processes,
    compiled: bool = False,
) -> SplitTensors:
    """A split as the model reads it: pixels and token ids, or the stored features of frozen encoders.

    Raises:
        ParameterError: there is no such split.
        ValueError: images that cannot be packed, or features of other weights.
    """
    dataset.split(split)
    store = open_store(dataset, config.image_size, config.resize)
    image, text = model.image_encoder, model.text_encoder
    features = {}
    if caches_features(config, "image"):
        views = config.feature_views
        augment = Augment(config)

        def view(pixels_BHWC: torch.Tensor, number: int, first: int) -> torch.Tensor:
            rows = range(first, first + len(pixels_BHWC))
            return augment(pixels_BHWC, config.seed, number, rows, image.mean, image.std)

        settings = (config.crop_area, config.flip, config.colour, config.randaugment, config.seed)
        what = f"version {VERSION}: {settings}"
        features["image_features"] = open_features(
            image.to(processes.device), store, views, view if views > 1 else None, what
        )
    if caches_features(config, "text"):
        features["text_features"] = open_text_features(
            text.to(processes.device), dataset, tokenizer, config.max_tokens
        )
    multiple = COMPILED_LENGTHS if compiled else 1
    return SplitTensors(
        dataset, store, tokenizer, split, config.max_tokens,
        multiple if config.padding_mask else None, processes.device, image.mean, image.std, **features,
    )  # fmt: skip


def caches_features(config: TrainConfig, side: str) -> bool:
    """Whether the features of an encoder (`image` or `text`) are computed once: frozen, and no stream."""
    return config.cache_features and getattr(config, f"{side}_tune") == "none" and config.dataset != "shards"


def standardise_heads(model: DualEncoder, source: Source, processes: Processes) -> None:
    """Gives fresh heads of pretrained encoders the mean and deviation of their training features.

    Those of up to `STATISTICS` images and captions spread over the split; of a stream, of its first
    batches.  Process 0 measures for all, so that they agree to the bit.
    """
    for side in ("image", "text"):
        encoder = getattr(model, f"{side}_encoder")
        if encoder.feature_shape is None:
            continue
        encoder.to(processes.device)
        statistics = encoder.head.standardise
        if processes.writes:
            statistics.fit(torch.cat(list(_some_features(encoder, side, source))))
        for name, value in processes.agree({k: v.cpu() for k, v in statistics.state_dict().items()}).items():
            getattr(statistics, name).copy_(value)


@torch.no_grad()
def _some_features(encoder: Encoder, side: str, source: Source) -> Iterator[torch.Tensor]:
    was_training = encoder.training
    encoder.eval()
    try:
        for inputs in _some_inputs(side, source):
            ready = inputs[0].is_floating_point() and (side == "text" or inputs[0].ndim < 4)
            yield inputs[0] if ready else encoder.features(*inputs)
    finally:
        encoder.train(was_training)


def _some_inputs(side: str, source: Source) -> Iterator[tuple[torch.Tensor, ...]]:
    if isinstance(source, PairSource):
        data = source.data
        count = data.images if side == "image" else data.captions
        for index_B in torch.linspace(0, count - 1, min(STATISTICS, count)).long().split(100):
            yield (data.image_batch(index_B),) if side == "image" else data.caption_batch(index_B)
        return
    seen = 0
    with closing(source.batches(1, 0)) as batches:
        for batch in batches:
            yield (batch.image,) if side == "image" else (batch.tokens, batch.length_R)
            seen += batch.rows
            if seen >= STATISTICS:
                return


def identity_of(dataset: Dataset, stream: ShardStream | None) -> dict:
    """`Dataset.identity`, with that of the training shards where they are a stream."""
    if stream is None:
        return dataset.identity
    identity, train = dataset.identity, stream.identity
    both = f"{train['fingerprint']} {dataset.fingerprint}"
    sizes = {"images": train["images"], "captions": train["captions"]}
    return {
        "name": identity["name"],
        "fingerprint": hashlib.sha256(both.encode()).hexdigest()[:16],
        "held_out_fingerprint": dataset.fingerprint,
        "splits": {"train": sizes, **identity["splits"]},
    }
