"""Pictures that look alike: a 64-bit hash of the low frequencies proposes, the pixels at 32 x 32 decide.

Limits come from Flickr8k, 6,000 training against 2,000 other images as they are and mirrored, 24
million pairs: none is called a copy.  Of copies of 800 images it finds 100 % at a quarter of the size,
at JPEG quality 10 or mirrored, 99.9 % at half the size and quality 30, 98.4 to 99.4 % brighter by 30 %,
darker by 40 %, with more contrast, grey, blurred or without 1 % of each side.  Wider crops are found
less and less: 98.5 % of those of 1.3 % off each side, 34 % of 2.7 %, 1 % of 4.9 %.  Other shots of one
scene are other photos.

Two screenshots share their frame, two drawings their white paper, and such pictures have one hash and
correlate.  So every part that shows something counts alike; and where most parts show nothing (1 % of
Flickr8k), the pixels themselves must be the same: of these, copies of another size or quality are found,
those of other colours or cut are not.

Shapes: N training images, K held-out images, R any images; H = W = `SIDE` pixels, C colours, F frequencies.
"""

import numpy as np

SIDE = 32  # pixels of the squares that are hashed
MAX_DISTANCE = 12  # bits of 64
MIN_CORRELATION = 0.94
BLOCK = 4  # pixels of a part's side
MIN_STRUCTURE = 3.0  # grey levels that a part deviates by if it shows anything
MIN_ALIKE = 0.7  # mean over the parts that show something, 1 for equal ones
MIN_SHOWING = 0.5  # share of such parts in a picture that is not flat
MAX_GREY, MAX_COLOUR = 10, 32  # levels that any pixel of a flat picture's copy may differ by
LUMA_C = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
PAIRS = 2**24  # distances held at a time
LOOKS = 2**11  # pairs looked at again at a time


def perceptual_hash(image_RHWC: np.ndarray) -> np.ndarray:
    """64 bits of each image's look: is a low frequency stronger than the median of its 64?

    Frequencies 1 to 8 of the cosine transform of the grey image, both ways; without frequency 0,
    so that brightness does not count (Zauner 2010, "Implementation and Benchmarking of Perceptual
    Image Hash Functions", the DCT hash).

    Args:
        image_RHWC: (R, 32, 32, 3) uint8.

    Returns:
        (R,) uint64.

    Raises:
        ValueError: another shape.
    """
    if image_RHWC.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(f"expected images of shape (R, {SIDE}, {SIDE}, 3), found {image_RHWC.shape}")
    grey_RHW = image_RHWC.astype(np.float32) @ LUMA_C
    from scipy.fft import dctn

    wave_RF = dctn(grey_RHW, axes=(1, 2), norm="ortho")[:, 1:9, 1:9].reshape(len(grey_RHW), 64)
    bit_RF = wave_RF > np.median(wave_RF, axis=1, keepdims=True)
    return np.packbits(bit_RF, axis=1).view(np.uint64)[:, 0]


def near_duplicates(train_NHWC: np.ndarray, held_out_KHWC: np.ndarray) -> np.ndarray:
    """Pairs of one look, also where one is the other's mirror image; images of one colour have none.

    Args:
        train_NHWC, held_out_KHWC: (N, 32, 32, 3) and (K, 32, 32, 3) uint8.

    Returns:
        (pairs, 3) int64: row of the training image, row of the held-out one, bits that differ;
        sorted by bits, then rows.

    Raises:
        ValueError: other shapes.
    """
    bits_N = perceptual_hash(train_NHWC)
    nearest: dict[tuple[int, int], int] = {}
    for theirs_KHWC in (held_out_KHWC, held_out_KHWC[:, :, ::-1]):
        bits_K = perceptual_hash(theirs_KHWC)
        step = max(1, PAIRS // max(1, len(bits_K)))
        for start in range(0, len(bits_N), step):
            distance_nK = np.bitwise_count(bits_N[start : start + step, None] ^ bits_K)
            row_P, column_P = np.nonzero(distance_nK <= MAX_DISTANCE)
            for first in range(0, len(row_P), LOOKS):  # many, where thousands of pictures are flat
                row_p, column_p = row_P[first : first + LOOKS], column_P[first : first + LOOKS]
                copies_p = _are_copies(train_NHWC[start + row_p], theirs_KHWC[column_p])
                for row, column in zip(row_p[copies_p].tolist(), column_p[copies_p].tolist()):
                    pair, distance = (start + row, column), int(distance_nK[row, column])
                    nearest[pair] = min(distance, nearest.get(pair, distance))
    pairs = [(*pair, distance) for pair, distance in nearest.items()]
    return np.array(sorted(pairs, key=lambda p: (p[2], p)), dtype=np.int64).reshape(-1, 3)


def _are_copies(one_RHWC: np.ndarray, other_RHWC: np.ndarray) -> np.ndarray:
    """The second look: is each image of `one_RHWC` a copy of that in `other_RHWC`?  (R,) bool."""
    one_RHW, other_RHW = (image.astype(np.float32) @ LUMA_C for image in (one_RHWC, other_RHWC))
    unit_one_RHW, unit_other_RHW = _standardised(one_RHW), _standardised(other_RHW)
    correlation_R = (unit_one_RHW * unit_other_RHW).mean((1, 2))

    # A large common frame correlates alone, so every part of the picture that shows anything counts alike.
    shows_RB = np.maximum(_blocks(one_RHW).std(2), _blocks(other_RHW).std(2)) >= MIN_STRUCTURE
    part_RBP, other_part_RBP = (
        block_RBP - block_RBP.mean(2, keepdims=True)
        for block_RBP in map(_blocks, (unit_one_RHW, unit_other_RHW))
    )
    energy_RB = (part_RBP**2).sum(2) + (other_part_RBP**2).sum(2)
    alike_RB = 2 * (part_RBP * other_part_RBP).sum(2) / np.maximum(energy_RB, 1e-9)
    parts_alike_R = (alike_RB * shows_RB).sum(1) / np.maximum(shows_RB.sum(1), 1)

    # A flat picture has too few such parts to tell: its pixels must be the same, as far as JPEG keeps them.
    flat_R = shows_RB.mean(1) < MIN_SHOWING
    grey_R = np.abs(one_RHW - other_RHW).max((1, 2), initial=0)
    colour_R = np.abs(one_RHWC.astype(np.int16) - other_RHWC).max((1, 2, 3), initial=0)
    equal_R = (grey_R <= MAX_GREY) & (colour_R <= MAX_COLOUR)
    return (correlation_R >= MIN_CORRELATION) & np.where(flat_R, equal_R, parts_alike_R >= MIN_ALIKE)


def _standardised(grey_RHW: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1; an image of one grey is 0 throughout."""
    centred_RHW = grey_RHW - grey_RHW.mean((1, 2), keepdims=True)
    deviation_R11 = np.sqrt((centred_RHW**2).mean((1, 2), keepdims=True))
    # Rounding leaves a plain image some deviation: a thousandth of a grey level is none.
    return np.where(deviation_R11 > 1e-3, centred_RHW / np.maximum(deviation_R11, 1e-3), 0)


def _blocks(grey_RHW: np.ndarray) -> np.ndarray:
    """Squares of `BLOCK` pixels a side: (R, B, P) with P pixels each."""
    n = SIDE // BLOCK
    block_RnBnB = grey_RHW.reshape(len(grey_RHW), n, BLOCK, n, BLOCK)
    return block_RnBnB.transpose(0, 1, 3, 2, 4).reshape(len(grey_RHW), n * n, BLOCK * BLOCK)
