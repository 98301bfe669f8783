"""What a run trains and validates on, put together from its parameters."""

from collections.abc import Iterator

import torch

from mmlib.config import TrainConfig
from mmlib.data import Dataset, Tokenizer, open_store
from mmlib.data.augment import VERSION, Augment
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.model import DualEncoder
from mmlib.model.encoders import Encoder
from mmlib.training.features import open_features, open_text_features
from mmlib.training.processes import Processes, share

STATISTICS = 2_000  # training items whose features give a head its mean and deviation
COMPILED_LENGTHS = 8  # token positions of a compiled model come in multiples of this


def training_data(
    config: TrainConfig,
    dataset: Dataset,
    tokenizer: Tokenizer,
    model: DualEncoder,
    processes: Processes,
    compiled: bool,
) -> tuple[PairSource, SplitTensors]:
    """The training pairs of this process, and the validation split.

    Raises:
        ParameterError: fewer training pairs than one batch.
        ValueError: images that cannot be packed, or features of other weights.
    """
    val = split_tensors(config, dataset, tokenizer, model, "val", processes, compiled)
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
    """Whether the features of an encoder (`image` or `text`) are computed once: frozen, and images packed."""
    packed = side == "text" or config.dataset != "shards"
    return config.cache_features and getattr(config, f"{side}_tune") == "none" and packed


def standardise_heads(model: DualEncoder, source: PairSource, processes: Processes) -> None:
    """Gives fresh heads of pretrained encoders the mean and deviation of their training features.

    Those of up to `STATISTICS` images and captions spread over the split; of images in shards, over the
    first shards.  Process 0 measures for all, so that they agree to the bit.
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
def _some_features(encoder: Encoder, side: str, source: PairSource) -> Iterator[torch.Tensor]:
    was_training = encoder.training
    encoder.eval()
    try:
        for inputs in _some_inputs(side, source):
            ready = inputs[0].is_floating_point() and (side == "text" or inputs[0].ndim < 4)
            yield inputs[0] if ready else encoder.features(*inputs)
    finally:
        encoder.train(was_training)


def _some_inputs(side: str, source: PairSource) -> Iterator[tuple[torch.Tensor, ...]]:
    data = source.data
    count = data.images_at_hand if side == "image" else data.captions
    for index_B in torch.linspace(0, count - 1, min(STATISTICS, count)).long().split(100):
        yield (data.image_batch(index_B),) if side == "image" else data.caption_batch(index_B)
