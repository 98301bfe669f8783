"""Brightness, contrast and saturation of a batch, each image with its own factors.

Every one is a mixture, factor · image + (1 - factor) · reference, of the image with black, with its
mean grey, or with its own grey picture (torchvision's adjust_brightness, _contrast, _saturation,
which these equal on uint8 up to one level).

A product is rounded before it is added, and a mean is taken of whole numbers in float64: so the
result does not depend on how a batch is laid out or cut into pieces.

Shapes: B images of H x W pixels, C = 3 channels.
"""

import numpy as np
import torch

from mmlib.data.transfer import to_device

BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2
GREY = (0.2989, 0.587, 0.114)  # shares of R, G, B; ITU-R BT.601, as torchvision has them


def jitter(image_BCHW: torch.Tensor, factor_B3: np.ndarray, order_B3: np.ndarray) -> torch.Tensor:
    """Applies the three, in each image's own order.

    Args:
        image_BCHW: uint8.
        factor_B3: of brightness, contrast, saturation; on the host.
        order_B3: each row a permutation of 0, 1, 2: which of them comes first, second, third.

    Returns:
        uint8, (B, 3, H, W).
    """
    step_3B = order_B3.T
    factor_3B = np.take_along_axis(factor_B3, order_B3, axis=1).T
    # Per step: factor, and the shares of mean grey and of grey in the reference (black has neither).
    weight_33B = np.stack([factor_3B, step_3B == CONTRAST, step_3B == SATURATION], axis=1)
    weight_33B111 = to_device(weight_33B.astype(np.float32)[..., None, None, None], image_BCHW.device)
    image_BCHW = image_BCHW.contiguous().float()  # one channel after another: grey is a sum over them
    for factor, of_mean, of_grey in weight_33B111:
        grey_B1HW = _grey(image_BCHW)
        reference_B1HW = _mean(grey_B1HW) * of_mean + grey_B1HW * of_grey
        image_BCHW = _mixed(image_BCHW, reference_B1HW, factor)
    return image_BCHW.to(torch.uint8)


def adjust(image_BCHW: torch.Tensor, kind: int, factor: float) -> torch.Tensor:
    """One of the three, with one factor for all images; uint8 to uint8."""
    image_BCHW = image_BCHW.float()
    if kind == BRIGHTNESS:
        return image_BCHW.mul_(factor).clamp_(0, 255).to(torch.uint8)
    grey_B1HW = _grey(image_BCHW)
    reference_B1HW = _mean(grey_B1HW) if kind == CONTRAST else grey_B1HW
    return _mixed(image_BCHW, reference_B1HW, factor).to(torch.uint8)


def _grey(image_BCHW: torch.Tensor) -> torch.Tensor:
    red, green, blue = image_BCHW.split(1, dim=1)
    return (red * GREY[0]).add_(green * GREY[1]).add_(blue * GREY[2]).floor_()


def _mean(grey_B1HW: torch.Tensor) -> torch.Tensor:
    return grey_B1HW.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()


def _mixed(image_BCHW: torch.Tensor, reference: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    """The mixture in 0..255, cut to whole levels; overwrites `image_BCHW`, which is float32."""
    return image_BCHW.mul_(factor).add_(reference * (1 - factor)).clamp_(0, 255).floor_()
