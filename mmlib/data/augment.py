"""Augmentation of training images in batches, from packed uint8 pixels to what the model sees.

Order: random resized crop, mirror image, RandAugment, colour jitter, normalisation.  Every image has
its own random numbers, which follow from seed, epoch and its position in the epoch alone, so a batch
may be cut over processes, resumed or enlarged without any image changing.

Shapes: B images of H x W pixels, C = 3 channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmlib.config import AugmentConfig
from mmlib.data import augment_draws as draws
from mmlib.data.augment_colour import jitter
from mmlib.data.augment_crop import crop_and_flip
from mmlib.data.augment_rand import OPERATIONS, randaugment
from mmlib.data.pixels import (
    PIXEL_MEAN,
    PIXEL_STD,
    Triple,
    check_pixels,
    check_statistics,
    empty_images,
    normalise,
    normalise_into,
)
from mmlib.data.threads import chunk_images, in_chunks

Keys = np.ndarray | torch.Tensor | Sequence[int]


class Augment:
    """What the configuration asks for, done to batches of uint8 images.

    On the host, images are cropped in uint8 by OpenCV, a few at a time, on all of torch's threads where
    they are large, and converted once, while they are in the cache.  On a GPU, the whole batch is
    done by few kernels, and nothing waits for the device.

    Args:
        config: crop_area, flip, colour, randaugment.
    """

    def __init__(self, config: AugmentConfig):
        self.config = config

    @property
    def active(self) -> bool:
        """Whether any augmentation is on; if not, a call is exactly `normalise`."""
        config = self.config
        return bool(config.crop_area < 1 or config.flip or config.colour or config.randaugment)

    def __call__(
        self,
        image_BHWC: torch.Tensor,
        seed: int,
        epoch: int,
        key_B: Keys,
        mean: Triple = PIXEL_MEAN,
        std: Triple = PIXEL_STD,
        channels_last: bool = False,
    ) -> torch.Tensor:
        """Augmented and normalised float32 images (B, 3, H, W) on the device of the pixels.

        Args:
            image_BHWC: uint8, RGB, as the packed store has them.
            seed: of the run.
            epoch: counts from 1.
            key_B: of each image, its position in the epoch's order; integers on the host.
            mean, std: per channel, of values in 0..1.
            channels_last: lay the result out in memory as (B, H, W, 3).

        Raises:
            ValueError: pixels of another type or shape; not one integer key on the host for each
                image; a mean or deviation that cannot be.
        """
        drawn = self._drawn(image_BHWC, seed, epoch, key_B)
        if not self.active or image_BHWC.device.type != "cpu":
            image_BCHW = _changed(image_BHWC.permute(0, 3, 1, 2), drawn)
            return normalise(image_BCHW.permute(0, 2, 3, 1), mean, std, channels_last)
        check_statistics(tuple(mean), tuple(std))
        out_BCHW = empty_images(image_BHWC.shape, channels_last)

        def work(start: int, stop: int) -> None:
            image_BCHW = image_BHWC[start:stop].permute(0, 3, 1, 2)
            changed_BCHW = _changed(image_BCHW, drawn.rows(start, stop))
            normalise_into(out_BCHW[start:stop], changed_BCHW, mean, std)

        in_chunks(work, len(image_BHWC), chunk_images(math.prod(image_BHWC.shape[1:])))
        return out_BCHW

    def pixels(self, image_BHWC: torch.Tensor, seed: int, epoch: int, key_B: Keys) -> torch.Tensor:
        """The augmented images before normalisation, uint8 (B, H, W, 3): what a gallery shows.

        Arguments and errors are those of a call.
        """
        drawn = self._drawn(image_BHWC, seed, epoch, key_B)
        return _changed(image_BHWC.permute(0, 3, 1, 2), drawn).permute(0, 2, 3, 1)

    def _drawn(self, image_BHWC: torch.Tensor, seed: int, epoch: int, key_B: Keys) -> "Drawn":
        """What happens to each image, after a check of pixels and keys."""
        check_pixels(image_BHWC)
        state_B = draws.state_of(seed, epoch, _checked_keys(key_B, len(image_BHWC)))
        config, (height, width) = self.config, image_BHWC.shape[1:3]
        return Drawn(
            draws.boxes(state_B, config.crop_area, height, width) if config.crop_area < 1 else None,
            draws.flips(state_B) if config.flip else None,
            draws.operations(state_B, config.randaugment, len(OPERATIONS)) if config.randaugment else None,
            draws.colours(state_B, config.colour) if config.colour else None,
        )


@dataclass(frozen=True)
class Drawn:
    """What happens to each image of a batch, None where an augmentation is off; see `augment_draws`."""

    box_B4: np.ndarray | None
    flip_B: np.ndarray | None
    operations: tuple[np.ndarray, np.ndarray] | None
    colours: tuple[np.ndarray, np.ndarray] | None

    def rows(self, start: int, stop: int) -> "Drawn":
        """The same of images `start` to `stop - 1`."""
        part = slice(start, stop)
        return Drawn(
            None if self.box_B4 is None else self.box_B4[part],
            None if self.flip_B is None else self.flip_B[part],
            self.operations and (self.operations[0][part], self.operations[1][part]),
            self.colours and (self.colours[0][part], self.colours[1][part]),
        )


def _changed(image_BCHW: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """The images after all that was drawn for them, uint8 (B, 3, H, W)."""
    if not len(image_BCHW):
        return image_BCHW
    image_BCHW = crop_and_flip(image_BCHW, drawn.box_B4, drawn.flip_B)
    if drawn.operations:
        image_BCHW = randaugment(image_BCHW, *drawn.operations)
    if drawn.colours:
        image_BCHW = jitter(image_BCHW, *drawn.colours)
    return image_BCHW


def _checked_keys(key_B: Keys, images: int) -> np.ndarray:
    if isinstance(key_B, torch.Tensor) and key_B.device.type != "cpu":
        raise ValueError(f"expected keys on the host, found them on {key_B.device}: keep a copy there")
    key_B = np.asarray(key_B)
    if key_B.shape != (images,) or (images and key_B.dtype.kind not in "iu"):
        raise ValueError(
            f"expected one integer key for each of {images} images, its position in the epoch: found"
            f" {key_B.dtype} of shape {key_B.shape}"
        )
    return key_B
