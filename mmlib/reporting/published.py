"""Published figures to stand beside: the reference experiment and other systems on Flickr8k.

All recalls in percent, as published; None where a figure was not published.
"""

from dataclasses import dataclass

Recalls = tuple[float | None, float | None, float | None]  # R@1, R@5, R@10 in %

NOTHING = "nothing: neither side pretrained"
IMAGENET = "ImageNet, some with text"
REGIONS = "detected regions (RCNN, Visual Genome)"
PAIRS = "400 million image–text pairs or more"
GROUPS = (NOTHING, IMAGENET, REGIONS, PAIRS)


@dataclass(frozen=True)
class Published:
    """One system's test result on Flickr8k: 1,000 images, 5 captions each, protocol `standard`."""

    system: str
    pretrained_on: str
    group: str
    i2t: Recalls
    t2i: Recalls
    note: str = ""
    protocol: str = "standard"


_ZERO_SHOT = "zero-shot; only R@5 is published"

PUBLISHED = (
    Published("DeViSE", "ImageNet + text", IMAGENET, (4.8, 16.5, 27.3), (5.9, 20.1, 29.6)),
    Published("SDT-RNN", "RCNN", REGIONS, (6.0, 22.7, 34.0), (6.6, 21.6, 31.7)),
    Published("DeFrag", "RCNN", REGIONS, (12.6, 32.9, 44.0), (9.7, 29.6, 42.5)),
    Published("m-RNN", "ImageNet", IMAGENET, (14.5, 37.2, 48.5), (11.5, 31.0, 42.4)),
    Published("DVSA (BRNN)", "RCNN", REGIONS, (16.5, 40.6, 54.2), (11.8, 32.1, 44.7)),
    Published("MNLM (VGG)", "ImageNet", IMAGENET, (18.0, 40.9, 55.0), (12.5, 37.0, 51.5)),
    Published("m-CNN", "ImageNet", IMAGENET, (24.8, 53.7, 67.1), (20.3, 47.6, 61.7), "ensemble"),
    Published("FV-HGLMM", "ImageNet + word2vec", IMAGENET, (31.0, 59.3, 73.7), (21.2, 50.0, 64.8)),
    Published("NAA (ResNet)", "ImageNet", IMAGENET, (37.2, 68.1, 79.1), (27.7, 59.6, 71.8)),
    Published("SCAN", "Visual Genome regions", REGIONS, (52.2, 81.0, 89.2), (38.3, 67.8, 78.9), "ensemble"),
    Published("IMRAM", "Visual Genome regions", REGIONS, (54.7, 84.2, 91.0), (41.0, 69.2, 79.9)),
    Published(
        "CLIP ViT-B/16 laion400m", "400 M pairs", PAIRS, (76.9, 94.1, None), (62.0, 85.8, None), "zero-shot"
    ),
    Published(
        "CLIP ViT-B/16, fine-tuned", "400 M pairs", PAIRS, (90.7, 99.0, 99.4), (77.1, 93.8, 96.9),
        "fine-tuned on Flickr8k; one community run",
    ),
    Published("CLIP B/32, OpenAI", "400 M pairs", PAIRS, (None, 91.4, None), (None, 80.5, None), _ZERO_SHOT),
    Published("CLIP B/16, OpenAI", "400 M pairs", PAIRS, (None, 91.4, None), (None, 82.9, None), _ZERO_SHOT),
    Published("CLIP L/14, OpenAI", "400 M pairs", PAIRS, (None, 94.1, None), (None, 86.3, None), _ZERO_SHOT),
    Published("CLIP B/32, LAION-2B", "2 B pairs", PAIRS, (None, 94.1, None), (None, 86.3, None), _ZERO_SHOT),
    Published("CLIP H/14, LAION-2B", "2 B pairs", PAIRS, (None, 97.3, None), (None, 92.8, None), _ZERO_SHOT),
)  # fmt: skip

TRAPS = (
    "Every Flickr8k photo is in Flickr30k, and 943 of the 1,000 test photos are in Flickr30k's training"
    " split: a system that saw Flickr30k in training has seen the answers.",
    "Some published Flickr8k rows were scored on all 8,091 images instead of the 1,000 test images.",
    "The original distribution lists captions of one image that does not exist and 91 images in no split.",
)


@dataclass(frozen=True)
class ReferencePhase:
    """One phase of the reference experiment: 5,000 captions against 5,000 image rows, one to one."""

    epochs: int
    lr: float
    best_epoch: int  # as published; phase 2 went on from epoch 18, so its "46" is really 34
    validation_i2t: Recalls
    validation_t2i: Recalls
    minutes: int


REFERENCE_PHASES = (
    ReferencePhase(30, 0.01, 18, (0.38, 1.48, 2.66), (0.30, 1.34, 2.42), 12),
    ReferencePhase(50, 0.005, 46, (0.38, 1.48, 2.60), (0.34, 1.44, 2.56), 21),
)
REFERENCE_PROTOCOL = "paired"
REFERENCE_QUERIES = 5000  # per direction
REFERENCE_CEILING = 0.2  # i2t R@1 of a perfect model under `paired` with five captions an image
REFERENCE_TEST = {"i2t": (0.32, 1.30, 2.54), "t2i": (0.24, 1.52, 2.72)}  # best of phase 2, in %
# Exact when an image's five copies are identical: 5 × paired I→T R@1, and paired T→I R@5.
REFERENCE_TEST_STANDARD_R1 = {"i2t": 5 * REFERENCE_TEST["i2t"][0], "t2i": REFERENCE_TEST["t2i"][1]}
REFERENCE_LOSS = {
    1: 4.148, 10: 3.693, 18: 3.316, 30: 3.064, 31: 3.287,
    40: 3.062, 46: 2.970, 50: 2.879, 60: 2.742, 68: 2.674,
}  # by epoch as published  # fmt: skip
REFERENCE_MEAN_R1 = {
    1: 0.04, 10: 0.20, 18: 0.34, 30: 0.33, 31: 0.28, 40: 0.34, 46: 0.36, 50: 0.31, 60: 0.31, 68: 0.33,
}  # validation, in %, by epoch as published  # fmt: skip


def why_not_published(result: dict) -> str | None:
    """Why a run's result may not stand beside the published figures; None when it may.

    Args:
        result: a run's `results.json`.
    """
    name, split = result["data"]["name"], result["split"]
    if name != "flickr8k":
        return f"the published figures are for Flickr8k; this run was evaluated on {name}"
    if split != "test":
        return f"the published figures are for the official test split; this run was evaluated on {split}"
    if "standard" not in result["protocols"]:
        return "the published figures use the standard protocol; this run was not evaluated under it"
    images = result["protocols"]["standard"]["i2t"]["n"]
    if images != 1000:
        return f"the published figures use 1,000 test images; this run was evaluated on {images:,}"
    return None


def check_publishable(results: list[dict]) -> None:
    """Refuses results that may not stand beside the published figures.

    Raises:
        ValueError: no results, or one that `why_not_published` gives a reason for.
    """
    if not results:
        raise ValueError("expected the results of at least one run, found none; run 03_evaluate first")
    for result in results:
        if reason := why_not_published(result):
            raise ValueError(f"run {result['run']!r} cannot stand beside the published figures: {reason}")


def group_of(result: dict) -> str:
    """The pretraining group of a run: `NOTHING`, or what its results say it was pretrained on."""
    return NOTHING if result["pretraining"] == "none" else result["pretraining"]
