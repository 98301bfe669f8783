"""Finds Flickr8k's human judgements beside the data, and the captions that their ids mean.

The judgement files name a caption `<image file>#<number>`; a `Split` keeps texts in the order of
their numbers, without the numbers.
"""

from dataclasses import dataclass
from pathlib import Path

from mmlib.data.captions import read_token_file
from mmlib.data.dataset import Dataset
from mmlib.data.photos import FLICKR8K_TOKENS, find_file
from mmlib.files import from_root

EXPERT_FILE = "ExpertAnnotations.txt"
CROWDFLOWER_FILE = "CrowdFlowerAnnotations.txt"


@dataclass(frozen=True)
class JudgementFiles:
    """Where people's judgements lie; None for what is not there.

    Attributes:
        expert: `ExpertAnnotations.txt`.
        crowdflower: `CrowdFlowerAnnotations.txt`.
        tokens: `Flickr8k.token.txt`, which says what each caption number means.
    """

    expert: Path | None
    crowdflower: Path | None
    tokens: Path | None


def find_judgements(root: str | Path) -> JudgementFiles | None:
    """The judgement files in `root` or in a folder of it; None where neither is there.

    Args:
        root: the data set's folder; a relative path is read from the repository's root.

    Raises:
        ValueError: a file is there twice with different content.
    """
    expert, crowdflower, tokens = (
        find_file(from_root(root), name) for name in (EXPERT_FILE, CROWDFLOWER_FILE, FLICKR8K_TOKENS)
    )
    return JudgementFiles(expert, crowdflower, tokens) if expert or crowdflower else None


def captions_by_number(tokens: Path) -> dict[str, str]:
    """Text by caption id from `Flickr8k.token.txt`; spaces around a text are removed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `mmlib.data.captions.read_token_file`.
    """
    numbered = read_token_file(tokens)
    return {f"{image}#{n}": text.strip() for image, texts in numbered.items() for n, text in texts.items()}


def captions_by_order(dataset: Dataset) -> dict[str, str]:
    """Text by caption id where no file has the numbers: `#i` is the i-th caption of its image, from 0.

    True of the Kaggle copy and of Karpathy's JSON, which keep the original order.  Spaces around a
    text are removed.
    """
    texts = {}
    for split in dataset.splits.values():
        numbers = [0] * len(split.images)
        for text, image in zip(split.captions, split.image_of_caption_M):
            texts[f"{split.images[image]}#{numbers[image]}"] = text.strip()
            numbers[image] += 1
    return texts
