"""Batches of pairs in an order that depends on seed and epoch alone, so any step can be found again.

Shapes: N images, M captions, P pairs of an epoch, B pairs of a batch, L positions, H = W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mmlib.data.dataset import Dataset
from mmlib.data.store import ImageStore
from mmlib.data.tokenizers import Tokenizer

# Mean and deviation of ImageNet's RGB values in 0..1, the field's usual normalisation
# (torchvision's documentation of its classification weights).
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
DEVICE_SHARE = 0.4  # of a GPU's free memory that the packed images may take


@dataclass
class Batch:
    """One step's pairs: image row b and caption row b belong together."""

    image_BCHW: torch.Tensor  # float32, normalised
    tokens_BL: torch.Tensor
    length_B: torch.Tensor
    image_id_B: torch.Tensor  # index of the image within its split


class SplitTensors:
    """One split ready for the model: packed pixels and token ids, on the device where they fit.

    Args:
        dataset, store, tokenizer: what the split is read from.
        split: its name.
        max_tokens: L.
        trim: cut a batch's token ids to its longest caption.  Exact where padding is masked; a
            model without the mask must see every position.
        device: where batches are wanted.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: ImageStore,
        tokenizer: Tokenizer,
        split: str,
        max_tokens: int,
        trim: bool,
        device: torch.device,
    ):
        self.split = dataset.splits[split]
        self.device = device
        self.trim = trim
        tokens_ML, length_M = tokenizer.encode(self.split.captions, max_tokens)
        self.tokens_ML = torch.from_numpy(tokens_ML).to(device)
        self.length_M = torch.from_numpy(length_M).to(device)
        self._lengths_on_host = length_M
        self.image_of_caption_M = torch.from_numpy(self.split.image_of_caption_M).to(device)
        self._rows_N = store.rows(split)
        self._packed = store.images
        self._on_device_NHWC = self._copy_if_it_fits()
        self._mean_C11 = torch.tensor(PIXEL_MEAN, device=device).view(3, 1, 1)
        self._std_C11 = torch.tensor(PIXEL_STD, device=device).view(3, 1, 1)

    def _copy_if_it_fits(self) -> torch.Tensor | None:
        if self.device.type != "cuda":
            return None
        size = len(self._rows_N) * int(np.prod(self._packed.shape[1:]))
        if size > DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return None
        return torch.from_numpy(self._packed[self._rows_N]).to(self.device)

    @property
    def images(self) -> int:
        """N."""
        return len(self._rows_N)

    @property
    def captions(self) -> int:
        """M."""
        return len(self.split.captions)

    def image_batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """Normalised float32 images (B, 3, H, W) of image indices within the split (on the host)."""
        if self._on_device_NHWC is not None:
            image_BHWC = self._on_device_NHWC[index_B.to(self.device, non_blocking=True)]
        else:
            image_BHWC = torch.from_numpy(self._packed[self._rows_N[index_B.numpy()]])
            if self.device.type == "cuda":
                image_BHWC = image_BHWC.pin_memory().to(self.device, non_blocking=True)
        return (image_BHWC.permute(0, 3, 1, 2).float() / 255 - self._mean_C11) / self._std_C11

    def caption_batch(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, L) and lengths (B,) of caption indices within the split (on the host)."""
        longest = None
        if self.trim:
            longest = int(self._lengths_on_host[index_B.numpy()].max(initial=1))
        index_B = index_B.to(self.device, non_blocking=True)
        return self.tokens_ML[index_B, :longest], self.length_M[index_B]

    def pairs(self, caption_B: torch.Tensor) -> Batch:
        """The pairs of these captions (indices on the host) with their images."""
        image_B = torch.from_numpy(self.split.image_of_caption_M[caption_B.numpy()])
        tokens_BL, length_B = self.caption_batch(caption_B)
        return Batch(
            self.image_batch(image_B), tokens_BL, length_B, image_B.to(self.device, non_blocking=True)
        )

    def epoch_order(self, seed: int, epoch: int, captions_per_image: str) -> torch.Tensor:
        """Caption indices of one epoch in their order, (P,): a function of its arguments alone.

        `all` is a permutation of all M captions; `one` has one caption of each captioned image.
        """
        generator = torch.Generator().manual_seed((seed << 24) + epoch)
        order_M = torch.randperm(self.captions, generator=generator)
        if captions_per_image == "all":
            return order_M
        # The first caption of each image in a random order is a random caption in a random order.
        image_M = self.split.image_of_caption_M[order_M.numpy()]
        _, first = np.unique(image_M, return_index=True)
        return order_M[torch.from_numpy(np.sort(first))]
