"""Believable run folders without any training: what the reporting room reads."""

import json

import numpy as np

from mmlib.metrics import paired_ranks, retrieval_ranks, summarise

IMAGES, CAPTIONS = 60, 3


def embeddings(skill: float, seed: int = 0) -> tuple:
    """Image and caption embeddings whose recall grows with `skill`, and the image of each caption."""
    random = np.random.default_rng(seed)
    image_ND = random.normal(size=(IMAGES, 16))
    image_of_text_M = np.repeat(np.arange(IMAGES), CAPTIONS)
    noise_MD = random.normal(size=(IMAGES * CAPTIONS, 16))
    return image_ND, skill * image_ND[image_of_text_M] + noise_MD, image_of_text_M


def summary(skill: float, protocol: str = "standard", seed: int = 0) -> dict:
    ranks = {"standard": retrieval_ranks, "paired": paired_ranks}[protocol](*embeddings(skill, seed))
    return summarise(ranks, protocol=protocol)


def history(first: int = 6, second: int = 4) -> list[dict]:
    """Two phases: `first` epochs of the parent, then `second` epochs at a lower rate."""
    rows = []
    for epoch in range(1, first + second + 1):
        phase = 1 if epoch <= first else 2
        rows.append(
            {
                "epoch": epoch,
                "phase": phase,
                "run": "demo-train" if phase == 1 else "demo-continue",
                "lr": 0.01 if phase == 1 else 0.005,
                "steps": 12,
                "train_loss": 1.2 + 2.9 * 0.8**epoch,
                "val": summary(1.1 * (1 - 0.85**epoch), seed=epoch // 3),
                "seconds": 3.0,
                "pairs_per_s": 900.0,
            }
        )
    return rows


DATA = {
    "name": "shapes",
    "fingerprint": "0123456789abcdef",
    "splits": {name: {"images": 60, "captions": 180} for name in ("val", "test")},
}


ENVIRONMENT = {
    "commit": "abc", "device": "cpu", "seed": 0, "data": DATA, "parent": None, "trainable_weights": 12_345,
}  # fmt: skip


def result(run: str = "demo-train", skill: float = 0.8, data: dict | None = None) -> dict:
    return {
        "run": run,
        "checkpoint": "best",
        "epoch": 5,
        "split": "test",
        "data": data or DATA,
        "pretraining": "none",
        "protocols": {name: summary(skill, name) for name in ("standard", "paired")},
    }


def flickr_result(run: str = "flickr8k-continue") -> dict:
    """A result with Flickr8k's name and sizes, made up, for what stands beside published figures."""
    made_up = result(run, data=DATA | {"name": "flickr8k"})
    for part in made_up["protocols"].values():
        part["i2t"]["n"], part["t2i"]["n"] = 1000, 5000
    return made_up


def gallery(queries: int = 3, redistributable: bool = True) -> dict:
    random = np.random.default_rng(1)
    hit_Q5 = np.zeros((queries, 5), dtype=bool)
    hit_Q5[np.arange(queries) % 2 == 0, 1] = True
    return {
        "t2i_query": np.array(["a large $red$ circle left of <two> small & blue squares"] * queries),
        "t2i_thumbs": random.integers(0, 255, (queries, 5, 16, 16, 3), dtype=np.uint8),
        "t2i_hit": hit_Q5,
        "t2i_rank": np.where(hit_Q5.any(1), 2, 23),
        "i2t_query": random.integers(0, 255, (queries, 16, 16, 3), dtype=np.uint8),
        "i2t_captions": np.array([[f"caption {place} with $ and _" for place in range(5)]] * queries),
        "i2t_hit": hit_Q5,
        "i2t_rank": np.where(hit_Q5.any(1), 2, 23),
        "redistributable": np.bool_(redistributable),
    }


def slots(count: int = 16) -> dict:
    weight_S = np.random.default_rng(2).dirichlet(np.full(count, 0.4))
    top = [
        {"slot": int(slot), "share": float(weight_S[slot]), "read_by": [("red", 3.2), ("circle", 2.1)]}
        for slot in np.argsort(-weight_S)[:6]
    ]
    blocks = ("image", "text", "central_image", "central_text")
    return {f"{block}_weight": weight_S for block in blocks} | {
        f"{block}_top": np.array(json.dumps(top)) for block in blocks
    }
