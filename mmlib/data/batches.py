"""Batches of pairs in an order that depends on seed and epoch alone, so any step can be found again.

Shapes: N images, M captions, P pairs of an epoch, B pairs of a batch, R of them in this process,
L positions, H = W pixels, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mmlib.config import AugmentConfig, ParameterError
from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD, Augment, normalise
from mmlib.data.dataset import Dataset
from mmlib.data.feature_store import FeatureStore
from mmlib.data.prefetch import prefetched
from mmlib.data.store import ImageStore
from mmlib.data.tokenizers import Tokenizer

DEVICE_SHARE = 0.4  # of a GPU's free memory that the packed images may take


@dataclass
class Batch:
    """One step's pairs, those of this process: image row r and caption row r belong together."""

    image: torch.Tensor  # pixels (R, 3, H, W) float32, normalised; or features (R, …)
    tokens: torch.Tensor  # token ids (R, L); or features (R, F)
    length_R: torch.Tensor
    image_id_R: torch.Tensor  # equal for pairs of one image
    rows: int  # how many of the R rows count: R, or 0 in a process that a short last batch leaves out
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
        store: ImageStore,
        tokenizer: Tokenizer,
        split: str,
        max_tokens: int,
        trim: int | None,
        device: torch.device,
        mean: tuple[float, float, float] = PIXEL_MEAN,
        std: tuple[float, float, float] = PIXEL_STD,
        image_features: FeatureStore | None = None,
        text_features: FeatureStore | None = None,
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
        self._pixels = _Rows(store.images, store.rows(split), device)
        self._image_features, self._text_features = (
            features and _Rows(features.array, features.rows(split), device)
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
        """Whether images need no copying to the device."""
        return (self._image_features or self._pixels).on_device

    def pixel_batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """Packed images (B, H, W, 3) uint8 of image indices within the split, on the device."""
        return self._pixels[index_B]

    def image_batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """What the image encoder reads of image indices within the split (on the host), unaugmented.

        Normalised pixels (B, 3, H, W) float32, or the features of the first view.
        """
        if self._image_features is not None:
            return self._image_features[index_B][:, 0].float()
        return normalise(self.pixel_batch(index_B), self.mean, self.std)

    def feature_batch(self, index_B: torch.Tensor, view_B: torch.Tensor) -> torch.Tensor:
        """Features (B, …) float32 of one view of each image; both indices on the host."""
        features = self._image_features[index_B]
        return features[torch.arange(len(features)), view_B.to(features.device)].float()

    @property
    def views(self) -> int:
        """V, the stored views of an image; 0 if pixels are read."""
        return 0 if self._image_features is None else self._image_features.array.shape[1]

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

    def epoch_order(self, seed: int, epoch: int, captions_per_image: str) -> torch.Tensor:
        """Caption indices of one epoch in their order, (P,): a function of its arguments alone.

        `all` is a permutation of all M captions; `one` has one caption of each captioned image.  Where
        sets are mixed with weights, a caption of weight w is seen w times an epoch on average: its
        whole part for certain, the rest by lot.
        """
        generator = torch.Generator().manual_seed((seed << 24) + epoch)
        order_M = torch.randperm(self.captions, generator=generator)
        if captions_per_image == "one":
            # The first caption of each image in a random order is a random caption in a random order.
            image_M = self.split.image_of_caption_M[order_M.numpy()]
            _, first = np.unique(image_M, return_index=True)
            order_M = order_M[torch.from_numpy(np.sort(first))]
        if self.split.weight_of_caption_M is None:
            return order_M
        return self._weighted(order_M, generator)

    def _weighted(self, order_P: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        weight_P = torch.from_numpy(self.split.weight_of_caption_M)[order_P]
        draw_P = torch.rand(len(order_P), generator=generator, dtype=torch.float64)
        times_P = weight_P.floor().long() + (draw_P < weight_P.frac())
        repeated = order_P.repeat_interleave(times_P)
        return repeated[torch.randperm(len(repeated), generator=generator)]


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
        rows = torch.from_numpy(self.array[self._rows_N[index_B.numpy()]])
        if self._device.type == "cuda":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
        return rows


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
        self._augment = Augment(augment)
        if (pairs := len(self._order(1))) < batch_size:
            raise ParameterError(
                f"batch_size must not exceed the pairs of an epoch: found {batch_size} for {pairs} training"
                f" pairs (captions_per_image={captions_per_image!r}); use batch_size {max(2, pairs // 2)}"
            )

    def steps(self, epoch: int) -> int:
        """Number of batches of an epoch; the last one may be smaller."""
        return -(-len(self._order(epoch)) // self.batch_size)

    def report(self) -> dict:
        """What the history of an epoch keeps of its reading; nothing, as packed images cannot fail."""
        return {}

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from step `start` (from 0) on.

        Images that have to be copied to the device are made ready by another thread, ahead.
        """
        made = self._made(epoch, start)
        return made if self.data.on_device else prefetched(made, self.data.device)

    def _made(self, epoch: int, start: int) -> Iterator[Batch]:
        order_P = self._order(epoch)
        view_P = self._views(epoch, len(order_P))
        for first in range(start * self.batch_size, len(order_P), self.batch_size):
            size = min(self.batch_size, len(order_P) - first)
            rows = self._share_of(size)
            # A process without a row of a short last batch reads one that does not count.
            place_R = torch.arange(first + rows.start, first + max(rows.stop, rows.start + 1))
            place_R = place_R.clamp(max=len(order_P) - 1)
            caption_R = order_P[place_R]
            image_R = torch.from_numpy(self.data.split.image_of_caption_M[caption_R.numpy()])
            image = self._image(image_R, place_R, epoch, view_P)
            tokens, length_R = self.data.caption_batch(caption_R)
            image_id_R = image_R.to(self.data.device, non_blocking=True)
            yield Batch(image, tokens, length_R, image_id_R, rows.stop - rows.start, size)

    def _order(self, epoch: int) -> torch.Tensor:
        return self.data.epoch_order(self.seed, epoch, self.captions_per_image)

    def _views(self, epoch: int, pairs: int) -> torch.Tensor | None:
        """The stored view of each place of an epoch, (P,); None if there is nothing to choose."""
        if self.data.views < 2:
            return None
        generator = torch.Generator().manual_seed(((self.seed + 1) << 24) + epoch)
        return torch.randint(self.data.views, (pairs,), generator=generator)

    def _image(
        self, image_R: torch.Tensor, place_R: torch.Tensor, epoch: int, view_P: torch.Tensor | None
    ) -> torch.Tensor:
        data = self.data
        if view_P is not None:
            return data.feature_batch(image_R, view_P[place_R])
        if data.views or not self._augment.active:
            return data.image_batch(image_R)
        pixels_RHWC = data.pixel_batch(image_R)
        return self._augment(pixels_RHWC, self.seed, epoch, place_R.numpy(), data.mean, data.std)
