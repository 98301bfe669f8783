"""Several data sets that train together: one training split, val and test of the first set.

A photo that any of the sets holds out is in no training split: Flickr30k's training split has most
of Flickr8k's test photos.
"""

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from mmlib.config import ParameterError
from mmlib.data.dataset import Dataset, ImageSource, Split
from mmlib.data.leaks import guarded
from mmlib.data.photos import count

SETS = ("flickr8k", "flickr30k", "coco")

Addition = tuple[str, str | None, float]  # name, folder, weight


@dataclass(frozen=True)
class MixedImages:
    """Reads images of several data sets: `<set>/<image>` of the set, other names of the first.

    Attributes:
        sources: by name of the data set, the first one first.
    """

    sources: dict[str, ImageSource]

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as its data set gives it.

        Raises:
            OSError: the image cannot be read or decoded.
        """
        data_set, slash, image = name.partition("/")
        if slash and data_set in self.sources:
            return self.sources[data_set].load(image, size)
        return next(iter(self.sources.values())).load(name, size)


def parse_addition(text: str) -> Addition:
    """Name, folder and weight from `name[:folder][@weight]`, as in `flickr30k:data/f30k@0.5`.

    The folder is None and the weight 1 where none is given.  A folder with `@` in its name needs a
    weight behind it.

    Raises:
        ParameterError: no such data set, an empty folder, or a weight that is no positive number.
    """
    form = re.fullmatch(rf"({'|'.join(SETS)})(?::([^@].*?))?(?:@([^@]*))?", text)
    with contextlib.suppress(ValueError):
        if form and 0 < (weight := float("1" if form[3] is None else form[3])) < math.inf:
            return form[1], form[2], weight
    raise ParameterError(
        f"also_train_on: expected name[:folder][@weight], as flickr30k@0.5, with a name of {', '.join(SETS)}"
        " and a weight above 0, which is how often an epoch shows each of its captions on average, found"
        f" {text!r}"
    )


def mix(
    first: Dataset, additions: Sequence[tuple[Dataset, float]], leaks: Literal["exclude", "keep"] = "exclude"
) -> Dataset:
    """`first` with the training splits of more data sets behind its own.

    Val and test, and the name, are those of `first`.  Training images are called `<set>/<image>`; one
    caption of a set of weight w is seen w times an epoch on average (`Split.weight_of_caption_M`).
    Photos that two of the sets train on stay twice.  Without additions, `first` stays as it is, but
    for the leak guard.

    Args:
        first: the data set whose val and test count.
        additions: data sets with their weights.
        leaks: `exclude` takes training images out that any of the sets, `first` or not, has in val or
            test; `keep` leaves them and says so.

    Raises:
        ValueError: a set twice, a weight that is not positive, or as `find_leaks` and `without_leaks`.
    """
    sets = [first, *(dataset for dataset, _ in additions)]
    names = [dataset.name for dataset in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ParameterError(
            f"also_train_on: expected every data set once, found {twice[0]} {names.count(twice[0])} times"
            f" (the data set itself included): {', '.join(names)}"
        )
    parts = [guarded(dataset, sets, leaks) for dataset in sets]
    if not additions:
        return parts[0]
    weights = [1.0, *(float(weight) for _, weight in additions)]
    splits = [part.splits["train"] for part in parts]
    starts = np.cumsum([0, *(len(split.images) for split in splits)])
    train = Split(
        "train",
        tuple(f"{part.name}/{image}" for part, split in zip(parts, splits) for image in split.images),
        tuple(caption for split in splits for caption in split.captions),
        np.concatenate([start + split.image_of_caption_M for start, split in zip(starts, splits)]),
        np.repeat(weights, [len(split.captions) for split in splits]),
    )
    shares = [
        f"{part.name} {count(len(split.images), 'image')}, {count(len(split.captions), 'caption')},"
        f" {weight:g} times an epoch"
        for part, split, weight in zip(parts, splits, weights)
    ]
    mixed = f"Trained on several sets: {'; '.join(shares)}.  Val and test are those of {first.name}."
    others = [f"{part.name}: {note}" for part in parts[1:] for note in part.notes]
    identity = [[part.name, part.fingerprint, weight] for part, weight in zip(parts, weights)]
    return Dataset(
        name=first.name,
        splits={**parts[0].splits, "train": train},
        source=MixedImages({part.name: part.source for part in parts}),
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        notes=(mixed, *parts[0].notes, *others),
        redistributable=all(part.redistributable for part in parts),
        held_out_fingerprint=first.held_out_fingerprint or first.fingerprint,
    )
