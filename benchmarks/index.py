"""Searching photos: a folder indexed beside a bare loop of the encoder, then indexed again, and one search.

All embed the same pictures in batches of the same size.  Ours finds, decodes and resizes the files and
writes the index; the bare loops have the pixels in memory and do nothing but forward passes: one of the
run's own encoder, which is what an index could reach at most, one of the model as timm builds it.  The folder
grows by as many photos from one repetition to the next, so that they take turns.
"""

import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from benchmarks.harness import Contender, alone, compare, seconds_of
from benchmarks.places import scratch

COUNT = {True: 128, False: 1600}  # by `quick`: images that are added to the folder in each repetition
REPETITIONS = {True: 3, False: 5}
DISTINCT = 200  # pictures that stand under all these names
RUN = {
    "run": "indexed", "image_size": 224, "image_encoder": "timm:tf_efficientnet_lite2", "image_tune": "none",
    "image_weights": "none", "cache_features": False, "text_encoder": "words", "latent_dim": 512,
    "memory": "none", "batch_size": 8, "dropout": 0.0,
}  # fmt: skip
SENTENCE = "a red circle above a blue square"


@cache
def trained(device: str) -> str:
    """A run of the light encoder, trained for two steps: weights do not matter here, sizes do."""
    from benchmarks.steps import config_of
    from mmlib.training import train

    scratch()
    config = config_of({**RUN, "device": device, "shapes_train": 4}, 1)
    train(config, log=lambda line: None)
    return config.run


@cache
def pictures() -> list[Path]:
    """JPEG files of about a photo's size."""
    from benchmarks.steps import config_of, picture_path, write_pictures
    from mmlib.data import load_dataset

    config = config_of({**RUN, "image_size": 64, "shapes_train": DISTINCT}, 1)
    folder, names = write_pictures(config), load_dataset(config).splits["train"].images
    return [picture_path(folder, name) for name in names]


def photos() -> Path:
    """The folder that is indexed: few pictures, under many names."""
    folder = scratch() / "photos"
    folder.mkdir(exist_ok=True)
    return folder


def ours(count: int, device: str) -> Callable[[], float]:
    """`Retriever.index` of a folder to which photos were added; the model is loaded before."""
    from mmlib.search import Retriever

    retriever, folder = Retriever.load(trained(device)), photos()
    retriever.embed_text(SENTENCE)

    def work() -> float:
        there = len(list(folder.iterdir()))
        for number in range(there, there + count):
            os.link(pictures()[number % DISTINCT], folder / f"{number:05d}.jpg")
        started = time.perf_counter()
        if retriever.index(folder).new != count:
            raise RuntimeError(f"expected {count} new images in the index, found another number")
        return time.perf_counter() - started

    return work


def bare(count: int, device: str) -> Callable[[], None]:
    """Forward passes over the same pictures, decoded, resized and normalised before."""
    import numpy as np
    import torch

    from mmlib.data.augment import normalise
    from mmlib.data.decoding import decode_image, resize_image
    from mmlib.search import BATCH
    from mmlib.training.evaluation import load_run

    parts = load_run(trained(device), "best", torch.device(device))
    encoder, size = parts.model.image_encoder, parts.config.image_size
    pixels = [resize_image(decode_image(f.read_bytes(), f.name, size), size, "squash") for f in pictures()]
    image_N3HW = normalise(torch.from_numpy(np.stack(pixels)), encoder.mean, encoder.std).to(device)

    def work() -> None:
        found = []
        with torch.no_grad():
            for first in range(0, count, BATCH):
                row_B = torch.arange(first, min(first + BATCH, count)) % len(image_N3HW)
                found.append(parts.model.embed_images(image_N3HW[row_B]).cpu())
        work.result = torch.cat(found).numpy()

    return work


def bare_timm(count: int, device: str) -> Callable[[], None]:
    """Forward passes of the model as timm builds it, over random pixels; it does less, for it has no head."""
    import timm
    import torch

    from mmlib.search import BATCH

    name = RUN["image_encoder"].removeprefix("timm:")
    model = timm.create_model(name, num_classes=0).eval().to(device)
    image_B3HW = torch.rand(BATCH, 3, RUN["image_size"], RUN["image_size"]).to(device)

    def work() -> None:
        with torch.no_grad():
            for _ in range(0, count, BATCH):
                model(image_B3HW).cpu()

    return work


def _median(work: Callable[[], None]) -> float:
    return round(statistics.median(seconds_of(work) for _ in range(5)), 4)


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """Indexing; the same folder again; one search of it."""
    from mmlib.search import Retriever

    count, repetitions = COUNT[quick], REPETITIONS[quick]
    given = {"count": count, "device": device}
    found = compare(
        "index, first time", Contender("Retriever.index", ours, given),
        [Contender("bare loop", bare, given), Contender("bare loop, timm", bare_timm, given)],
        work=f"{repetitions} x {count:,} JPEG files of 500 px, tf_efficientnet_lite2 at 224 px",
        amount=count, unit="images/s", repetitions=repetitions, warm_up=int(quick), memory=False,
        notes={
            "bare loop": "forward passes alone, pixels in memory",
            "bare loop, timm": "the same of the model as timm builds it, channels first",
        },
    )  # fmt: skip
    run, folder = trained(device), photos()

    def index_again() -> None:
        Retriever.load(run).index(folder)

    retriever = Retriever.load(run)
    retriever.search(text=SENTENCE)

    def search() -> None:
        retriever.search(text=SENTENCE)

    work = f"the same {len(list(folder.iterdir())):,} files, unchanged"
    return [
        *found,
        alone("index, second time", work, "s", "Retriever.load, .index", _median(index_again)),
        alone("search by a sentence", work, "s", "Retriever.search, loaded", _median(search)),
    ]
