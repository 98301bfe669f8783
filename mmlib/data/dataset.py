"""What every data set is, once loaded: splits of images and captions, a way to read an image, an identity.

Loaders (`shapes`, `flickr8k`, …) return a `Dataset`; everything after them (packed store,
tokenizers, training, metrics, galleries) knows nothing else of where the data came from.

Shapes: N images of a split, M captions of it; M >= N, any number of captions per image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from mmlib.config import ParameterError

SPLITS = ("train", "val", "test")


class ImageSource(Protocol):
    """Reads images by name.  Must be picklable: the packed store decodes in worker processes."""

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as an RGB picture.

        `size` is a wish in pixels: a source that draws its images may draw at that size; one that
        reads files returns them as they are, or reduced as `decode_image` says.

        Raises:
            OSError: the image cannot be read.
            ValueError: it cannot be decoded, or is not the one that was hashed.
        """
        ...


@dataclass(frozen=True)
class Split:
    """One split: image names (unique, in order), captions, and the image of each caption."""

    name: str
    images: tuple[str, ...]  # N names, unique
    captions: tuple[str, ...]  # M texts, as published: never stripped, lower-cased or deduplicated
    image_of_caption_M: np.ndarray  # (M,) int64: caption m describes images[image_of_caption_M[m]]
    # (M,) float64: appearances of caption m in an epoch that are expected; None: one of each.
    weight_of_caption_M: np.ndarray | None = None
    # (N,) int64: the tar of image n, where images are read from tars when they are needed, not packed.
    shard_of_image_N: np.ndarray | None = None

    def __post_init__(self):
        image_of_caption_M = np.asarray(self.image_of_caption_M, dtype=np.int64)
        object.__setattr__(self, "image_of_caption_M", image_of_caption_M)
        if len(set(self.images)) != len(self.images):
            raise ValueError(f"split {self.name!r}: image names must be unique")
        if image_of_caption_M.shape != (len(self.captions),):
            raise ValueError(
                f"split {self.name!r}: {len(self.captions)} captions but image_of_caption_M has shape"
                f" {image_of_caption_M.shape}; expected one image index per caption"
            )
        if len(self.captions) and not (
            image_of_caption_M.min() >= 0 and image_of_caption_M.max() < len(self.images)
        ):
            raise ValueError(
                f"split {self.name!r}: image_of_caption_M must lie in 0..{len(self.images) - 1}, found"
                f" {image_of_caption_M.min()}..{image_of_caption_M.max()}"
            )
        if self.shard_of_image_N is not None:
            shard_N = np.asarray(self.shard_of_image_N, dtype=np.int64)
            object.__setattr__(self, "shard_of_image_N", shard_N)
            if shard_N.shape != (len(self.images),):
                raise ValueError(
                    f"split {self.name!r}: expected the shard of each of {len(self.images)} images, found"
                    f" shape {shard_N.shape}"
                )
        if self.weight_of_caption_M is not None:
            weight_M = np.asarray(self.weight_of_caption_M, dtype=np.float64)
            object.__setattr__(self, "weight_of_caption_M", weight_M)
            if weight_M.shape != (len(self.captions),) or not (np.isfinite(weight_M) & (weight_M > 0)).all():
                raise ValueError(
                    f"split {self.name!r}: expected {len(self.captions)} positive weights, one for each"
                    f" caption, found shape {weight_M.shape} with values from {weight_M.min(initial=np.inf)}"
                    f" to {weight_M.max(initial=-np.inf)}"
                )


@dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
        name: what reports call it, for example `flickr8k`.
        splits: by name; `train`, `val` and, where the published data have one, `test`.
        source: reads an image by its name.
        fingerprint: 16 hex digits over file names, captions and image bytes; equal if and only if
            the data are.
        notes: one sentence for each oddity that the loader met and what it did about it.
        held_out_fingerprint: of the data set whose val and test splits these are, where the training
            split has more than that set's; results with equal ones may be compared.
        redistributable: whether its pictures and captions may stand in a page that is passed on.
    """

    name: str
    splits: dict[str, Split]
    source: ImageSource
    fingerprint: str
    notes: tuple[str, ...] = ()
    redistributable: bool = False
    held_out_fingerprint: str | None = None

    @property
    def identity(self) -> dict:
        """Name, fingerprints and split sizes: what a run records and a report compares."""
        sizes = {s.name: {"images": len(s.images), "captions": len(s.captions)} for s in self.splits.values()}
        identity = {"name": self.name, "fingerprint": self.fingerprint, "splits": sizes}
        if self.held_out_fingerprint:
            identity["held_out_fingerprint"] = self.held_out_fingerprint
        return identity

    def split(self, name: str) -> Split:
        """The split `name`.

        Raises:
            ParameterError: the data set has none of that name.
        """
        if name not in self.splits:
            raise ParameterError(
                f"split: expected one of {', '.join(self.splits)}, which is what the files of {self.name}"
                f" hold, found {name!r}; choose one of them, or bring the file that holds that split"
            )
        return self.splits[name]

    def images(self) -> list[str]:
        """Names of all images, split after split in the order train, val, test, each once."""
        return _names(self.splits.values())

    @property
    def packed(self) -> list[Split]:
        """The splits whose images are packed: all but those that are read from tars."""
        return [split for split in self.splits.values() if split.shard_of_image_N is None]

    def packed_images(self) -> list[str]:
        """Names of the images of packed splits, as `images`."""
        return _names(self.packed)


def _names(splits: Iterable[Split]) -> list[str]:
    return list(dict.fromkeys(name for split in splits for name in split.images))
