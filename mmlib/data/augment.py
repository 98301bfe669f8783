"""Pixels → model input: crop, mirror, RandAugment, colour jitter, normalisation; on CPU and GPU alike.

Pixels are uint8 (B, H, W, 3) until `normalise` makes float32 (B, 3, H, W); what `augment` returns lies in
memory channel by channel, which mirrors and converts fastest.  Every image has its own
random numbers, which follow from seed, epoch and its place in the epoch alone, so a batch may be cut over
processes, resumed or enlarged without any image changing.

Shapes: B images of H x W pixels, G of them at once, C = 3 channels.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import interpolate

from mmlib.config import AugmentConfig

# Mean and deviation of ImageNet's RGB values in 0..1, the field's usual normalisation
# (torchvision's documentation of its classification weights).
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

VERSION = 2  # grows when equal settings give other pixels; stored features of augmented views name it
RATIO = (3 / 4, 4 / 3)  # width over height of a crop; torchvision's RandomResizedCrop
COLOUR_RANGE = 0.4  # of each factor around 1 at strength 1; the classic ColorJitter(0.4, 0.4, 0.4)
SHARE = 9 / 30  # of RandAugment's largest strengths: magnitude 9 of 30, torchvision's default
SHEAR = math.degrees(math.atan(0.3 * SHARE))

# Which of an image's numbers decide what: switching one augmentation on changes no other.
CROP, FLIP, COLOUR, RANDAUGMENT, NUMBERS = slice(0, 4), 4, slice(5, 8), slice(8, 24), 24
BLOCK = 4096  # places whose numbers are drawn at once
GROUP = 8  # images that a CPU normalises at once: what one step writes is in its cache for the next

Triple = tuple[float, float, float]


def normalise(image_BHWC: torch.Tensor, mean: Triple = PIXEL_MEAN, std: Triple = PIXEL_STD) -> torch.Tensor:
    """(pixels / 255 - mean) / std as float32 (B, 3, H, W), on the device of the pixels.

    Args:
        image_BHWC: uint8, RGB.
        mean, std: per channel, of values in 0..1.

    Raises:
        ValueError: pixels of another type or shape.
    """
    shape = tuple(image_BHWC.shape)
    if image_BHWC.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3:
        raise ValueError(
            "expected uint8 pixels of shape (B, H, W, 3) in a torch.Tensor, as a store has them, found"
            f" {image_BHWC.dtype} of shape {shape}"
        )
    scale_C11, shift_C11 = _constants(tuple(mean), tuple(std), image_BHWC.device)
    image_BCHW = image_BHWC.permute(0, 3, 1, 2)
    done_BCHW = torch.empty(image_BCHW.shape, dtype=torch.float32, device=image_BHWC.device)
    group = GROUP if image_BHWC.device.type == "cpu" else max(1, len(image_BHWC))
    for done_GCHW, image_GCHW in zip(done_BCHW.split(group), image_BCHW.split(group)):
        # First planar, then float: a conversion that does both at once is several times slower on a CPU.
        done_GCHW.copy_(image_GCHW.contiguous()).mul_(scale_C11).add_(shift_C11)
    return done_BCHW


def augment(
    image_BHWC: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, place_B: np.ndarray
) -> torch.Tensor:
    """The augmented images before normalisation, uint8 (B, H, W, 3); what was given is not changed.

    Args:
        image_BHWC: uint8, RGB, as the packed store has them.
        config: crop_area, flip, colour, randaugment; if none is on, the images come back as they are.
        seed: of the run.
        epoch: counts from 1.
        place_B: of each image in the epoch's order, from 0; integers on the host.
    """
    if not (config.crop_area < 1 or config.flip or config.colour or config.randaugment):
        return image_BHWC
    number_BN = random_numbers(seed, epoch, np.asarray(place_B))
    image_BCHW = image_BHWC.permute(0, 3, 1, 2)
    if config.crop_area < 1:
        boxes_B4 = crop_boxes(number_BN[:, CROP], config.crop_area, *image_BHWC.shape[1:3])
        image_BCHW = _crop(image_BCHW, boxes_B4)
    else:
        image_BCHW = image_BCHW.clone(memory_format=torch.contiguous_format)
    if config.flip:
        for i in np.flatnonzero(number_BN[:, FLIP] < 0.5).tolist():
            image_BCHW[i] = image_BCHW[i].flip(2)
    for k in range(config.randaugment):
        image_BCHW = _randaugment(image_BCHW, number_BN[:, RANDAUGMENT][:, 2 * k : 2 * k + 2])
    if config.colour:
        image_BCHW = _jitter(image_BCHW, 1 + COLOUR_RANGE * config.colour * (2 * number_BN[:, COLOUR] - 1))
    return image_BCHW.permute(0, 2, 3, 1)


def random_numbers(seed: int, epoch: int, place_B: np.ndarray) -> np.ndarray:
    """The numbers of the images at these places of an epoch, (B, NUMBERS) uniform in [0, 1)."""
    block_B, row_B = np.divmod(place_B, BLOCK)
    number_BN = np.empty((len(place_B), NUMBERS))
    for block in np.unique(block_B).tolist():
        number_BN[block_B == block] = _block(seed, epoch, block)[row_B[block_B == block]]
    return number_BN


@lru_cache(maxsize=8)
def _block(seed: int, epoch: int, block: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, block]).random((BLOCK, NUMBERS))


def crop_boxes(number_B4: np.ndarray, smallest: float, height: int, width: int) -> np.ndarray:
    """Random crops (B, 4) int64: top, left, height, width in pixels.

    As torchvision's RandomResizedCrop draws them, area uniform in [smallest, 1] of the image's and the
    logarithm of the aspect ratio uniform; but a side that is longer than the image's is cut to it, where
    torchvision draws again.
    """
    low, high = np.log(RATIO)
    area_B = height * width * (smallest + (1 - smallest) * number_B4[:, 0])
    ratio_B = np.exp(low + (high - low) * number_B4[:, 1])
    h_B = np.clip(np.rint(np.sqrt(area_B / ratio_B)), 1, height)
    w_B = np.clip(np.rint(np.sqrt(area_B * ratio_B)), 1, width)
    top_B = np.floor(number_B4[:, 2] * (height - h_B + 1))
    left_B = np.floor(number_B4[:, 3] * (width - w_B + 1))
    return np.stack([top_B, left_B, h_B, w_B], axis=1).astype(np.int64)


def _crop(image_BCHW: torch.Tensor, box_B4: np.ndarray) -> torch.Tensor:
    """Each image's crop, enlarged bilinearly to the image's size (which needs no antialiasing); planar."""
    cropped_BCHW = torch.empty(image_BCHW.shape, dtype=torch.uint8, device=image_BCHW.device)
    for i, (top, left, h, w) in enumerate(box_B4.tolist()):
        crop_1Chw = image_BCHW[i : i + 1, :, top : top + h, left : left + w]
        cropped_BCHW[i : i + 1] = interpolate(crop_1Chw, image_BCHW.shape[2:], mode="bilinear")
    return cropped_BCHW


def _jitter(image_BCHW: torch.Tensor, factor_B3: np.ndarray) -> torch.Tensor:
    """Brightness, contrast, saturation, each image with its own factors, in this order.

    Each is factor · image + (1 - factor) · reference: black, the image's mean grey, its grey picture
    (torchvision's adjust_brightness, _contrast, _saturation, which take one factor for all images).
    """
    factor_3B = torch.from_numpy(factor_B3.T.astype(np.float32))
    factor_3B111 = factor_3B[..., None, None, None].to(image_BCHW.device)
    image_BCHW = image_BCHW.float()
    image_BCHW = (image_BCHW * factor_3B111[0]).clamp_(0, 255)
    grey_B111 = _grey(image_BCHW).mean((1, 2, 3), keepdim=True)
    image_BCHW = image_BCHW.lerp_(grey_B111, 1 - factor_3B111[1]).clamp_(0, 255)
    return image_BCHW.lerp_(_grey(image_BCHW), 1 - factor_3B111[2]).clamp_(0, 255).to(torch.uint8)


def _grey(image_BCHW: torch.Tensor) -> torch.Tensor:
    red, green, blue = image_BCHW.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601, as torchvision has them


def _randaugment(image_BCHW: torch.Tensor, number_B2: np.ndarray) -> torch.Tensor:
    """One operation for each image, drawn with replacement (Cubuk et al. 2020, arXiv:1909.13719).

    Images that got the same operation with the same sign are done together.
    """
    operation_B = (number_B2[:, 0] * len(OPERATIONS)).astype(np.int64)
    sign_B = np.where(number_B2[:, 1] < 0.5, 1, -1)
    done_BCHW = torch.empty_like(image_BCHW)
    for operation, sign in {*zip(operation_B.tolist(), sign_B.tolist())}:
        group = torch.from_numpy((operation_B == operation) & (sign_B == sign)).to(image_BCHW.device)
        done_BCHW[group] = OPERATIONS[operation](image_BCHW[group], sign)
    return done_BCHW


def _functional():
    from torchvision.transforms.v2 import functional  # a second to import: only where it is used

    return functional


def _affine(image: torch.Tensor, translate: tuple = (0, 0), shear: tuple = (0.0, 0.0)) -> torch.Tensor:
    return _functional().affine(image, 0, [*translate], 1, [*shear], center=[0, 0])


def _shift(pixels: int, sign: int) -> int:
    return sign * int(150 / 331 * SHARE * pixels)


def _factor(sign: int) -> float:
    return 1 + sign * 0.9 * SHARE


# Those of torchvision's v2.RandAugment, in its order; of images (G, 3, H, W) uint8 and a sign, -1 or 1.
OPERATIONS: tuple[Callable[[torch.Tensor, int], torch.Tensor], ...] = (
    lambda image, sign: image,
    lambda image, sign: _affine(image, shear=(sign * SHEAR, 0.0)),
    lambda image, sign: _affine(image, shear=(0.0, sign * SHEAR)),
    lambda image, sign: _affine(image, (_shift(image.shape[3], sign), 0)),
    lambda image, sign: _affine(image, (0, _shift(image.shape[2], sign))),
    lambda image, sign: _functional().rotate(image, sign * 30 * SHARE),
    lambda image, sign: _functional().adjust_brightness(image, _factor(sign)),
    lambda image, sign: _functional().adjust_saturation(image, _factor(sign)),
    lambda image, sign: _functional().adjust_contrast(image, _factor(sign)),
    lambda image, sign: _functional().adjust_sharpness(image, _factor(sign)),
    lambda image, sign: _functional().posterize(image, 8 - round(4 * SHARE)),
    lambda image, sign: _functional().solarize(image, math.ceil(255 * (1 - SHARE))),
    lambda image, sign: _functional().autocontrast(image),
    lambda image, sign: _functional().equalize(image),
)


@lru_cache(maxsize=32)
def _constants(mean: Triple, std: Triple, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand (3, 1, 1) float32 that normalise pixels; copied to a device once."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std)]
    return tuple(torch.tensor(v, dtype=torch.float32, device=device).view(3, 1, 1) for v in (scale, shift))
