"""The embedded data set: pictures of shapes that are drawn from a seed, with five captions each.

It needs no download and takes a fraction of a second to load, so a fresh clone can train, test and
report at once; retrieval on it is learnable in minutes on a CPU and far from trivial.
"""

import hashlib
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from mmlib.data.dataset import SPLITS, Dataset, Split
from mmlib.data.shapes.draw import RENDERER_VERSION, draw
from mmlib.data.shapes.scene import CAPTIONS_PER_IMAGE, Scene, describe, sample_scene

NOTE = "Drawn scenes of 1 to 4 shapes with 5 generated captions each; no photograph, no download."


@dataclass(frozen=True)
class ShapesSource:
    """Draws the images of the set when they are asked for; an `ImageSource`."""

    scenes: dict[str, Scene]  # by image name
    size: int  # pixels of the side, unless `load` is told otherwise

    def load(self, name: str, size: int | None = None) -> Image.Image:
        """The image `name` as RGB, drawn at `size` pixels: the same scene at every size.

        Raises:
            FileNotFoundError: the set has no image of that name.
            ValueError: `size` is below 16 pixels.
        """
        if name not in self.scenes:
            raise FileNotFoundError(
                f"the shapes set has no image {name!r}; expected one of its {len(self.scenes)} names,"
                f" such as {next(iter(self.scenes))!r}"
            )
        return draw(self.scenes[name], self.size if size is None else size)


def load_shapes(seed: int = 0, train: int = 2000, val: int = 250, test: int = 250, size: int = 64) -> Dataset:
    """The shapes set: `train`, `val` and `test` images of `size` × `size` pixels, 5 captions each.

    The same arguments give the same names, captions and image bytes on every machine. No two
    scenes, of whichever splits, agree in background and in shape, colour, size and texture of all
    things; val and test do not depend on how large train is. The fingerprint covers scenes, captions,
    size and the renderer's version: image bytes are a pure function of those, so none is drawn for it.
    """
    counts = {"train": train, "val": val, "test": test}
    seen: set[tuple] = set()
    scenes: dict[str, dict[str, Scene]] = {}
    captions: dict[str, list[str]] = {}
    for split in ("test", "val", "train"):  # a scene is redrawn if an earlier one equals it
        scenes[split], captions[split] = {}, []
        for i in range(counts[split]):
            scene, rng = _new_scene(seed, split, i, seen)
            scenes[split][f"{split}_{i:05d}.png"] = scene
            captions[split] += describe(scene, rng)
    splits = {}
    for split in SPLITS:
        image_of_caption_M = np.arange(counts[split]).repeat(CAPTIONS_PER_IMAGE)
        splits[split] = Split(split, tuple(scenes[split]), tuple(captions[split]), image_of_caption_M)
    source = ShapesSource({name: scene for split in SPLITS for name, scene in scenes[split].items()}, size)
    return Dataset("shapes", splits, source, _fingerprint(source, splits), (NOTE,), redistributable=True)


def _new_scene(seed: int, split: str, i: int, seen: set[tuple]) -> tuple[Scene, Random]:
    """Scene `i` of a split, unlike all in `seen`, to which it is added; and the generator to go on with."""
    attempt, scene = 0, None
    while scene is None or scene.attributes in seen:
        rng = Random(f"shapes:{seed}:{split}:{i}:{attempt}")
        scene = sample_scene(rng)
        attempt += 1
    seen.add(scene.attributes)
    return scene, rng


def _fingerprint(source: ShapesSource, splits: dict[str, Split]) -> str:
    """16 hex digits over all that the names, captions and image bytes follow from."""
    digest = hashlib.sha256(f"renderer {RENDERER_VERSION}, size {source.size}\n".encode())
    for name, scene in source.scenes.items():
        digest.update(f"{name} {scene}\n".encode())
    for split in splits.values():
        digest.update("\n".join(split.captions).encode() + b"\n")
    return digest.hexdigest()[:16]
