"""Images per second as the model reads them: packed and augmented in batches, beside a JPEG data loader.

Both deliver the same images in a new random order, in batches of 64, float32 (B, 3, H, W), normalised.
Ours crops from pictures that were brought to the model's size once, before; the loader decodes each
JPEG anew and crops from the whole photo.  On a CPU both have one process with one thread, and its CPU time
counts, so that other work on the machine changes nothing; on a GPU the loader has processes of its own.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.harness import Contender, compare
from benchmarks.places import scratch

BATCH = 64
CROP_AREA = 0.5  # smallest share of the area, of both
OUR_EPOCHS = 8  # measured at once: one alone is too short to time on a busy machine
WORKERS = 2  # the loader's processes, where a GPU waits for them
DRAWN_SIZE = 224  # of the pictures that stand in for photos, pixels


@cache
def jpegs(count: int) -> tuple[list[Path], str]:
    """`count` JPEG files and what they are: Flickr8k's, or drawn scenes where that is not at hand."""
    from mmlib import files
    from mmlib.data.photos import image_folders

    root = files.ROOT / "data" / "flickr8k"
    if root.exists():
        folder, names = max(image_folders(root).items(), key=lambda item: len(item[1]))
        if len(names) >= count:
            return [folder / name for name in sorted(names)[:count]], "Flickr8k"
    return _drawn(count), f"drawn scenes of {DRAWN_SIZE} px as JPEG (there is no data/flickr8k)"


def _drawn(count: int) -> list[Path]:
    from mmlib.data.shapes import load_shapes

    dataset = load_shapes(0, count, 1, 1, DRAWN_SIZE)
    folder = scratch() / "jpegs"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:05d}.jpg" for i in range(count)]
    for name, file in zip(dataset.splits["train"].images, files):
        dataset.source.load(name, DRAWN_SIZE).save(file, quality=90)
    return files


@cache
def packed(count: int, size: int):
    """The packed store of the same images."""
    from mmlib.data import Dataset, Split, open_store
    from mmlib.data.dataset import ImageFolder

    files, _ = jpegs(count)
    names = tuple(file.name for file in files)
    splits = {"train": Split("train", names, names, np.arange(count))}
    dataset = Dataset("images", splits, ImageFolder(files[0].parent), f"{count:016x}")
    return open_store(dataset, size, cache=scratch() / "cache")


def packing(count: int, size: int) -> Callable[[], float]:
    """One call packs all images anew, in a thread for each core: CPU seconds of them all."""
    from mmlib import files

    jpegs(count)

    def work() -> float:
        scratch()
        for file in files.CACHE.glob(f"images-*-{size}-*"):
            file.unlink()
        packed.cache_clear()
        started = time.process_time()
        packed(count, size)
        return time.process_time() - started

    return work


def ours(count: int, size: int, augmented: bool, device: str = "cpu") -> Callable[[], float]:
    """The packed store, `augment` and `normalise`: seconds of an epoch, over several."""
    import torch

    from mmlib.config import AugmentConfig
    from mmlib.data.augment import augment, normalise

    store = packed(count, size)
    config = AugmentConfig(crop_area=CROP_AREA, flip=True) if augmented else AugmentConfig()
    images = torch.from_numpy(store.array[:]).to(device) if device != "cpu" else store.array
    epochs = itertools.count(1)

    def work() -> float:
        clock = _clock(device)
        started = clock()
        for epoch in itertools.islice(epochs, OUR_EPOCHS):
            work.result = []
            order = np.random.default_rng(epoch).permutation(count)
            for first in range(0, count, BATCH):
                row_B = order[first : first + BATCH]
                image_BHWC = torch.from_numpy(images[row_B]) if device == "cpu" else images[row_B]
                places = np.arange(first, first + len(row_B))
                batch = normalise(augment(image_BHWC, config, 0, epoch, places))
                work.result.append((batch.shape, batch.dtype))
        return (clock() - started) / OUR_EPOCHS

    return work


def _clock(device: str) -> Callable[[], float]:
    """CPU seconds of this process; on a GPU the time when it is idle."""
    import torch

    if device == "cpu":
        return time.process_time

    def idle() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return idle


class JpegFolder:
    """The textbook's data set class: a file is opened, decoded and transformed when asked for."""

    def __init__(self, files: list[Path], transform):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.open(self.files[index]).convert("RGB"))


def loader(count: int, size: int, augmented: bool, device: str = "cpu") -> Callable[[], float]:
    """PIL, torchvision's transforms and a DataLoader: seconds of an epoch."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from mmlib.data.augment import PIXEL_MEAN, PIXEL_STD

    crops = [transforms.RandomResizedCrop(size, scale=(CROP_AREA, 1)), transforms.RandomHorizontalFlip()]
    steps = crops if augmented else [transforms.Resize((size, size))]
    transform = transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(PIXEL_MEAN, PIXEL_STD)]
    )
    workers = WORKERS if device != "cpu" else 0
    batches = DataLoader(
        JpegFolder(jpegs(count)[0], transform), batch_size=BATCH, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=workers > 0,
    )  # fmt: skip

    def work() -> float:
        clock = _clock(device)
        started = clock()
        work.result = []
        for batch in batches:
            on_device = batch.to(device, non_blocking=True)
            work.result.append((on_device.shape, on_device.dtype))
        return clock() - started

    return work


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """At 64 and 224 pixels: with crops and mirror images, and without; then what packing costs once."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device == "cpu" else threads)
    try:
        return _rows(quick, device)
    finally:
        torch.set_num_threads(threads)


def _rows(quick: bool, device: str) -> list[dict]:
    count = 256 if quick else 1024
    repetitions = 3 if quick else 5
    kind = jpegs(count)[1]
    how = "CPU time of one thread" if device == "cpu" else f"{WORKERS} processes"
    found = []
    for size in (64, 224):
        for augmented in (True, False):
            what = "random crop and flip" if augmented else "no augmentation"
            given = {"count": count, "size": size, "augmented": augmented, "device": device}
            found += compare(
                f"images, {size} px, {what}",
                Contender("packed store", ours, given),
                [Contender("JPEG loader", loader, given)],
                work=f"{kind}, {count:,} images, batches of {BATCH}, float32, normalised",
                amount=count, unit="images/s", repetitions=repetitions, memory=False,
                notes={"JPEG loader": f"PIL, torchvision, {how}"},
            )  # fmt: skip
    given = {"count": count, "size": 224}
    found += compare(
        "images, 224 px, packing once",
        Contender("packing", packing, given),
        [Contender("JPEG loader", loader, {**given, "augmented": False})],
        work=f"{kind}, {count:,} images: what the packed store costs before its first epoch",
        amount=count, unit="images/s", repetitions=3, memory=False,
        notes={"JPEG loader": "one epoch of it"},
    )  # fmt: skip
    return found


if __name__ == "__main__":
    import sys

    from benchmarks.tables import text

    print(text("images", rows("--quick" in sys.argv[1:])))
