"""The random numbers of augmentation: a function of seed, epoch and position in the epoch alone.

Nothing is drawn in sequence, so an image gets the same crop whatever batch or process it comes in
and wherever a run was resumed.

Shapes: B images, K operations, N numbers of each image.
"""

import numpy as np

RATIO = (3 / 4, 4 / 3)  # width over height of a random crop; torchvision's RandomResizedCrop
ATTEMPTS = 10  # at a crop that fits, before the whole image is taken; the same
COLOUR_RANGE = 0.4  # of each colour factor around 1 at strength 1 (the classic ColorJitter(0.4, 0.4, 0.4))

# Which of an image's numbers decide what; each has its own, so switching one on changes no other.
CROP, FLIP, COLOUR, RANDAUGMENT = 0, 100, 200, 300

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(value: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64: 64 well-mixed bits of 64 bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def state_of(seed: int, epoch: int, key_B: np.ndarray) -> np.ndarray:
    """The generator's state (B,) uint64 of each image of an epoch."""
    state = np.zeros(1, dtype=np.uint64)
    for number in (seed, epoch):
        state = _mix(state + np.array([(number + _STEP) & _MASK], dtype=np.uint64))
    return _mix(state + key_B.astype(np.uint64) * np.uint64(_STEP))


def uniform(state_B: np.ndarray, first: int, count: int) -> np.ndarray:
    """Numbers `first` to `first + count - 1` of each image, (B, count) in [0, 1).

    SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), whose
    n-th output is a function of the state and n.
    """
    n_N = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(_STEP)
    return (_mix(state_B[:, None] + n_N) >> np.uint64(11)) * 2.0**-53


def boxes(state_B: np.ndarray, smallest: float, height: int, width: int) -> np.ndarray:
    """Random crops as torchvision's RandomResizedCrop draws them.

    Area uniform in [smallest, 1] of the image's, logarithm of the aspect ratio uniform, the first
    of ten attempts that fits; if none does, the largest central crop of an allowed ratio.

    Returns:
        (B, 4) int64: top, left, height, width in pixels.
    """
    u_B = uniform(state_B, CROP, 2 + 2 * ATTEMPTS)
    area_BA = height * width * (smallest + (1 - smallest) * u_B[:, 2 : 2 + ATTEMPTS])
    low, high = np.log(RATIO)
    ratio_BA = np.exp(low + (high - low) * u_B[:, 2 + ATTEMPTS :])
    w_BA, h_BA = np.rint(np.sqrt(area_BA * ratio_BA)), np.rint(np.sqrt(area_BA / ratio_BA))
    fits_BA = (w_BA > 0) & (w_BA <= width) & (h_BA > 0) & (h_BA <= height)
    row_B, chosen_B, found_B = np.arange(len(state_B)), fits_BA.argmax(1), fits_BA.any(1)
    w_B = np.where(found_B, w_BA[row_B, chosen_B], min(width, round(height * RATIO[1])))
    h_B = np.where(found_B, h_BA[row_B, chosen_B], min(height, round(width / RATIO[0])))
    top_B = np.where(found_B, np.floor(u_B[:, 0] * (height - h_B + 1)), (height - h_B) // 2)
    left_B = np.where(found_B, np.floor(u_B[:, 1] * (width - w_B + 1)), (width - w_B) // 2)
    return np.stack([top_B, left_B, h_B, w_B], axis=1).astype(np.int64)


def flips(state_B: np.ndarray) -> np.ndarray:
    """Whether each image is mirrored, (B,) bool: half of them."""
    return uniform(state_B, FLIP, 1)[:, 0] < 0.5


def colours(state_B: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors of brightness, contrast and saturation (B, 3), and the order of the three (B, 3).

    Factors are uniform in 1 ± 0.4 · strength, orders are random, as in torchvision's ColorJitter.
    """
    u_B = uniform(state_B, COLOUR, 6)
    factor_B3 = 1 + COLOUR_RANGE * strength * (2 * u_B[:, :3] - 1)
    return factor_B3, np.argsort(u_B[:, 3:], axis=1)


def operations(state_B: np.ndarray, count: int, choices: int) -> tuple[np.ndarray, np.ndarray]:
    """For each image `count` operations out of `choices` and their signs, 0 or 1: both (B, count) int64.

    Operations are drawn with replacement, as in RandAugment.
    """
    u_BK2 = uniform(state_B, RANDAUGMENT, 2 * count).reshape(-1, count, 2)
    return (u_BK2[..., 0] * choices).astype(np.int64), (u_BK2[..., 1] < 0.5).astype(np.int64)
