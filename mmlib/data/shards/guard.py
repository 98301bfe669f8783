"""The leak guard of a stream: is this sample's image held out, by the id of its photo, its bytes or its look?

Shapes: K held-out images, twice that with their mirror images; H = W = `SIDE` pixels.
"""

import hashlib

import numpy as np
from PIL import Image

from mmlib.data.dataset import Dataset
from mmlib.data.image_folder import ImageFolder
from mmlib.data.leaks import HELD_OUT, photo_id
from mmlib.data.lookalikes import MAX_DISTANCE, SIDE, near_duplicates, perceptual_hash
from mmlib.data.packing import resize_image
from mmlib.data.shards.source import TarImages
from mmlib.data.store import open_store


class LeakGuard:
    """Knows the images of the val and test splits of a data set, by all three signs.

    The signs and their limits are those of `mmlib.data.leaks.find_leaks`.

    Raises:
        ValueError, OSError, RuntimeError: held-out images that cannot be read or packed.
    """

    def __init__(self, held_out: Dataset):
        names = [n for split in HELD_OUT if split in held_out.splits for n in held_out.splits[split].images]
        self._ids = {photo_id(name, held_out.name) for name in names} - {None}
        self._digests = set(_digests(held_out, names))
        self._look_KHWC = np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8)
        if names:
            store = open_store(held_out, SIDE, "squash")
            self._look_KHWC = store.images[[store.index[name] for name in names]]
        both_KHWC = np.concatenate([self._look_KHWC, self._look_KHWC[:, :, ::-1]])
        self._bits_2K = perceptual_hash(both_KHWC) if names else np.zeros(0, dtype=np.uint64)

    def sign(
        self, name: str | None, content: bytes, image: Image.Image, dataset: str | None = None
    ) -> str | None:
        """The surest sign that gives a training image away (`id`, `bytes`, `look`), None if there is none.

        Args:
            name: of its file where it came from, if that is known.
            content: the bytes of its file.
            image: the picture in them.
            dataset: name of the data set that it came from, if that is known.
        """
        if name is not None and photo_id(name, dataset) in self._ids:
            return "id"
        if hashlib.sha256(content).hexdigest() in self._digests:
            return "bytes"
        look_1HWC = resize_image(image, SIDE, "squash")[None]
        near_2K = np.bitwise_count(self._bits_2K ^ perceptual_hash(look_1HWC)) <= MAX_DISTANCE
        if not near_2K.any():
            return None
        # Few pass the hash alone; the grey pixels of those decide.
        rows = np.unique(np.flatnonzero(near_2K) % len(self._look_KHWC))
        return "look" if len(near_duplicates(look_1HWC, self._look_KHWC[rows])) else None


def _digests(dataset: Dataset, names: list[str]) -> list[str]:
    if isinstance(dataset.source, ImageFolder):
        return [dataset.source.digest(name) for name in names]
    if isinstance(dataset.source, TarImages):
        return [hashlib.sha256(dataset.source.read(name)).hexdigest() for name in names]
    return []
