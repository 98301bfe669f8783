"""RandAugment of a batch, each image with its own operations (Cubuk et al. 2020, arXiv:1909.13719).

The operations, their strengths and their kernels are those of torchvision's v2.RandAugment at its
default magnitude, 9 of 30: nearest-neighbour geometry, black outside the image.  Images that got the
same operation are done together.

Shapes: B images of H x W pixels, C = 3 channels, K operations of each image.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from mmlib.data.augment_colour import BRIGHTNESS, CONTRAST, SATURATION, adjust
from mmlib.data.transfer import to_device

SHARE = 9 / 30  # of each operation's largest strength
SHEAR = 0.3 * SHARE  # pixels per pixel
TRANSLATE = 150 / 331 * SHARE  # of the image's side
ROTATE = 30 * SHARE  # degrees
COLOUR = 0.9 * SHARE  # added to or taken from a factor of 1
POSTERISE_BITS = 8 - round(4 * SHARE)
SOLARISE_FROM = math.ceil(255 * (1 - SHARE))

Operation = Callable[[torch.Tensor, int], torch.Tensor]  # uint8 images, sign -1 or 1 → uint8 images


Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def _moved(image_BCHW: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Each pixel from the nearest to `matrix` · (x, y, 1), measured from the image's centre; else black."""
    index_P, inside_P = _sources(*image_BCHW.shape[2:], matrix, image_BCHW.device)
    flat_BCP = image_BCHW.flatten(2)
    return (flat_BCP.gather(2, index_P.expand(flat_BCP.shape)) * inside_P).view(image_BCHW.shape)


@lru_cache(maxsize=64)  # ten movements of an image size, all with one strength
def _sources(
    height: int, width: int, matrix: Matrix, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the H · W pixels, the number of the pixel it comes from, and 1 or 0 if there is none."""
    # float64: a position that falls between two pixels must round alike on every device.
    y_H1 = torch.arange(height, device=device, dtype=torch.float64).unsqueeze(1) - (height - 1) / 2
    x_W = torch.arange(width, device=device, dtype=torch.float64) - (width - 1) / 2
    (xx, xy, x1), (yx, yy, y1) = matrix
    from_x_HW = (xx * x_W + xy * y_H1 + x1 + (width - 1) / 2).round_().long()
    from_y_HW = (yx * x_W + yy * y_H1 + y1 + (height - 1) / 2).round_().long()
    inside_HW = (from_x_HW >= 0) & (from_x_HW < width) & (from_y_HW >= 0) & (from_y_HW < height)
    index_HW = from_y_HW.clamp_(0, height - 1) * width + from_x_HW.clamp_(0, width - 1)
    return index_HW.flatten(), inside_HW.flatten().to(torch.uint8)


def _shear_x(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    s = sign * SHEAR
    return _moved(image_BCHW, ((1, s, s * image_BCHW.shape[2] / 2), (0, 1, 0)))


def _shear_y(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    s = sign * SHEAR
    return _moved(image_BCHW, ((1, 0, 0), (s, 1, s * image_BCHW.shape[3] / 2)))


def _translate_x(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    return _moved(image_BCHW, ((1, 0, -sign * int(TRANSLATE * image_BCHW.shape[3])), (0, 1, 0)))


def _translate_y(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    return _moved(image_BCHW, ((1, 0, 0), (0, 1, -sign * int(TRANSLATE * image_BCHW.shape[2]))))


def _rotate(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    cos, sin = math.cos(math.radians(ROTATE)), sign * math.sin(math.radians(ROTATE))
    return _moved(image_BCHW, ((cos, -sin, 0), (sin, cos, 0)))


def _sharpness(image_BCHW: torch.Tensor, sign: int) -> torch.Tensor:
    """Away from or towards a 3 x 3 blur whose centre weighs five times as much; the edge stays.

    Sums of whole numbers, not a convolution, whose rounding depends on the batch and the device.
    """
    image_BCHW = image_BCHW.float()
    height, width = image_BCHW.shape[2:]
    rows = sum(image_BCHW[:, :, i : height - 2 + i] for i in range(3))
    blur = sum(rows[:, :, :, i : width - 2 + i] for i in range(3))
    inner = image_BCHW[:, :, 1:-1, 1:-1]
    blur = blur.add_(inner * 4).div_(13).round_()
    inner.add_(blur.sub_(inner).mul_(-sign * COLOUR))
    return image_BCHW.clamp_(0, 255).to(torch.uint8)


def _posterise(image_BCHW: torch.Tensor, _sign: int) -> torch.Tensor:
    return image_BCHW & (256 - (1 << (8 - POSTERISE_BITS)))


def _solarise(image_BCHW: torch.Tensor, _sign: int) -> torch.Tensor:
    """Inverts bright values; 255 - x has the opposite bits of x, which spares a slow choice by value."""
    return image_BCHW ^ (image_BCHW >= SOLARISE_FROM).to(torch.uint8).mul_(255)


def _autocontrast(image_BCHW: torch.Tensor, _sign: int) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return functional.autocontrast(image_BCHW)


def _equalize(image_BCHW: torch.Tensor, _sign: int) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(image_BCHW)


# In torchvision's order; whether the sign matters.
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "Identity": (lambda image, _sign: image, False),
    "ShearX": (_shear_x, True),
    "ShearY": (_shear_y, True),
    "TranslateX": (_translate_x, True),
    "TranslateY": (_translate_y, True),
    "Rotate": (_rotate, True),
    "Brightness": (lambda image, sign: adjust(image, BRIGHTNESS, 1 + sign * COLOUR), True),
    "Color": (lambda image, sign: adjust(image, SATURATION, 1 + sign * COLOUR), True),
    "Contrast": (lambda image, sign: adjust(image, CONTRAST, 1 + sign * COLOUR), True),
    "Sharpness": (_sharpness, True),
    "Posterize": (_posterise, False),
    "Solarize": (_solarise, False),
    "AutoContrast": (_autocontrast, False),
    "Equalize": (_equalize, False),
}
_TABLE = list(OPERATIONS.values())
_SIGNED = np.array([signed for _, signed in _TABLE])


def randaugment(image_BCHW: torch.Tensor, op_BK: np.ndarray, negative_BK: np.ndarray) -> torch.Tensor:
    """Applies operations 0 to K - 1 of each image, one after another.

    Args:
        image_BCHW: uint8.
        op_BK: numbers of operations in `OPERATIONS`, on the host.
        negative_BK: 1 where the operation goes the other way (to the left, darker, …), else 0.

    Returns:
        uint8, (B, 3, H, W).
    """
    image_BCHW = image_BCHW.contiguous()  # the operations run along rows of one channel
    for op_B, negative_B in zip(op_BK.T, negative_BK.T):
        code_B = 2 * op_B + (negative_B & _SIGNED[op_B])
        # Equal operations side by side: two small copies to the device, however many operations.
        order_B = np.argsort(code_B, kind="stable")
        codes, first = np.unique(code_B[order_B], return_index=True)
        sorted_BCHW = image_BCHW[to_device(order_B, image_BCHW.device)]
        groups = sorted_BCHW.tensor_split(first[1:].tolist())
        done = [
            _TABLE[code // 2][0](group, 1 - 2 * (code % 2)) for code, group in zip(codes.tolist(), groups)
        ]
        image_BCHW = torch.cat(done)[to_device(np.argsort(order_B), image_BCHW.device)]
    return image_BCHW
