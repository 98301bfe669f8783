"""Writes data sets of nine drawn images in each layout of Flickr8k, and image sources that misbehave."""

import csv
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmlib.data.dataset import Dataset, Split

# Not in alphabetical order: loaders must keep the order of the split lists.
SPLITS = {
    "train": ("40_d.jpg", "10_a.jpg", "30_c.jpg", "20_b.jpg"),
    "val": ("60_f.jpg", "50_e.jpg"),
    "test": ("70_g.jpg", "80_h.jpg"),
}
UNSPLIT = "90_i.jpg"
ODD = [
    "",
    "a\ttab",
    'a "quoted", comma , caption',
    "un café à 北京 \U0001f415",
    "#0 and # and a#1",
    " spaces ",
]
EMPTY = "Captions without text: 2, of 40_d.jpg and 1 more."  # the note on them
SPLIT_FILES = {split: f"Flickr_8k.{word}Images.txt" for split, word in zip(SPLITS, ("train", "dev", "test"))}


def names() -> list[str]:
    return [name for split in SPLITS.values() for name in split]


def captions() -> dict[str, list[str]]:
    """Two captions of each image, three of the first; every odd text once."""
    texts = {name: [f"caption of {name} .", ODD[row % len(ODD)]] for row, name in enumerate(names())}
    texts["40_d.jpg"].append("a third caption .")
    return texts | {UNSPLIT: ["in no split ."]}


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate([*names(), UNSPLIT]):
        image = Image.linear_gradient("L").resize((20 + row, 30)).convert("RGB")
        image.putpixel((row, 0), (255, 0, 0))
        image.save(folder / name, quality=90)


def write_token_file(path: Path, texts: dict[str, list[str]], end: str = "\n", mark: str = "") -> None:
    lines = [f"{name}#{number}\t{text}{end}" for name in texts for number, text in enumerate(texts[name])]
    path.write_text(mark + "".join(lines), encoding="utf-8", newline="")


def write_csv(path: Path, texts: dict[str, list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows((name, text) for name in texts for text in texts[name])


def write_split_files(folder: Path) -> None:
    for split, name in SPLIT_FILES.items():
        (folder / name).write_text("".join(f"{image}\n" for image in SPLITS[split]))


def karpathy_entries() -> list[dict]:
    texts = captions()
    return [
        {"filename": name, "split": split, "sentences": [{"raw": text} for text in texts[name]]}
        for split, images in SPLITS.items()
        for name in images
    ]


def write_karpathy_file(folder: Path, entries: list[dict] | None = None) -> None:
    content = {"images": karpathy_entries() if entries is None else entries, "dataset": "flickr8k"}
    (folder / "dataset_flickr8k.json").write_text(json.dumps(content))


def write_original(root: Path, images: str = "Flicker8k_Dataset", text: str = ".") -> Path:
    write_images(root / images)
    (root / text).mkdir(exist_ok=True)
    write_token_file(root / text / "Flickr8k.token.txt", captions())
    write_split_files(root / text)
    return root


def write_kaggle(root: Path) -> Path:
    """Without splits: add `write_split_files` or `write_karpathy_file`."""
    write_images(root / "Images")
    write_csv(root / "captions.txt", captions())
    return root


def write_karpathy(root: Path) -> Path:
    write_images(root / "images")
    write_karpathy_file(root)
    return root


def numbered(count: int) -> list[str]:
    """Names for `Drawn` and those made from it."""
    return [f"{row}.jpg" for row in range(count)]


def dataset_of(source, images: list[str], fingerprint: str = "0123456789abcdef") -> Dataset:
    """A data set of one split `train` and nothing else, for the store."""
    split = Split("train", tuple(images), tuple(images), range(len(images)))
    return Dataset("tiny", {"train": split}, source, fingerprint)


@dataclass(frozen=True)
class Drawn:
    """Draws image `i.jpg` as a plain colour of its own, at the size asked for; no file is read."""

    def load(self, name: str, size: int | None = None) -> Image.Image:
        row = int(Path(name).stem)
        return Image.new("RGB", (size, size), (row % 256, row // 256, 7))


@dataclass(frozen=True)
class Killing(Drawn):
    """Kills its process, as the kernel would, at one image."""

    at: str

    def load(self, name: str, size: int | None = None) -> Image.Image:
        if name == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(name, size)


@dataclass(frozen=True)
class Interrupted(Drawn):
    """Presses Ctrl-C at one image."""

    at: str

    def load(self, name: str, size: int | None = None) -> Image.Image:
        if name == self.at:
            raise KeyboardInterrupt
        return super().load(name, size)


class Refusing:
    """Must not be asked."""

    def load(self, name: str, size: int | None = None) -> Image.Image:
        raise AssertionError(f"{name} was decoded again")
