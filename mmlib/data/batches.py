"""Batches of pairs in an order that depends on seed and epoch alone, so any step can be found again.

Shapes: N images, M captions, P pairs of an epoch, B pairs of a batch, R of them in this process,
L positions, H = W pixels, F features.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from mmlib.config import AugmentConfig, ParameterError
from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD, augment, normalise
from mmlib.data.dataset import Dataset, Split
from mmlib.data.decoding import Resize, resize_image
from mmlib.data.shard_files import WINDOW
from mmlib.data.store import Store
from mmlib.data.tokenizers import Tokenizer

DECODERS = 8  # threads that decode images that are not packed
DEVICE_SHARE = 0.4  # of a GPU's free memory that the packed images may take


@dataclass
class Batch:
    """One step's pairs, those of this process: image row r and caption row r belong together."""

    image: torch.Tensor  # what the image encoder reads: normalised (R, 3, H, W) float32, or features (R, …)
    tokens: torch.Tensor  # what the text encoder reads: token ids (R, L), or features (R, F)
    length_R: torch.Tensor
    image_id_R: torch.Tensor  # equal for pairs of one image
    rows: int  # valid rows: R, or 0 if the short last batch has none for this process
    size: int  # B, over all processes


class SplitTensors:
    """One split ready for the model: packed pixels and token ids, on the device where they fit.

    Args:
        dataset, store, tokenizer: what the split is read from.
        split: its name.
        max_tokens: L.
        trim: cut a batch's token ids to its longest caption, rounded up to a multiple of this; None
            for not at all.  Exact where padding is masked; a model without the mask must see every
            position.  A compiled model wants few different lengths.
        device: where batches are wanted.
        mean, std: of the pixels that the image encoder was made for, RGB in 0..1.
        image_features, text_features: what frozen encoders make of images (V views, the first as it
            is) and captions; then these are given in place of pixels and token ids.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Store,
        tokenizer: Tokenizer,
        split: str,
        max_tokens: int,
        trim: int | None,
        device: torch.device,
        mean: tuple[float, float, float] = PIXEL_MEAN,
        std: tuple[float, float, float] = PIXEL_STD,
        image_features: Store | None = None,
        text_features: Store | None = None,
    ):
        self.split = dataset.split(split)
        self.device = device
        self.trim = trim
        self.mean, self.std = mean, std
        tokens_ML, length_M = tokenizer.encode(self.split.captions, max_tokens)
        self.tokens_ML = torch.from_numpy(tokens_ML).to(device)
        self.length_M = torch.from_numpy(length_M).to(device)
        self._lengths_on_host = length_M
        self.image_of_caption_M = torch.from_numpy(self.split.image_of_caption_M).to(device)
        shard_N = self.split.shard_of_image_N
        self._shard_of_caption_M = None if shard_N is None else shard_N[self.split.image_of_caption_M]
        if shard_N is None:
            self._pixels = _Rows(store.array, store.splits[split], device)
        else:
            self._pixels = _Decoded(dataset, self.split, store.array.shape[1], store.resize, device)
        self._image_features, self._text_features = (
            features and _Rows(features.array, features.splits[split], device)
            for features in (image_features, text_features)
        )

    @property
    def images(self) -> int:
        """N."""
        return len(self.split.images)

    @property
    def captions(self) -> int:
        """M."""
        return len(self.split.captions)

    @property
    def on_device(self) -> bool:
        """True if images need no copying to the device."""
        return (self._image_features or self._pixels).on_device

    @property
    def views(self) -> int:
        """V, the stored views of an image; 0 if pixels are read."""
        return 0 if self._image_features is None else self._image_features.array.shape[1]

    def pixel_batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """Images (B, H, W, 3) uint8 of image indices within the split (on the host), on the device."""
        return self._pixels[index_B]

    def image_batch(self, index_B: torch.Tensor, view_B: torch.Tensor | None = None) -> torch.Tensor:
        """What the image encoder reads of image indices within the split (on the host), unaugmented.

        Normalised pixels (B, 3, H, W) float32; or features (B, …) float32 of one view of each image, by
        default the first one.
        """
        if self._image_features is None:
            return normalise(self.pixel_batch(index_B), self.mean, self.std)
        feature_BV = self._image_features[index_B]
        view_B = torch.zeros_like(index_B) if view_B is None else view_B
        return feature_BV[torch.arange(len(index_B)), view_B.to(feature_BV.device)].float()

    def caption_batch(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, L), or features, and lengths (B,) of caption indices within the split."""
        on_device_B = index_B.to(self.device, non_blocking=True)
        if self._text_features is not None:
            return self._text_features[index_B].float(), self.length_M[on_device_B]
        longest = None
        if self.trim:
            longest = int(self._lengths_on_host[index_B.numpy()].max(initial=1))
            longest = -(-longest // self.trim) * self.trim
        return self.tokens_ML[on_device_B, :longest], self.length_M[on_device_B]

    @property
    def images_at_hand(self) -> int:
        """How many images from the first on can be read without fetching many shards."""
        shard_N = self.split.shard_of_image_N
        return self.images if shard_N is None else int((shard_N < shard_N.min() + WINDOW).sum())

    def epoch_order(self, seed: int, epoch: int, captions_per_image: str) -> torch.Tensor:
        """Caption indices of one epoch in their order, (P,): a function of its arguments alone.

        `all` is a permutation of all M captions; `one` has one caption of each captioned image.  Where
        sets are mixed with weights, a caption of weight w is seen w times an epoch on average: its
        whole part for certain, the rest by lot.  Images that are read from shards come in windows of
        shards, each of which is ordered in this way (`window_order`).
        """
        return torch.cat(self.epoch_windows(seed, epoch, captions_per_image))

    def epoch_windows(self, seed: int, epoch: int, captions_per_image: str) -> list[torch.Tensor]:
        """`epoch_order` cut where the next shards begin; one piece where there are none."""
        generator = torch.Generator().manual_seed((seed << 24) + epoch)
        if self._shard_of_caption_M is None:
            windows = [torch.randperm(self.captions, generator=generator)]
        else:
            windows = [torch.from_numpy(w) for w in window_order(self._shard_of_caption_M, seed, epoch)]
        if captions_per_image == "one":
            windows = [self._one_of_each_image(order_W) for order_W in windows]
        if self.split.weight_of_caption_M is None:
            return windows
        return [self._weighted(order_W, generator) for order_W in windows]

    def fetch_soon(self, window_W: torch.Tensor) -> None:
        """Fetch the shards behind URLs that hold the images of these captions, in another thread."""
        self._pixels.source.fetch_soon(np.unique(self._shard_of_caption_M[window_W]).tolist())

    def _one_of_each_image(self, order_P: torch.Tensor) -> torch.Tensor:
        # The first caption of each image in a random order is a random caption in a random order.
        _, first = np.unique(self.split.image_of_caption_M[order_P.numpy()], return_index=True)
        return order_P[torch.from_numpy(np.sort(first))]

    def _weighted(self, order_P: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        weight_P = torch.from_numpy(self.split.weight_of_caption_M)[order_P]
        draw_P = torch.rand(len(order_P), generator=generator, dtype=torch.float64)
        times_P = weight_P.floor().long() + (draw_P < weight_P.frac())
        repeated = order_P.repeat_interleave(times_P)
        return repeated[torch.randperm(len(repeated), generator=generator)]


def window_order(shard_of_caption_M: np.ndarray, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Caption indices of one epoch, those of `WINDOW` shards at a time, each once.

    The shards are permuted and cut into windows; the captions of a window are permuted.
    """
    by_shard_M = np.argsort(shard_of_caption_M, kind="stable")
    shards, start_S = np.unique(shard_of_caption_M[by_shard_M], return_index=True)
    captions_of = np.split(by_shard_M, start_S[1:])
    order_S = np.random.default_rng([seed, epoch]).permutation(len(shards))
    for number, first in enumerate(range(0, len(shards), WINDOW)):
        caption_W = np.concatenate([captions_of[s] for s in order_S[first : first + WINDOW]])
        yield caption_W[np.random.default_rng([seed, epoch, 1 + number]).permutation(len(caption_W))]


class _Decoded:
    """Images of a split that is not packed, decoded by threads when a batch asks for them."""

    on_device = False  # so that another thread makes the batches ahead

    def __init__(self, dataset: Dataset, split: Split, size: int, resize: Resize, device: torch.device):
        self.source, self._images, self._device = dataset.source, split.images, device
        self._size, self._resize = size, resize
        self._pool = ThreadPoolExecutor(DECODERS, "decoding")

    def __getitem__(self, index_B: torch.Tensor) -> torch.Tensor:
        """Pixels (B, H, W, 3) uint8 of indices on the host, on the device."""
        pixels = torch.from_numpy(np.stack(list(self._pool.map(self._pixels, index_B.tolist()))))
        return _on(self._device, pixels)

    def _pixels(self, index: int) -> np.ndarray:
        image = self.source.load(self._images[index], self._size)
        return resize_image(image, self._size, self._resize)


class _Rows:
    """Rows of a big array, on the device if they fit there."""

    def __init__(self, array: np.ndarray, rows_N: np.ndarray, device: torch.device):
        self.array, self._rows_N, self._device = array, rows_N, device
        size = len(rows_N) * int(np.prod(array.shape[1:])) * array.itemsize
        fits = device.type == "cuda" and size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
        self._copy = torch.from_numpy(array[rows_N]).to(device) if fits else None

    @property
    def on_device(self) -> bool:
        return self._device.type != "cuda" or self._copy is not None

    def __getitem__(self, index_B: torch.Tensor) -> torch.Tensor:
        """Rows of indices on the host, on the device."""
        if self._copy is not None:
            return self._copy[index_B.to(self._device, non_blocking=True)]
        return _on(self._device, torch.from_numpy(self.array[self._rows_N[index_B.numpy()]]))


def _on(device: torch.device, rows: torch.Tensor) -> torch.Tensor:
    """The rows on the device; a GPU gets them from pinned memory while the host goes on."""
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows


class PairSource:
    """The training pairs of one process, step by step.

    Args:
        data: the training split.
        batch_size: B, over all processes.
        captions_per_image, seed: see `SplitTensors.epoch_order`; the seed is that of augmentation too.
        augment: what is done to the pixels.
        share_of: the rows of a batch of so many pairs that are this process's.

    Raises:
        ParameterError: an epoch has fewer pairs than one batch.
    """

    def __init__(
        self,
        data: SplitTensors,
        batch_size: int,
        captions_per_image: str,
        seed: int,
        augment: AugmentConfig,
        share_of=lambda count: slice(0, count),
    ):
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.captions_per_image, self._share_of = captions_per_image, share_of
        self.augment = augment
        if (pairs := len(data.epoch_order(seed, 1, captions_per_image))) < batch_size:
            raise ParameterError(
                f"batch_size must not exceed the pairs of an epoch: found {batch_size} for {pairs} training"
                f" pairs (captions_per_image={captions_per_image!r}); use batch_size {max(2, pairs // 2)}"
            )

    def steps(self, epoch: int) -> int:
        """Number of batches of an epoch; the last one may be smaller."""
        return -(-len(self.data.epoch_order(self.seed, epoch, self.captions_per_image)) // self.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from step `start` (from 0) on.

        Images that have to be copied to the device are made ready by another thread, one batch ahead.
        """
        made = self._made(epoch, start)
        return made if self.data.on_device else _ahead(made)

    def _made(self, epoch: int, start: int) -> Iterator[Batch]:
        windows = self.data.epoch_windows(self.seed, epoch, self.captions_per_image)
        order_P, end_W = torch.cat(windows), np.cumsum([len(window) for window in windows])
        generator = torch.Generator().manual_seed(((self.seed + 1) << 24) + epoch)
        view_P = torch.randint(max(1, self.data.views), (len(order_P),), generator=generator)
        entered = None
        for first in range(start * self.batch_size, len(order_P), self.batch_size):
            window = int(np.searchsorted(end_W, first, side="right"))
            if window != entered and window + 1 < len(windows):
                self.data.fetch_soon(windows[window + 1])
            entered = window
            size = min(self.batch_size, len(order_P) - first)
            rows = self._share_of(size)
            # A process without a row of a short last batch reads one that does not count.
            place_R = torch.arange(first + rows.start, first + max(rows.stop, rows.start + 1))
            place_R = place_R.clamp(max=len(order_P) - 1)
            caption_R = order_P[place_R]
            image_R = torch.from_numpy(self.data.split.image_of_caption_M[caption_R.numpy()])
            if self.data.views:
                image = self.data.image_batch(image_R, view_P[place_R])
            else:
                pixels_RHWC = self.data.pixel_batch(image_R)
                pixels_RHWC = augment(pixels_RHWC, self.augment, self.seed, epoch, place_R.numpy())
                image = normalise(pixels_RHWC, self.data.mean, self.data.std)
            tokens, length_R = self.data.caption_batch(caption_R)
            image_id_R = image_R.to(self.data.device, non_blocking=True)
            yield Batch(image, tokens, length_R, image_id_R, rows.stop - rows.start, size)


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each made by another thread while the one before is used."""
    with ThreadPoolExecutor(1, "batches") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
