"""Cold starts: importing, the first epoch in a fresh process, opening the images."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import ROOT, Contender, child_environment, compare
from benchmarks.places import environment, scratch

SMALL = {
    "image_size": 32, "patch_size": 8, "latent_dim": 32, "num_layers": 1, "num_heads": 2, "memory_slots": 8,
    "max_tokens": 16, "batch_size": 64, "dropout": 0.0, "tokenizer": "word",
}  # fmt: skip
# As the reference trains: all five captions of each image, from photo-sized files, the network of the demo.
REAL = {
    "dataset": "folder", "image_size": 64, "batch_size": 64, "dropout": 0.0, "captions_per_image": "all",
    "run": "first-epoch", "overwrite": True, "epochs": 1, "lr": 1e-3, "device": "cpu",
}  # fmt: skip
REAL_IMAGES = {True: (100, 20), False: (800, 100)}  # by `quick`: of training and of validation
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
REAL_EPOCH = {
    "ours": (
        "from benchmarks.steps import *; import shutil; from mmlib import files\n"
        "shutil.rmtree(files.CACHE, ignore_errors=True)\n"
        "train(build(TrainConfig, {values}), log=lambda line: None)"
    ),
    "textbook": (
        "from benchmarks.steps import *\n"
        "if __name__ == '__main__':\n"
        " c = build(TrainConfig, {values}); p = PictureFiles(c, pathlib.Path(c.data_root))\n"
        " m = build_model(c, p.vocabulary); o = torch.optim.AdamW(m.parameters(), lr=c.lr)\n"
        " textbook_epoch(m, o, DataLoader(p, c.batch_size, shuffle=True, num_workers=2), c, 'cpu')"
    ),
}


def captioned_photos(train: int, val: int) -> Path:
    """A folder of JPEG files of 500 px with `captions.csv`, as a person's own photos lie."""
    from benchmarks.steps import PHOTO, picture_path
    from mmlib.data.shapes import load_shapes

    folder = scratch() / f"captioned-{train}"
    folder.mkdir()
    rows = [("image", "caption", "split")]
    dataset = load_shapes(0, train, val, val, 64)
    for name, split in dataset.splits.items():
        for image in split.images:
            picture = dataset.source.load(image, 64).resize((PHOTO, PHOTO))
            picture.save(picture_path(folder, image), quality=90)
        files = [picture_path(folder, split.images[i]).name for i in split.image_of_caption_M]
        rows += [(file, caption, name) for file, caption in zip(files, split.captions)]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(rows)
    return folder


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
    from benchmarks.steps import config_of
    from mmlib.data import load_dataset

    scratch()
    parsed = config_of(config, 1)
    return parsed, load_dataset(parsed)


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """Imports; the first epoch's end; the images of a training split."""
    from benchmarks.steps import PHOTO, config_of, write_pictures

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
    train, val = REAL_IMAGES[quick]
    values = {**REAL, "data_root": str(captioned_photos(train, val))}
    codes = {name: "import pathlib\n" + code.format(values=values) for name, code in REAL_EPOCH.items()}
    found += compare(
        "first epoch's end, from photos", Contender("mmlib train", script, {"code": codes["ours"]}),
        [Contender("textbook loop", script, {"code": codes["textbook"]})],
        work=f"a fresh Python, no cache, {5 * train:,} pairs of {train:,} JPEG files of {PHOTO} px at 64 px,"
        " the demo's network; ours with packing, validation and checkpoints",
        repetitions=3, memory=False,
        notes={"textbook loop": "two workers decode an image for each pair; neither validates nor saves"},
    )  # fmt: skip
    values = {**SMALL, "device": "cpu"}
    data = {"config": {**values, "image_size": 64, "shapes_train": STORE_IMAGES[quick]}}
    return found + compare(
        "all training images", Contender("open_store", open_packed, data),
        [Contender("list and decode JPEG files", decode_all, data)],
        work=f"{STORE_IMAGES[quick]:,} pictures of 500 px as 64 px; ours packed once before",
        repetitions=repetitions,
    )  # fmt: skip
