"""Large float32 tensors on the host whose memory is used again once nobody holds them.

A batch of images is tens of megabytes.  Fresh memory of that size is mapped and zeroed by the system
page by page, which takes longer than filling it with pixels.
"""

import math
import weakref
from collections import OrderedDict, deque

import numpy as np
import torch

SIZES = 4  # different sizes whose memory is kept: batches, and the last one of an epoch
KEPT = 3  # free buffers kept of each size

_free: OrderedDict[int, deque[np.ndarray]] = OrderedDict()


def empty(shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor of this shape on the host, its values undefined.

    Its memory is taken back when the last tensor that shares it (views and what autograd saved
    included) is gone, and never before.
    """
    values = math.prod(shape)
    try:
        memory = _free[values].pop()
    except (KeyError, IndexError):
        memory = np.empty(values, dtype=np.float32)
    # The tensor's storage holds `lent` and nothing else does, so they end together.
    lent = memory.view()
    weakref.finalize(lent, _take_back, memory).atexit = False
    return torch.from_numpy(lent).view(shape)


def _take_back(memory: np.ndarray) -> None:
    _free.setdefault(memory.size, deque(maxlen=KEPT)).append(memory)
    if len(_free) > SIZES:
        _free.popitem(last=False)
