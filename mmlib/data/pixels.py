"""From packed uint8 pixels to the normalised float32 images that a model sees.

Shapes: B images of H x W pixels, C = 3 channels.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from mmlib.data import buffers
from mmlib.data.threads import chunk_images, in_chunks

# Mean and deviation of ImageNet's RGB values in 0..1, the field's usual normalisation
# (torchvision's documentation of its classification weights).
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]


def normalise(
    image_BHWC: torch.Tensor, mean: Triple = PIXEL_MEAN, std: Triple = PIXEL_STD, channels_last: bool = False
) -> torch.Tensor:
    """(pixels / 255 - mean) / std as float32 (B, 3, H, W), on the device of the pixels.

    Computed as one product and one sum, pixels x 1/(255 std) - mean/std, a few images at a time
    while they are in the cache.  The result of an image does not depend on the batch it is in.

    Args:
        image_BHWC: uint8, RGB.
        mean, std: per channel, of values in 0..1.
        channels_last: lay the result out in memory as (B, H, W, 3), which is faster to fill and
            what convolutions on a GPU prefer; its shape is (B, 3, H, W) all the same.

    Raises:
        ValueError: pixels of another type or shape; a mean or deviation that is not three finite
            numbers, or a deviation that is not positive.
    """
    check_pixels(image_BHWC)
    image_BCHW = image_BHWC.permute(0, 3, 1, 2)
    if image_BHWC.device.type != "cpu":
        layout = torch.channels_last if channels_last else torch.contiguous_format
        scale_C11, shift_C11 = constants(tuple(mean), tuple(std), image_BHWC.device)
        return image_BCHW.to(torch.float32, memory_format=layout).mul_(scale_C11).add_(shift_C11)
    check_statistics(tuple(mean), tuple(std))
    out_BCHW = empty_images(image_BHWC.shape, channels_last)
    in_chunks(
        lambda start, stop: normalise_into(out_BCHW[start:stop], image_BCHW[start:stop], mean, std),
        len(image_BHWC),
        chunk_images(math.prod(image_BHWC.shape[1:])),
    )
    return out_BCHW


def empty_images(shape_BHWC: torch.Size, channels_last: bool) -> torch.Tensor:
    """Float32 (B, 3, H, W) on the host, values undefined, in memory as (B, H, W, 3) if asked."""
    batch, height, width, channels = shape_BHWC
    if channels_last:
        return buffers.empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return buffers.empty((batch, channels, height, width))


def normalise_into(out_BCHW: torch.Tensor, image_BCHW: torch.Tensor, mean: Triple, std: Triple) -> None:
    """Writes normalised `image_BCHW` (uint8, any layout) to `out_BCHW` (float32), on the host."""
    scale_C11, shift_C11 = constants(tuple(mean), tuple(std), out_BCHW.device)
    out_BHWC = out_BCHW.permute(0, 2, 3, 1)
    if not out_BHWC.is_contiguous():
        out_BCHW.copy_(planar(image_BCHW)).mul_(scale_C11).add_(shift_C11)
        return
    # Whole rows: over three channels alone, the innermost loop would be three values long.
    width = out_BCHW.shape[3]
    rows_BHX = out_BHWC.copy_(image_BCHW.permute(0, 2, 3, 1)).flatten(2)
    rows_BHX.mul_(scale_C11.flatten().repeat(width)).add_(shift_C11.flatten().repeat(width))


def planar(image_BCHW: torch.Tensor) -> torch.Tensor:
    """The same uint8 images with each channel's pixels side by side, on the host.

    By OpenCV where three channels lie in turn, which takes a fraction of torch's time.
    """
    import cv2

    image_BHWC = image_BCHW.permute(0, 2, 3, 1)
    batch, height, width, channels = image_BHWC.shape
    if not image_BHWC.is_contiguous() or channels != 3 or not image_BHWC.numel():
        return image_BCHW.contiguous()
    planes_CBHW = np.empty((channels, batch, height, width), dtype=np.uint8)
    rows = image_BHWC.numpy().reshape(batch * height, width, channels)
    cv2.split(rows, mv=list(planes_CBHW.reshape(channels, batch * height, width)))
    return torch.from_numpy(planes_CBHW).transpose(0, 1)


@lru_cache(maxsize=32)
def constants(mean: Triple, std: Triple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand (3, 1, 1) float32 that normalise pixels; copied to a device once."""
    check_statistics(mean, std)
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std)]
    return tuple(torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (scale, shift))


def check_statistics(mean: Triple, std: Triple) -> None:
    """Raises ValueError unless mean and deviation are three numbers each, deviations positive."""
    three = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std)))
    if not three or min(std) <= 0:
        raise ValueError(
            "expected a mean and a positive deviation of each of 3 channels, for values in 0..1: found mean"
            f" {mean}, std {std}"
        )


def check_pixels(image_BHWC: torch.Tensor) -> None:
    """Raises ValueError unless these are uint8 pixels (B, H, W, 3)."""
    if not isinstance(image_BHWC, torch.Tensor):
        raise ValueError(
            f"expected pixels as a torch.Tensor, found {type(image_BHWC).__name__}; use torch.from_numpy"
        )
    if image_BHWC.dtype != torch.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[3] != 3:
        raise ValueError(
            "expected uint8 pixels of shape (B, H, W, 3), as the packed store has them: found"
            f" {image_BHWC.dtype} of shape {tuple(image_BHWC.shape)}"
        )
