"""Leak guard: training images that are also in a validation or test split, of this or another data set.

Flickr30k's training split holds 943 of Flickr8k's 1,000 test photos: a model trained on the one and
tested on the other has seen the answers.  Three signs give an image away, the surest first: the id of
the photo in its file name (`photo_id`), the bytes of its file, its look (`mmlib.data.lookalikes`).

Shapes: N images and M captions of the training split.
"""

import hashlib
import json
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmlib.data.dataset import Dataset, Split
from mmlib.data.image_folder import ImageFolder
from mmlib.data.lookalikes import SIDE, near_duplicates
from mmlib.data.store import open_store
from mmlib.data.tar_images import TarImages

KINDS = ("id", "bytes", "look")
HELD_OUT = ("val", "test")
LOOKS = 2**15  # training images that are compared at once: 100 MB of small pictures

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


def find_leaks(
    train: Dataset,
    held_out: Dataset | Iterable[Dataset],
    *,
    kinds: Collection[str] = KINDS,
    workers: int | None = None,
) -> list[Leak]:
    """Training images of `train` that are in the val or test split of any of `held_out`.

    For several data sets that train together: `without_leaks(d, find_leaks(d, all_of_them))` of each.

    Args:
        train: its training split is searched.
        held_out: may include `train` itself.
        kinds: signs to look for.  `bytes` needs sources that read files, others have no bytes to
            compare.  `look` packs all images at 32 pixels once (`open_store`).
        workers: processes that pack.

    Returns:
        Each pair once, under its surest sign, in the order of `held_out` and `kinds`, looks by distance.

    Raises:
        ValueError: unknown kinds; no training images; a data set without val and test.
        ValueError, OSError, RuntimeError: images that cannot be read or packed.
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, found {', '.join(kinds) or 'none'}")
    if "train" not in train.splits or not train.splits["train"].images:
        raise ValueError(
            f"expected training images in {train.name!r}, found none; leaks are searched in them"
        )
    leaks: dict[tuple, Leak] = {}
    for index, dataset in enumerate([held_out] if isinstance(held_out, Dataset) else held_out):
        split_of = {
            image: split
            for split in HELD_OUT
            if split in dataset.splits
            for image in dataset.splits[split].images
        }
        if not split_of:
            raise ValueError(
                f"expected images in val or test of {dataset.name!r}, found none; leaks are searched there"
            )
        for kind in (kind for kind in KINDS if kind in kinds):
            pairs = (
                _lookalikes(train, dataset, list(split_of), workers)
                if kind == "look"
                else _equals(kind, train, dataset, list(split_of))
            )
            for mine, theirs, distance in pairs:
                leak = Leak(kind, mine, theirs, dataset.name, split_of[theirs], distance)
                leaks.setdefault((index, mine, theirs), leak)
    return list(leaks.values())


def without_leaks(dataset: Dataset, leaks: Sequence[Leak]) -> Dataset:
    """`dataset` without the training images of `leaks` and their captions; a note says how many and why.

    Val and test stay as they are.  A data set that loses images gets another fingerprint, which
    follows from its own and their names.

    Args:
        dataset: the one whose training split was searched.
        leaks: from `find_leaks`; none leaves the data as they are and notes that.

    Raises:
        ValueError: a leak of an image that is not in the training split; no training image would remain.
    """
    if not leaks:
        note = "Leak guard: no training image is held out."
        return replace(dataset, notes=(*dataset.notes, note))
    split = dataset.splits["train"]
    dropped = {leak.train_image for leak in leaks}
    strange = sorted(dropped - set(split.images))
    if strange:
        raise ValueError(
            f"expected leaks of training images of {dataset.name!r}, found {strange[0]!r}, which is none"
            f" ({len(strange)} in all); find the leaks of each data set by itself"
        )
    keep_N = np.array([image not in dropped for image in split.images])
    if not keep_N.any():
        raise ValueError(
            f"all {len(split.images):,} training images of {dataset.name!r} are held out in"
            f" {_places(leaks)}: nothing is left to train on; take other data"
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
        f" {int((~keep_M).sum()):,} captions that are held out in {_places(leaks)} ({signs})."
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


def _lookalikes(train: Dataset, held_out: Dataset, images: list[str], workers: int | None) -> list[tuple]:
    names = train.splits["train"].images
    theirs_KHWC = _looks(held_out, images, workers)
    found = []
    for start in range(0, len(names), LOOKS):
        mine_NHWC = _looks(train, names[start : start + LOOKS], workers)
        pairs = near_duplicates(mine_NHWC, theirs_KHWC).tolist()
        found += [(distance, start + row, column) for row, column, distance in pairs]
    return [(names[row], images[column], distance) for distance, row, column in sorted(found)]


def _looks(dataset: Dataset, images: Sequence[str], workers: int | None) -> np.ndarray:
    """The images at `SIDE` pixels, (R, H, W, 3) uint8."""
    if isinstance(dataset.source, TarImages):
        return dataset.source.looks(images)
    store = open_store(dataset, SIDE, "squash", workers)
    return store.images[[store.index[image] for image in images]]


def _equals(kind: str, train: Dataset, held_out: Dataset, images: list[str]) -> list[tuple]:
    """Pairs with the same id, or the same bytes."""
    keys = _ids if kind == "id" else _digests
    mine = train.splits["train"].images
    of_key = defaultdict(list)
    for image, key in zip(mine, keys(train, mine)):
        of_key[key].append(image)
    of_key.pop(None, None)
    pairs = [
        (other, image, None)
        for image, key in zip(images, keys(held_out, images))
        for other in of_key.get(key, ())
    ]
    if kind == "id" and train is held_out:  # whose splits may be numbered each from 1 on
        pairs = [pair for pair in pairs if not all(map(_is_number_alone, pair[:2]))]
    return pairs


def _is_number_alone(image: str) -> bool:
    return _NUMBER_ALONE.fullmatch(image.rpartition("/")[2]) is not None


def _ids(dataset: Dataset, images: Sequence[str]) -> list[str | None]:
    return [photo_id(image, dataset.name) for image in images]


def _digests(dataset: Dataset, images: Sequence[str]) -> list[str | None]:
    if not isinstance(dataset.source, ImageFolder | TarImages):
        return [None] * len(images)
    return [dataset.source.digest(image) for image in images]


def _places(leaks: Sequence[Leak]) -> str:
    return ", ".join(sorted({f"{leak.dataset} {leak.split}" for leak in leaks}))
