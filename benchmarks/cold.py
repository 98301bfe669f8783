"""Cold starts: importing, the first epoch in a fresh process, opening the images."""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import ROOT, Contender, child_environment, compare
from benchmarks.places import environment

SMALL = {
    "image_size": 32, "patch_size": 8, "latent_dim": 32, "num_layers": 1, "num_heads": 2, "memory_slots": 8,
    "max_tokens": 16, "batch_size": 64, "dropout": 0.0, "tokenizer": "word",
}  # fmt: skip
STORE_IMAGES = {True: 200, False: 1000}  # by `quick`

# What the first cell of notebook 01 imports.
KERNEL = """
from mmlib.config import TrainConfig, from_notebook
from mmlib.data import load_dataset
from mmlib.reporting import best_epochs_table, check_run, dataset_table, loss_curves
from mmlib.reporting import parameter_table, recall_curves, samples_figure, show
from mmlib.training import train
"""
LIGHT = "import mmlib, mmlib.config, mmlib.metrics"
HEAVY = {
    "mmlib.training.train": "from mmlib.training import train",
    "torch": "import torch",
    "open_clip": "import open_clip",
}
FIRST_EPOCH = {
    "ours": "from benchmarks.steps import *; train(config_of({values}, {steps}), log=lambda line: None)",
    "textbook": (
        "from benchmarks.steps import *\n"
        "if __name__ == '__main__':\n"
        " c = config_of({values}, {steps}); p = PictureFiles(c, pathlib.Path({pictures!r}))\n"
        " m = build_model(c, p.vocabulary); o = torch.optim.AdamW(m.parameters(), lr=c.lr)\n"
        " textbook_epoch(m, o, DataLoader(p, c.batch_size, shuffle=True, num_workers=2), c, 'cpu')"
    ),
}


def script(code: str) -> Callable[[], None]:
    """A fresh Python that runs `code`."""
    command, places = [sys.executable, "-c", code], environment()

    def work() -> None:
        subprocess.run(command, cwd=ROOT, env=child_environment(**places), check=True, capture_output=True)

    return work


def open_packed(config: dict) -> Callable[[], None]:
    """`open_store` of images that were packed before."""
    from mmlib.data import open_store

    parsed, dataset = _dataset(config)
    open_store(dataset, parsed.image_size)

    def work() -> None:
        store = open_store(dataset, parsed.image_size)
        if not store.array[-1].any():
            raise RuntimeError("expected a picture in the last row of the store, found zeros")

    return work


def decode_all(config: dict) -> Callable[[], None]:
    """Listing a folder of JPEG files, decoding and resizing each."""
    from benchmarks.steps import read_picture, write_pictures

    parsed, _ = _dataset(config)
    folder = write_pictures(parsed)

    def work() -> None:
        work.result = [read_picture(path, parsed.image_size) for path in sorted(folder.glob("*.jpg"))]

    return work


def _dataset(config: dict):
    from benchmarks.steps import config_of, scratch
    from mmlib.data import load_dataset

    scratch()
    parsed = config_of(config, 1)
    return parsed, load_dataset(parsed)


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """Imports; the first epoch's end; the images of a training split."""
    from benchmarks.steps import config_of, write_pictures

    repetitions = 3 if quick else 5
    found = compare(
        "import", Contender("mmlib, mmlib.config, mmlib.metrics", script, {"code": LIGHT}),
        [Contender(name, script, {"code": code}) for name, code in HEAVY.items()],
        work="a fresh Python", repetitions=repetitions, memory=False,
        notes={"mmlib.training.train": "ours too: with torch"},
    )  # fmt: skip
    found += compare(
        "kernel that trains", Contender("imports of notebook 01", script, {"code": KERNEL}),
        [Contender("torch", script, {"code": HEAVY["torch"]})],
        work="a fresh Python", repetitions=repetitions, memory=False,
    )  # fmt: skip
    values, steps = {**SMALL, "device": "cpu"}, 5
    pictures = write_pictures(config_of(values, steps))
    codes = {
        name: "import pathlib\n" + code.format(values=values, steps=steps, pictures=str(pictures))
        for name, code in FIRST_EPOCH.items()
    }
    found += compare(
        "first epoch's end", Contender("mmlib train", script, {"code": codes["ours"]}),
        [Contender("textbook loop", script, {"code": codes["textbook"]})],
        work="a fresh Python, 8 steps of 64 pairs, 32 px, D 32; ours with validation and checkpoints",
        repetitions=repetitions, memory=False,
        notes={"textbook loop": "neither validates nor saves"},
    )  # fmt: skip
    data = {"config": {**values, "image_size": 64, "shapes_train": STORE_IMAGES[quick]}}
    return found + compare(
        "all training images", Contender("open_store", open_packed, data),
        [Contender("list and decode JPEG files", decode_all, data)],
        work=f"{STORE_IMAGES[quick]:,} pictures of 500 px as 64 px; ours packed once before",
        repetitions=repetitions,
    )  # fmt: skip
