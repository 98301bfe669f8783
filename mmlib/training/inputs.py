"""What a run trains and validates on: pixels and token ids, or stored features of frozen encoders.

Shapes: N images, M captions, B items of a batch, V views, F feature channels, P positions,
L tokens, H = W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmlib import files
from mmlib.config import TrainConfig
from mmlib.data import Dataset, Tokenizer, open_store
from mmlib.data.augment import VERSION, augment, normalise
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.data.store import Store, open_array
from mmlib.model import DualEncoder
from mmlib.model.encoders import Encoder
from mmlib.training.processes import share

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


STATISTICS = 2_000  # training items whose features give a head its mean and deviation
COMPILED_LENGTHS = 8  # token positions of a compiled model come in multiples of this


def training_data(
    config: TrainConfig,
    dataset: Dataset,
    tokenizer: Tokenizer,
    model: DualEncoder,
    fabric: "Fabric",
    compiled: bool,
) -> tuple[PairSource, SplitTensors]:
    """The training pairs of this process, and the validation split.

    Raises:
        ParameterError: fewer training pairs than one batch.
        ValueError: images that cannot be packed, or features of other weights.
    """
    val = split_tensors(config, dataset, tokenizer, model, "val", fabric, compiled)
    train = split_tensors(config, dataset, tokenizer, model, "train", fabric, compiled)
    source = PairSource(
        train,
        config.batch_size,
        config.captions_per_image,
        config.seed,
        config,
        lambda count: share(count, fabric.global_rank, fabric.world_size),
    )
    return source, val


def split_tensors(
    config: TrainConfig,
    dataset: Dataset,
    tokenizer: Tokenizer,
    model: DualEncoder,
    split: str,
    fabric: "Fabric",
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

        def view(pixels_BHWC: torch.Tensor, number: int, first: int) -> torch.Tensor:
            rows = range(first, first + len(pixels_BHWC))
            augmented_BHWC = augment(pixels_BHWC, config, config.seed, number, rows)
            return normalise(augmented_BHWC, image.mean, image.std)

        settings = (config.crop_area, config.flip, config.colour, config.randaugment, config.seed)
        what = f"version {VERSION}: {settings}"
        features["image_features"] = open_features(
            image.to(fabric.device), store, views, view if views > 1 else None, what
        )
    if caches_features(config, "text"):
        features["text_features"] = open_text_features(
            text.to(fabric.device), dataset, tokenizer, config.max_tokens
        )
    multiple = COMPILED_LENGTHS if compiled else 1
    return SplitTensors(
        dataset, store, tokenizer, split, config.max_tokens,
        multiple if config.padding_mask else None, fabric.device, image.mean, image.std, **features,
    )  # fmt: skip


def caches_features(config: TrainConfig, side: str) -> bool:
    """Whether the features of an encoder (`image` or `text`) are computed once: frozen, and images packed."""
    packed = side == "text" or config.dataset != "shards"
    return config.cache_features and getattr(config, f"{side}_tune") == "none" and packed


def standardise_heads(model: DualEncoder, source: PairSource, fabric: "Fabric") -> None:
    """Gives fresh heads of pretrained encoders the mean and deviation of their training features.

    Those of up to `STATISTICS` images and captions spread over the split; of images in shards, over the
    first shards.  Process 0 measures for all, so that they agree to the bit.
    """
    for side in ("image", "text"):
        encoder = getattr(model, f"{side}_encoder")
        if encoder.feature_shape is None:
            continue
        encoder.to(fabric.device)
        statistics = encoder.head.standardise
        if fabric.is_global_zero:
            statistics.fit(torch.cat(list(_some_features(encoder, side, source.data))))
        for name, value in fabric.broadcast({k: v.cpu() for k, v in statistics.state_dict().items()}).items():
            getattr(statistics, name).copy_(value)


def _some_features(encoder: Encoder, side: str, data: SplitTensors) -> Iterator[torch.Tensor]:
    count = data.images_at_hand if side == "image" else data.captions
    with _reading(encoder) as read:
        for index_B in torch.linspace(0, count - 1, min(STATISTICS, count)).long().split(100):
            inputs = (data.image_batch(index_B),) if side == "image" else data.caption_batch(index_B)
            ready = inputs[0].is_floating_point() and (side == "text" or inputs[0].ndim < 4)
            yield inputs[0] if ready else read(*inputs)


CAPTIONS = 1024  # read at once, in order of length, so that a batch has little padding

# Pixels (B, H, W, 3) uint8, view from 1, row of the first image → normalised (B, 3, H, W) float32.
View = Callable[[torch.Tensor, int, int], torch.Tensor]


def open_features(
    encoder: Encoder,
    store: Store,
    views: int = 1,
    augment: View | None = None,
    augmentation: str = "",
    batch_size: int = 64,
    cache: Path | None = None,
) -> Store:
    """The features of all packed images, (N, V, F) or (N, V, P, F), computed where they are not stored yet.

    View 0 is the image as it is.  The others are augmented, of the training split alone: held-out
    images are never seen augmented, and have view 0 in every place.

    Args:
        encoder: its backbone makes the features, on the device where it is.
        store: the packed images; data set, size and resize mode key the features.
        views: V.
        augment: makes a batch of one view; the rows of a batch follow each other in the store.  It
            must depend on its arguments alone, and an image's result not on its neighbours, so that an
            interrupted computation goes on as if it never was.
        augmentation: names what `augment` does, seed included; keys the features.
        batch_size: images at once.
        cache: folder of the store, by default `data/cache/`.

    Raises:
        ValueError: an encoder that has no backbone or whose backbone is tuned, views without an
            augmentation, a store of other weights, or features that float16 cannot hold.
        OSError: not enough space on the disk, or the folder cannot be written.
    """
    fingerprint = _frozen_fingerprint(encoder)
    if views < 1 or (views > 1) != (augment is not None):
        raise ValueError(
            f"expected 1 view, or several and an augmentation, found {views} views and"
            f" {'an' if augment else 'no'} augmentation"
        )
    header = {
        "encoder": fingerprint,
        "images": store.path.stem,
        "shape": [len(store.array), views, *encoder.feature_shape],
        "augmentation": augmentation if views > 1 else "",
    }
    path = (cache or files.CACHE) / f"{store.path.stem}-features"
    is_train_N = np.zeros(len(store.array), dtype=bool)
    is_train_N[store.splits.get("train", [])] = True

    def compute(start: int, stop: int) -> np.ndarray:
        device = next(encoder.parameters()).device
        pixels_BHWC = torch.from_numpy(np.array(store.array[start:stop])).to(device)
        feature = read(
            normalise(pixels_BHWC, encoder.mean, encoder.std).to(memory_format=torch.channels_last)
        )
        feature_BV = np.repeat(feature.cpu().numpy()[:, None], views, axis=1)
        if is_train_N[start:stop].any():
            for view in range(1, views):
                seen = read(augment(pixels_BHWC, view, start)).cpu().numpy()
                feature_BV[is_train_N[start:stop], view] = seen[is_train_N[start:stop]]
        return feature_BV

    with _reading(encoder) as read:
        label = f"features of {store.path.stem.split('-')[0]}"
        array = open_array(path, header, compute, batch_size, label)
    return Store(array, dict(store.splits))


def open_text_features(
    encoder: Encoder,
    dataset: Dataset,
    tokenizer: Tokenizer,
    max_tokens: int,
    batch_size: int = 64,
    cache: Path | None = None,
) -> Store:
    """The features of all captions, (M, F), split after split, computed where they are not stored yet.

    Args:
        encoder, batch_size, cache: as `open_features`.
        dataset: its captions key the features.
        tokenizer: of the encoder.
        max_tokens: longest caption, tokens.

    Raises:
        ValueError, OSError: as `open_features`.
    """
    fingerprint = _frozen_fingerprint(encoder)
    captions = [caption for split in dataset.splits.values() for caption in split.captions]
    if not captions:
        raise ValueError(f"expected captions, found none in data set {dataset.name!r}")
    header = {
        "encoder": fingerprint,
        "captions": captions,
        "tokenizer": tokenizer.fingerprint,
        "max_tokens": max_tokens,
        "shape": [len(captions), *encoder.feature_shape],
    }
    path = (cache or files.CACHE) / f"{dataset.name}-captions"

    def compute(start: int, stop: int) -> np.ndarray:
        tokens_BL, length_B = map(torch.from_numpy, tokenizer.encode(captions[start:stop], max_tokens))
        feature_BF = np.empty((stop - start, *encoder.feature_shape), dtype=np.float32)
        device = next(encoder.parameters()).device
        for rows in torch.argsort(length_B, stable=True).split(batch_size):
            longest = int(length_B[rows].max().clamp(min=1))
            tokens = tokens_BL[rows, :longest].to(device)
            feature_BF[rows.numpy()] = read(tokens, length_B[rows].to(device)).cpu().numpy()
        return feature_BF

    with _reading(encoder) as read:
        label = f"features of {dataset.name} captions"
        array = open_array(path, header, compute, CAPTIONS, label)
    return Store(array, _caption_rows(dataset))


def _caption_rows(dataset: Dataset) -> dict[str, np.ndarray]:
    sizes = [len(split.captions) for split in dataset.splits.values()]
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return dict(zip(dataset.splits, rows))


def _frozen_fingerprint(encoder: Encoder) -> str:
    """The encoder's fingerprint, if its features stay what they are."""
    if encoder.feature_shape is None:
        raise ValueError(
            f"expected an encoder with a pretrained backbone, found {type(encoder).__name__}, which has no"
            " features to store; set cache_features to false"
        )
    if tuned := sum(p.requires_grad for p in encoder.backbone_parameters()):
        raise ValueError(
            f"expected an encoder that is not tuned, found {tuned} trained parameters in its backbone; its"
            " features would soon be others: tune 'none', or set cache_features to false"
        )
    return encoder.fingerprint()


@contextmanager
def _reading(encoder: Encoder) -> Iterator[Callable[..., torch.Tensor]]:
    """Gives the function from a batch to its features (B, …) float32, with the encoder in evaluation mode."""
    was_training = encoder.training

    def read(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return encoder.features(*inputs).float()

    encoder.eval()
    try:
        yield read
    finally:
        encoder.train(was_training)
