"""Writes data sets of a few pictures in the layouts of Flickr30k and MS-COCO."""

import json
from pathlib import Path

from test_lookalikes import picture

FLICKR30K = {
    "train": ("3000000004.jpg", "1000000001.jpg", "3000000003.jpg"),  # in no alphabetical order
    "val": ("6000000006.jpg", "5000000005.jpg"),
    "test": ("7000000007.jpg",),
}
# In Karpathy's JSON restval lies between the others; its images are of the official val split.
COCO = {
    "train": (("train2014", 9), ("train2014", 7)),
    "restval": (("val2014", 42),),
    "val": (("val2014", 139), ("val2014", 136)),
    "test": (("val2014", 285),),
}


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path, "JPEG")


def said_of(name: str) -> list[str]:
    return [f"caption of {name} .", f' "odd", café\t{name}\n']


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


# --- Flickr30k


def flickr30k_names() -> list[str]:
    return [name for names in FLICKR30K.values() for name in names]


def write_flickr30k_images(root: Path, folder: str = "flickr30k-images") -> Path:
    for seed, name in enumerate([*flickr30k_names(), "9000000009.jpg"]):
        save(root / folder / name, seed)
    return root


def write_flickr30k_karpathy(root: Path) -> Path:
    entries = [
        {"filename": name, "split": split, "imgid": 0, "sentids": [0, 1],
         "sentences": [{"raw": text, "tokens": []} for text in said_of(name)]}
        for split, names in FLICKR30K.items()
        for name in names
    ]  # fmt: skip
    write_json(root / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    return root


def write_token_file(root: Path) -> Path:
    """Without line ends inside captions: a token file has none."""
    lines = [
        f"{name}#{number}\t{text.strip()}\n"
        for name in sorted([*flickr30k_names(), "9000000009.jpg"])
        for number, text in enumerate(said_of(name))
    ]
    (root / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    return root


def write_lists(root: Path, names: tuple[str, str, str] = ("train.txt", "val.txt", "test.txt")) -> Path:
    """Numbers for train, names for the others."""
    for file, (split, images) in zip(names, FLICKR30K.items()):
        entries = [Path(image).stem if split == "train" else image for image in images]
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("\n".join(entries))
    return root


# --- COCO


def coco_name(part: str, number: int) -> str:
    return f"COCO_{part}_{number:012}.jpg" if part.endswith("2014") else f"{number:012}.jpg"


def coco_images(*splits: str) -> tuple[str, ...]:
    """Names with their folders."""
    return tuple(f"{part}/{coco_name(part, number)}" for split in splits for part, number in COCO[split])


def write_coco_images(root: Path, folder: str = ".", year: str = "2014") -> Path:
    for seed, (part, number) in enumerate(pair for pairs in COCO.values() for pair in pairs):
        part = part.replace("2014", year)
        save(root / folder / part / coco_name(part, number), seed + 10)
    return root


def coco_entries() -> list[dict]:
    return [
        {"filepath": part, "filename": coco_name(part, number), "split": split, "cocoid": number,
         "sentences": [{"raw": text, "tokens": []} for text in said_of(str(number))]}
        for split, pairs in COCO.items()
        for part, number in pairs
    ]  # fmt: skip


def write_coco_karpathy(root: Path, entries: list[dict] | None = None) -> Path:
    content = {"images": coco_entries() if entries is None else entries, "dataset": "coco"}
    write_json(root / "dataset_coco.json", content)
    return root


def annotations(part: str) -> dict:
    """The official file of an image folder; annotations are in disorder, as COCO's are."""
    numbers = [n for pairs in COCO.values() for p, n in pairs if p[:-4] == part[:-4]]
    said = [
        {"image_id": number, "id": 10 * number + row, "caption": text}
        for row in (1, 0)
        for number in numbers
        for text in said_of(str(number))[row : row + 1]
    ]
    images = [{"id": n, "file_name": coco_name(part, n), "height": 90, "width": 120} for n in numbers]
    return {"info": {}, "images": images, "licenses": [], "annotations": said}


def write_coco_official(root: Path, folder: str = "annotations", year: str = "2014") -> Path:
    for split in ("train", "val"):
        write_json(root / folder / f"captions_{split}{year}.json", annotations(f"{split}{year}"))
    return root
