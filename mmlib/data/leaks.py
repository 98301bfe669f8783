"""Leak guard: training images that are also in a validation or test split, of this or another data set.

Flickr30k's training split holds 943 of Flickr8k's 1,000 test photos: a model trained on the one and
tested on the other has seen the answers.  Three signs give an image away, the surest first: the id of
the photo in its file name (`photo_id`), the bytes of its file, its look (`mmlib.data.leaks`).

Shapes: N images and M captions of the training split.
"""

import hashlib
import json
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmlib.data.dataset import Dataset, Split
from mmlib.data.store import open_store

KINDS = ("id", "bytes", "look")
HELD_OUT = ("val", "test")
LOOKS = 2**15  # training images that are compared at once: 100 MB of small pictures

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
COPIES = 2**11  # pairs looked at again at a time

_ENDING = r"(?:\.[A-Za-z]{3,4})?"
_FLICKR_NAME = re.compile(rf"([1-9][0-9]{{2,11}})_[0-9a-f]{{10}}(?:_[a-z0-9]{{1,2}})?{_ENDING}")
_COCO_NAME = re.compile(rf"(?:COCO_(?:train|val|test)20[0-9]{{2}}_|(?=0{{6}}))([0-9]{{12}}){_ENDING}")
_NUMBER_ALONE = re.compile(rf"[0-9]+{_ENDING}")
_FLICKR30K_NAME = re.compile(rf"([1-9][0-9]{{2,11}}){_ENDING}")
_FLICKR_PAGE = re.compile(r"/photos/[^/]+/([1-9][0-9]{2,11})(?:/.*)?")


@dataclass(frozen=True)
class Leak:
    """A training image that is also held out.

    Attributes:
        kind: the surest sign, one of `KINDS`.
        train_image: its name in the training split.
        held_out_image: its name where it is held out.
        dataset: name of the data set that holds it out.
        split: `val` or `test`.
        distance: bits of 64 that differ (`look` alone).
    """

    kind: str
    train_image: str
    held_out_image: str
    dataset: str
    split: str
    distance: int | None = None


def find_leaks(train: Dataset, held_out: Dataset | Iterable[Dataset]) -> list[Leak]:
    """Training images of `train` that are in the val or test split of any of `held_out`.

    For several data sets that train together: `without_leaks(d, find_leaks(d, all_of_them))` of each.

    Args:
        train: its training split is searched.
        held_out: may include `train` itself.  Sources that read files give bytes to compare, others none;
            to compare looks, all images are packed at 32 pixels once (`open_store`).

    Returns:
        Each pair once, under its surest sign, in the order of `held_out` and `KINDS`, looks by distance.

    Raises:
        ValueError: no training images; a data set without val and test.
        ValueError, OSError: images that cannot be read or packed.
    """
    if "train" not in train.splits or not train.splits["train"].images:
        raise ValueError(
            f"expected training images in {train.name!r}, found none; leaks are searched in them"
        )
    mine = train.splits["train"].images
    leaks: dict[tuple, Leak] = {}
    for index, dataset in enumerate([held_out] if isinstance(held_out, Dataset) else held_out):
        splits = [dataset.splits[split] for split in HELD_OUT if split in dataset.splits]
        split_of = {image: split.name for split in splits for image in split.images}
        if not split_of:
            raise ValueError(
                f"expected images in val or test of {dataset.name!r}, found none; leaks are searched there"
            )
        theirs = list(split_of)
        is_own = dataset is train
        for kind, pairs in (
            ("id", _equal(_ids(train, mine, is_own), _ids(dataset, theirs, is_own))),
            ("bytes", _equal(_digests(train, mine), _digests(dataset, theirs))),
            ("look", _lookalikes(train, dataset, theirs)),
        ):
            for image, other, *distance in pairs:
                leak = Leak(kind, image, other, dataset.name, split_of[other], *distance)
                leaks.setdefault((index, image, other), leak)
    return list(leaks.values())


def guarded(dataset: Dataset, held_out: Sequence[Dataset], leaks: str) -> Dataset:
    """`dataset` without, or with a note on, training images that are in val or test of `held_out`.

    Args:
        dataset: its training split is searched.
        held_out: may include `dataset` itself.
        leaks: `exclude` or `keep`.

    Raises:
        ValueError: as `find_leaks` and `without_leaks`.
    """
    found = find_leaks(dataset, held_out)
    if leaks == "exclude" or not found:
        return without_leaks(dataset, found)
    kept = len({leak.train_image for leak in found})
    note = f"Leak guard: {kept:,} training images are held out too and were kept, as asked (leaks='keep')."
    return replace(dataset, notes=(*dataset.notes, note))


def without_leaks(dataset: Dataset, leaks: Sequence[Leak]) -> Dataset:
    """`dataset` without the training images of `leaks` and their captions; a note says how many and why.

    Val and test stay as they are.  A data set that loses images gets another fingerprint, which
    follows from its own and their names.

    Args:
        dataset: the one whose training split was searched.
        leaks: from `find_leaks`; none leaves the data as they are and notes that.

    Raises:
        ValueError: no training image would remain.
    """
    if not leaks:
        note = "Leak guard: no training image is held out."
        return replace(dataset, notes=(*dataset.notes, note))
    split = dataset.splits["train"]
    dropped = {leak.train_image for leak in leaks}
    keep_N = np.array([image not in dropped for image in split.images])
    places = ", ".join(sorted({f"{leak.dataset} {leak.split}" for leak in leaks}))
    if not keep_N.any():
        raise ValueError(
            f"all {len(split.images):,} training images of {dataset.name!r} are held out in {places}: nothing"
            " is left to train on; take other data"
        )
    keep_M = keep_N[split.image_of_caption_M]
    train = Split(
        "train",
        tuple(image for image in split.images if image not in dropped),
        tuple(caption for caption, keep in zip(split.captions, keep_M) if keep),
        (np.cumsum(keep_N) - 1)[split.image_of_caption_M[keep_M]],
        None if split.weight_of_caption_M is None else split.weight_of_caption_M[keep_M],
        None if split.shard_of_image_N is None else split.shard_of_image_N[keep_N],
    )
    # An image may leak into several splits: it is counted once, under its surest sign.
    sign = {leak.train_image: kind for kind in reversed(KINDS) for leak in leaks if leak.kind == kind}
    count = Counter(sign.values())
    signs = ", ".join(f"{count[kind]:,} by {kind}" for kind in KINDS if count[kind])
    note = (
        f"Leak guard: left out {len(dropped):,} of {len(split.images):,} training images and"
        f" {int((~keep_M).sum()):,} captions that are held out in {places} ({signs})."
    )
    content = json.dumps([dataset.fingerprint, sorted(dropped)])
    return replace(
        dataset,
        splits={**dataset.splits, "train": train},
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        notes=(*dataset.notes, note),
        held_out_fingerprint=dataset.held_out_fingerprint or dataset.fingerprint,
    )


def photo_id(image: str, dataset: str | None = None) -> str | None:
    """`flickr:<number>` or `coco:<number>` from the name or address of an image, None where it holds no id.

    Many names begin with a number that is no id, such as the dates of phones (`20230101_120000.jpg`).  So
    a name counts only in a form of these:

    - Flickr, and Flickr8k: number, secret of ten hex digits, perhaps a size (`667626_18933d713e_b.jpg`);
    - COCO: `COCO_val2014_000000391895.jpg`, or its twelve digits alone (`000000391895.jpg`), which
      `find_leaks` takes for an id between two data sets and not within one;
    - Flickr30k: the number alone (`667626.jpg`), in that data set only;
    - an address at flickr.com, staticflickr.com or cocodataset.org that ends in such a name, or that of a
      photo's page (`https://www.flickr.com/photos/<user>/667626/`).

    Args:
        image: a file name, also with folders before it, or an address (`https://…`).
        dataset: name of the data set that it belongs to, where that is known.
    """
    if "://" in image:
        return _id_in_address(image)
    name = image.rpartition("/")[2]
    if match := _COCO_NAME.fullmatch(name):
        return f"coco:{int(match[1])}"
    match = _FLICKR_NAME.fullmatch(name) or (dataset == "flickr30k" and _FLICKR30K_NAME.fullmatch(name))
    return f"flickr:{match[1]}" if match else None


def _id_in_address(address: str) -> str | None:
    try:
        parts = urllib.parse.urlsplit(address)
        host = f".{parts.hostname or ''}"
    except ValueError:
        return None
    if not host.endswith((".flickr.com", ".staticflickr.com", ".cocodataset.org")):
        return None
    page = _FLICKR_PAGE.fullmatch(parts.path) if host.endswith(".flickr.com") else None
    return f"flickr:{page[1]}" if page else photo_id(parts.path)


def _lookalikes(train: Dataset, held_out: Dataset, images: list[str]) -> list[tuple[str, str, int]]:
    names = train.splits["train"].images
    theirs_KHWC = _looks(held_out, images)
    found = []
    for start in range(0, len(names), LOOKS):
        mine_NHWC = _looks(train, names[start : start + LOOKS])
        pairs = near_duplicates(mine_NHWC, theirs_KHWC).tolist()
        found += [(distance, start + row, column) for row, column, distance in pairs]
    return [(names[row], images[column], distance) for distance, row, column in sorted(found)]


def _looks(dataset: Dataset, images: Sequence[str]) -> np.ndarray:
    """The images at `SIDE` pixels, (R, H, W, 3) uint8."""
    if hasattr(dataset.source, "looks"):  # shards keep them
        return dataset.source.looks(images)
    row = {image: row for row, image in enumerate(dataset.images(packed=True))}
    return open_store(dataset, SIDE).array[[row[image] for image in images]]


def _ids(dataset: Dataset, images: Iterable[str], is_own: bool) -> dict[str, str | None]:
    """Each image's photo id; within one set a number alone is none: splits may be numbered each from 1 on."""
    if is_own:
        images = (image for image in images if not _NUMBER_ALONE.fullmatch(image.rpartition("/")[2]))
    return {image: photo_id(image, dataset.name) for image in images}


def _digests(dataset: Dataset, images: Iterable[str]) -> dict[str, str]:
    """Each image's digest; none of images that are drawn or of several sets."""
    return {image: dataset.source.digest(image) for image in images if hasattr(dataset.source, "digest")}


def _equal(key_of_mine: dict[str, str | None], key_of_theirs: dict[str, str | None]) -> list[tuple[str, str]]:
    """Pairs of images with the same key; None is equal to none."""
    of_key = defaultdict(list)
    for image, key in key_of_mine.items():
        of_key[key].append(image)
    return [(image, other) for other, key in key_of_theirs.items() if key for image in of_key.get(key, ())]


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
    from scipy.fft import dctn

    grey_RHW = image_RHWC.astype(np.float32) @ LUMA_C
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
            pair_P2 = np.argwhere(distance_nK <= MAX_DISTANCE)
            for first in range(0, len(pair_P2), COPIES):  # many, where thousands of pictures are flat
                row_p, column_p = pair_P2[first : first + COPIES].T
                copies_p = _are_copies(train_NHWC[start + row_p], theirs_KHWC[column_p])
                for row, column in zip(row_p[copies_p].tolist(), column_p[copies_p].tolist()):
                    pair, distance = (start + row, column), int(distance_nK[row, column])
                    nearest[pair] = min(distance, nearest.get(pair, distance))
    pairs = sorted((distance, *pair) for pair, distance in nearest.items())
    return np.roll(np.array(pairs, dtype=np.int64).reshape(-1, 3), -1, axis=1)


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
