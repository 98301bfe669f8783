"""Random resized crop and mirror image of a batch, each image with its own: by OpenCV, or by a grid.

Both enlarge the crop bilinearly to the image's size (an enlargement needs no antialiasing) and round
to uint8; they differ by at most one level from each other and from torchvision.  OpenCV takes half as
long as torch's kernel at 224 pixels, and a third at 64, where most of a call is preparation.

Shapes: B images of H x W pixels, C = 3 channels; a box is top, left, height, width.
"""

import numpy as np
import torch
from torch.nn.functional import grid_sample

from mmlib.data.transfer import to_device


def crop_and_flip(
    image_BCHW: torch.Tensor, box_B4: np.ndarray | None, flip_B: np.ndarray | None
) -> torch.Tensor:
    """The crops of uint8 images at the images' own size, mirrored where asked, uint8.

    Args:
        image_BCHW: uint8; in memory as (B, H, W, 3) for speed.
        box_B4: crops in pixels, int64 on the host; None leaves all images whole.
        flip_B: bool on the host; None mirrors none.
    """
    if box_B4 is None and flip_B is None:
        return image_BCHW
    if image_BCHW.device.type == "cpu":
        return crop_natively(image_BCHW, box_B4, flip_B)
    if box_B4 is None:
        flip_B111 = to_device(flip_B, image_BCHW.device).view(-1, 1, 1, 1)
        return torch.where(flip_B111, image_BCHW.flip(3), image_BCHW)
    flip_B = np.zeros(len(box_B4)) if flip_B is None else flip_B
    box_B5 = np.concatenate([box_B4, flip_B[:, None]], axis=1).astype(np.float32)
    return crop_by_grid(image_BCHW, to_device(box_B5, image_BCHW.device))


def crop_natively(
    image_BCHW: torch.Tensor, box_B4: np.ndarray | None, flip_B: np.ndarray | None
) -> torch.Tensor:
    """One image after another by OpenCV's kernels for uint8 pixels, in memory as (B, H, W, 3)."""
    import cv2

    image_BHWC = image_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
    done_BHWC = np.empty_like(image_BHWC)
    size = image_BHWC.shape[2], image_BHWC.shape[1]
    flips = [False] * len(image_BHWC) if flip_B is None else flip_B.tolist()
    boxes = [None] * len(image_BHWC) if box_B4 is None else box_B4.tolist()
    for image, done, box, flip in zip(image_BHWC, done_BHWC, boxes, flips):
        if box is not None:
            top, left, height, width = box
            crop = image[top : top + height, left : left + width]
            image = cv2.resize(crop, size, dst=done, interpolation=cv2.INTER_LINEAR)
        if flip:
            cv2.flip(image, 1, dst=done)
        elif box is None:
            done[:] = image
    return torch.from_numpy(done_BHWC).permute(0, 3, 1, 2)


def crop_by_grid(image_BCHW: torch.Tensor, box_B5: torch.Tensor) -> torch.Tensor:
    """All images at once by sampling on a grid, for a GPU: nothing of it waits for the host.

    Args:
        image_BCHW: uint8.
        box_B5: float32 on the same device: top, left, height, width, and 1 to mirror or 0.
    """
    height, width = image_BCHW.shape[2:]
    top_B1, left_B1, h_B1, w_B1, flip_B1 = box_B5.unsqueeze(2).unbind(1)
    y_BH = top_B1 + _inside(height, h_B1)
    x_BW = _inside(width, w_B1)
    x_BW = left_B1 + torch.where(flip_B1 > 0, x_BW.flip(1), x_BW)
    # From pixel numbers to -1..1, the first and the last pixel's centres.
    y_BH, x_BW = y_BH * (2 / max(1, height - 1)) - 1, x_BW * (2 / max(1, width - 1)) - 1
    shape = (len(image_BCHW), height, width)
    grid_BHW2 = torch.stack([x_BW.unsqueeze(1).expand(shape), y_BH.unsqueeze(2).expand(shape)], dim=3)
    sampled = grid_sample(image_BCHW.float(), grid_BHW2, "bilinear", "border", align_corners=True)
    return sampled.round_().clamp_(0, 255).to(torch.uint8)


def _inside(pixels: int, length_B1: torch.Tensor) -> torch.Tensor:
    """Where `pixels` samples lie in a crop of each length, (B, pixels); at its edge the crop goes on."""
    n_P = torch.arange(pixels, device=length_B1.device, dtype=torch.float32)
    position_BP = (n_P + 0.5) * (length_B1 / pixels) - 0.5
    return torch.minimum(position_BP.clamp_(min=0), length_B1 - 1)
