"""What a run trains and validates on: pixels and token ids, or stored features of frozen encoders.

Shapes: N images, M captions, B items of a batch, V views, F feature channels, P positions,
L tokens, H = W pixels.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmlib import files
from mmlib.config import TrainConfig
from mmlib.data import Dataset, Tokenizer, open_store
from mmlib.data.augment import VERSION, augment, normalise
from mmlib.data.batches import SplitTensors
from mmlib.data.store import Store, open_array
from mmlib.model import DualEncoder
from mmlib.model.encoders import Encoder

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


STATISTICS = 2_000  # training items whose features give a head its mean and deviation
BATCH = 64  # images or captions that a frozen encoder reads at once
CAPTIONS = 1024  # captions stored at once, read in order of length, so that a batch has little padding
COMPILED_LENGTHS = 8  # token positions of a compiled model come in multiples of this


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
        features["image_features"] = open_features(image.to(fabric.device), store, config)
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


def standardise_heads(config: TrainConfig, model: DualEncoder, data: SplitTensors, fabric: "Fabric") -> None:
    """Gives fresh heads of pretrained encoders the mean and deviation of their training features.

    Those of up to `STATISTICS` images and captions spread over the split; of images in shards, over the
    first shards.  Process 0 measures for all, so that they agree to the bit.
    """
    for side, count in (("image", data.images_at_hand), ("text", data.captions)):
        encoder = getattr(model, f"{side}_encoder")
        if encoder.feature_shape is None:
            continue
        encoder.to(fabric.device)
        statistics = encoder.head.standardise
        if fabric.is_global_zero:
            features = []
            for index_B in torch.linspace(0, count - 1, min(STATISTICS, count)).long().split(100):
                inputs = (data.image_batch(index_B),) if side == "image" else data.caption_batch(index_B)
                features.append(inputs[0] if caches_features(config, side) else _features(encoder, *inputs))
            statistics.fit(torch.cat(features))
        for name, value in fabric.broadcast({k: v.cpu() for k, v in statistics.state_dict().items()}).items():
            getattr(statistics, name).copy_(value)


def _features(encoder: Encoder, *inputs: torch.Tensor) -> torch.Tensor:
    """The encoder's features (B, …) float32 of a batch, in evaluation mode."""
    was_training = encoder.training
    encoder.eval()
    with torch.no_grad():
        features = encoder.features(*inputs).float()
    encoder.train(was_training)
    return features


def open_features(encoder: Encoder, store: Store, config: TrainConfig, cache: Path | None = None) -> Store:
    """The features of all packed images, (N, V, F) or (N, V, P, F), computed where they are not stored yet.

    View 0 is the image as it is.  The others are augmented, of the training split alone: held-out
    images are never seen augmented, and have view 0 in every place.  An image's features do not depend on
    its neighbours, so that an interrupted computation goes on as if it never was.

    Args:
        encoder: its frozen backbone makes the features, on the device where it is.
        store: the packed images; data set, size and resize mode key the features.
        config: number of views, augmentation and seed.
        cache: folder of the store, by default `data/cache/`.

    Raises:
        ValueError: features that float16 cannot hold.
        OSError: not enough space on the disk, or the folder cannot be written.
    """
    views, device = config.feature_views, next(encoder.parameters()).device
    settings = (config.crop_area, config.flip, config.colour, config.randaugment, config.seed)
    header = {
        "encoder": encoder.fingerprint(),
        "images": store.path.stem,
        "shape": [len(store.array), views, *encoder.feature_shape],
        "augmentation": f"version {VERSION}: {settings}" if views > 1 else "",
    }
    path = (cache or files.CACHE) / f"{store.path.stem}-features"
    is_train_N = np.zeros(len(store.array), dtype=bool)
    is_train_N[store.splits.get("train", [])] = True

    def compute(start: int, stop: int) -> np.ndarray:
        pixels_BHWC = torch.from_numpy(np.array(store.array[start:stop])).to(device)
        plain = normalise(pixels_BHWC, encoder.mean, encoder.std)
        feature_BV = np.repeat(_features(encoder, plain).cpu().numpy()[:, None], views, axis=1)
        is_train_B = is_train_N[start:stop]
        for view in range(1, views if is_train_B.any() else 1):
            seen_BHWC = augment(pixels_BHWC, config, config.seed, view, range(start, stop))
            seen = _features(encoder, normalise(seen_BHWC, encoder.mean, encoder.std))
            feature_BV[is_train_B, view] = seen.cpu().numpy()[is_train_B]
        return feature_BV

    label = f"features of {store.path.stem.split('-')[0]}"
    return Store(open_array(path, header, compute, BATCH, label), dict(store.splits))


def open_text_features(
    encoder: Encoder,
    dataset: Dataset,
    tokenizer: Tokenizer,
    max_tokens: int,
    cache: Path | None = None,
) -> Store:
    """The features of all captions, (M, F), split after split, computed where they are not stored yet.

    Args:
        encoder, cache: as of `open_features`.
        dataset: its captions key the features.
        tokenizer: of the encoder.
        max_tokens: longest caption, tokens.

    Raises:
        ValueError, OSError: as `open_features`.
    """
    device = next(encoder.parameters()).device
    captions = [caption for split in dataset.splits.values() for caption in split.captions]
    header = {
        "encoder": encoder.fingerprint(),
        "captions": captions,
        "tokenizer": tokenizer.fingerprint,
        "max_tokens": max_tokens,
        "shape": [len(captions), *encoder.feature_shape],
    }
    path = (cache or files.CACHE) / f"{dataset.name}-captions"

    def compute(start: int, stop: int) -> np.ndarray:
        tokens_BL, length_B = map(torch.from_numpy, tokenizer.encode(captions[start:stop], max_tokens))
        feature_BF = np.empty((stop - start, *encoder.feature_shape), dtype=np.float32)
        for rows in torch.argsort(length_B, stable=True).split(BATCH):
            longest = int(length_B[rows].max().clamp(min=1))
            read = _features(encoder, tokens_BL[rows, :longest].to(device), length_B[rows].to(device))
            feature_BF[rows.numpy()] = read.cpu().numpy()
        return feature_BF

    array = open_array(path, header, compute, CAPTIONS, f"features of {dataset.name} captions")
    ends = np.cumsum([len(split.captions) for split in dataset.splits.values()])
    return Store(array, dict(zip(dataset.splits, np.split(np.arange(len(captions)), ends[:-1]))))
