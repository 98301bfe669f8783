"""Shards of tiny pictures in both layouts, and configs that read them."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmlib.config import TrainConfig, build
from mmlib.data.dataset import Dataset, Split

SIZE = 16


def picture(seed: int, side: int = 40) -> Image.Image:
    """Soft coloured blotches with some grain: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 200, (6, 8, 3), dtype=np.uint8)).resize((side, side), 3)
    return Image.fromarray((np.asarray(soft) + rng.integers(0, 30, (side, side, 3))).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    """A tar of samples, each a key and its files by suffix, written by tarfile alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, files in samples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def sample(number: int, captions: int = 1, **facts) -> tuple[str, dict[str, bytes]]:
    """Sample `number`, as img2dataset writes it where it has one caption and no other facts."""
    files = {"jpg": encoded(picture(number))}
    texts = [f"sample {number} caption {c}" for c in range(captions)]
    if captions > 1 or facts:
        files["json"] = json.dumps({"captions": texts, **facts}).encode()
    if captions == 1 and "captions" not in facts:
        files["txt"] = texts[0].encode()
    return f"{number:09d}", files


def write_numbered(folder: Path, sizes: list[int], captions=lambda number: 1) -> list[str]:
    """Shards of so many samples, numbered through; their paths."""
    number, shards = 0, []
    for shard, size in enumerate(sizes):
        samples = [sample(n, captions(n)) for n in range(number, number + size)]
        shards.append(str(write_tar(folder / f"{shard:05d}.tar", samples)))
        number += size
    return shards


def config_of(train_shards, **changes) -> TrainConfig:
    values = {
        "run": "tiny", "dataset": "shards", "train_shards": [str(s) for s in train_shards],
        "val_shards": ["unused.tar"], "image_size": SIZE, "patch_size": 8, "latent_dim": 16, "num_heads": 2,
        "epochs": 1, "lr": 0.1, "batch_size": 4, "max_tokens": 8, "tokenizer": "word",
    }  # fmt: skip
    return build(TrainConfig, values | changes)


class Pictures:
    """Draws `picture` of the number that a name begins with; an image source without files."""

    def load(self, name: str, size: int | None = None) -> Image.Image:
        return picture(int(name.split(".")[0]))


def dataset_of(source=None, name="tiny", **splits: list[tuple[str, list[str]]]) -> Dataset:
    """A data set of (image name, captions) by split."""
    built = {
        split: Split(
            split,
            tuple(image for image, _ in images),
            tuple(text for _, texts in images for text in texts),
            [row for row, (_, texts) in enumerate(images) for _ in texts],
        )
        for split, images in splits.items()
    }
    return Dataset(name, built, source or Pictures(), "0123456789abcdef")
