"""Evaluation protocols by name: what is ranked against what, the ceiling, the expected size.

A figure without its protocol cannot be compared with another.  All but `paired` rank in the
`standard` way (unique images, any caption of the image is a hit, ceiling 100 %) and differ in the
set that is ranked.  Chance levels follow from the sizes: `mmlib.metrics.summary.chance_recall`.

The field's evaluators compute `standard` in these ways, equal to the last hit where no scores
tie (tests/metrics/test_evaluators.py writes each anew from its definition):

- VSE++/SCAN `i2t`, `t2i`: sort each query's scores, smallest index among the image's captions.
  Exactly five captions per image, in order.
- CLIP_benchmark: a mask of positives, "any of the first K is positive".
- BLIP/LAVIS: dictionaries image -> caption ids and caption -> image id; the smallest rank of any.
- big_vision: a list that names the image of each caption; the smallest rank of any.
- open_clip's training validation: row against row, one caption per image: `single_caption`, or
  `paired` where rows repeat an image.

On ties they differ, each by what its sort does: an ascending sort read backwards puts the last
of equal items first, a stable descending one the first, `topk` promises nothing.  A collapsed
model can thus score anything from 0 to 100 %: the positive wins or loses by its index alone.  Here
every tie counts against the model; theirs lies between our `value` and our `best_case`.
"""

from dataclasses import dataclass

import numpy as np

from mmlib.metrics.ranks import RetrievalRanks, checked_map, retrieval_ranks


@dataclass(frozen=True)
class Protocol:
    """One named way to evaluate.

    Attributes:
        name: as it stands beside every figure.
        definition: one or two sentences for a reader.
        ranking: `standard` or `paired`: which function computes the ranks.
        images: number of images that the name promises; None for any.
        one_caption: each image has exactly one caption.
        dataset: whose test split the name stands for; None for any.
        folds: equal runs of `images` images that are ranked each for itself.
    """

    name: str
    definition: str
    ranking: str = "standard"
    images: int | None = None
    one_caption: bool = False
    dataset: str | None = None
    folds: int = 1


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "standard",
            "Unique images of the split against all its captions; any caption of the image is a hit.",
        ),
        Protocol(
            "paired",
            "Every image repeated once per caption, rows against rows; only the caption of the same row is"
            " a hit, so a perfect model reaches 1 / captions per image at I→T R@1.",
            ranking="paired",
        ),
        Protocol(
            "full",
            "All images of the data set, training images included; as standard otherwise. Some published"
            " Flickr8k rows were scored on all 8,091 images: not comparable with the test split.",
        ),
        Protocol(
            "flickr30k_1k",
            "The 1,000 test images of Karpathy's Flickr30k split.",
            images=1000,
            dataset="flickr30k",
        ),
        Protocol("coco_5k", "The 5,000 test images of Karpathy's COCO split.", images=5000, dataset="coco"),
        Protocol(
            "coco_1k_folds",
            "Mean over five folds of 1,000 images in order, of Karpathy's COCO 5K test split.",
            images=1000,
            dataset="coco",
            folds=5,
        ),
        Protocol(
            "single_caption",
            "One caption per image, the first; other captions are in no gallery.",
            one_caption=True,
        ),
    )
}


def protocols_of(dataset: str, split: str, images: int) -> list[Protocol]:
    """The protocols that stand for this data set's test split; none if its size is another one."""
    return [
        protocol
        for protocol in PROTOCOLS.values()
        if split == "test" and protocol.dataset == dataset and protocol.images * protocol.folds == images
    ]


def check_protocol(ranks: RetrievalRanks, name: str | None = None) -> str:
    """The protocol's name, if these ranks were computed as it says; None takes that of the ranks.

    Raises:
        ValueError: an unknown name; ranks of the other ranking, of another number of images than the name
            promises, or of several captions an image under `single_caption`.
    """
    protocol = protocol_named(ranks.protocol if name is None else name)
    images, captions = ranks.images, len(ranks.image_of_text_M)
    is_size = protocol.images in (None, images) and (captions == images or not protocol.one_caption)
    if protocol.ranking != ranks.protocol or not is_size:
        raise ValueError(
            f"protocol {protocol.name!r}: expected {protocol.ranking} ranks"
            + (f" of {protocol.images:,} images" if protocol.images else "")
            + (" with one caption each" if protocol.one_caption else "")
            + f", found {ranks.protocol} ranks of {images:,} images and {captions:,} captions; call it"
            " standard or paired, or rank what the name stands for"
        )
    return protocol.name


def protocol_named(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {name!r}")
    return PROTOCOLS[name]


def recall_ceiling(ranks: RetrievalRanks, direction: str, k: int) -> float:
    """R@K of a perfect model: every positive above every other item, images all different.

    1 except under `paired`, where an image with c captions asks c times the same question with
    c different right answers: at most min(k, c) of them are hits.  In the other direction its c
    equal rows tie; counted against the model, their rank is c at best.
    """
    if ranks.protocol == "standard":
        return 1.0
    captions_N = np.bincount(ranks.image_of_text_M)
    hits_N = np.minimum(captions_N, k) if direction == "i2t" else np.where(captions_N <= k, captions_N, 0)
    return float(hits_N.sum() / captions_N.sum())


def first_captions(image_of_text_M) -> np.ndarray:
    """Indices of the first caption of each image, in the order of the images: `single_caption`."""
    return np.unique(np.asarray(image_of_text_M), return_index=True)[1]


def fold_ranks(image_ND, text_MD, image_of_text_M, *, folds: int = 5) -> list[RetrievalRanks]:
    """`standard` ranks in each of `folds` consecutive, equal runs of images, with their captions.

    Arguments and errors are those of `retrieval_ranks`.

    Raises:
        ValueError: images that do not divide into `folds` equal folds.
    """
    images = len(image_ND)
    image_of_text_M = checked_map(image_of_text_M, images, len(text_MD))
    if folds < 1 or images % folds:
        raise ValueError(f"folds: expected a divisor of the {images} images, found {folds}")
    size = images // folds
    ranks = []
    for start in range(0, images, size):
        text_m = np.flatnonzero((image_of_text_M >= start) & (image_of_text_M < start + size))
        image_of_text_m = image_of_text_M[text_m] - start
        ranks.append(retrieval_ranks(image_ND[start : start + size], text_MD[text_m], image_of_text_m))
    return ranks
