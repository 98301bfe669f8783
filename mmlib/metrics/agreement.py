"""Agreement with people: Flickr8k's human judgements, and Kendall's tau as CLIPScore computes it.

Hessel et al. (2021), "CLIPScore", appendix A: tau_c against the three experts, each expert's
rating its own row, without pairs whose caption is one of the image's own; tau_b against the
CrowdFlower share of yes, nothing left out.

Shapes: J judgements.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmlib.files import read_text


@dataclass(frozen=True, eq=False)
class Judgements:
    """Ratings of image-caption pairs by people.

    Attributes:
        images: J image file names.
        captions: J caption ids, `<image file>#<number>`.
        rating_J: float64; experts 1 (unrelated) to 4 (describes without errors), crowd 0..1.
        skipped: pairs left out because the caption is one of the image's own.
    """

    images: tuple[str, ...]
    captions: tuple[str, ...]
    rating_J: np.ndarray
    skipped: int = 0

    def rows(self, image_names, caption_ids) -> tuple[np.ndarray, np.ndarray]:
        """Row of each judgement's image and caption in lists of names, int64 arrays (J,).

        Raises:
            ValueError: judged images or captions that the lists lack.
        """
        return _rows(self.images, image_names, "image"), _rows(self.captions, caption_ids, "caption")


def read_expert(path, text_of_caption: dict[str, str]) -> Judgements:
    """`ExpertAnnotations.txt`: three rows per pair; pairs with one of the image's own captions left out.

    A caption is the image's own if its text equals one of them, as in CLIPScore's code, which
    follows SPICE.  Of 5,822 pairs 158 go and 16,992 ratings remain.

    Args:
        path: the file.
        text_of_caption: text by caption id, without spaces around it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line, by number; a judged caption without a text.
    """
    own = {}
    for caption, text in text_of_caption.items():
        own.setdefault(caption.split("#")[0], set()).add(text)
    images, captions, ratings, skipped = [], [], [], 0
    table = _table(path, columns=5)
    _rows([caption for _, caption, *_ in table], text_of_caption, "caption")
    for image, caption, *scores in table:
        if text_of_caption[caption] in own.get(image, ()):
            skipped += 1
            continue
        images += [image] * 3
        captions += [caption] * 3
        ratings += scores
    return Judgements(tuple(images), tuple(captions), _numbers(ratings, path), skipped)


def read_crowdflower(path) -> Judgements:
    """`CrowdFlowerAnnotations.txt`: the share of yes for every pair.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line, by number.
    """
    table = _table(path, columns=5)
    images, captions, shares, _, _ = zip(*table)
    return Judgements(images, captions, _numbers(shares, path))


def kendall_agreement(
    score_J, rating_J, image_of_J, *, variant: str, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> dict:
    """Kendall's tau between a model's scores and people's ratings, with an interval.

    The interval is the normal one around tau with the standard error of a bootstrap over images
    (all judgements of an image together), which needs few resamples: they cost about 15 ms each
    for 17,000 judgements.

    Args:
        score_J: cosine of each judged pair.
        rating_J: people's rating of it.
        image_of_J: the cluster of each judgement, integers.
        variant: `b` (CrowdFlower) or `c` (Expert).
        resamples: at least 100.
        level: confidence level.
        seed: the same seed gives the same interval.

    Returns:
        `tau`, `low`, `high`, `variant`, `n` (judgements) and `images`.

    Raises:
        ValueError: shapes that differ, NaN, another variant, or scores or ratings all equal, for
            which tau is not defined; judgements of a single image.
    """
    from scipy.stats import kendalltau, norm

    from mmlib.metrics.bootstrap import image_weights, interval_tails

    score_J, rating_J, image_of_J = np.asarray(score_J), np.asarray(rating_J), np.asarray(image_of_J)
    if not score_J.shape == rating_J.shape == image_of_J.shape or score_J.ndim != 1:
        raise ValueError(
            "expected one score, rating and image per judgement, found shapes"
            f" {score_J.shape}, {rating_J.shape}, {image_of_J.shape}"
        )
    if not (np.isfinite(score_J).all() and np.isfinite(rating_J).all()):
        raise ValueError("expected finite scores and ratings, found NaN or infinity; check the embeddings")
    if variant not in ("b", "c"):
        raise ValueError(f"variant: expected b or c, found {variant!r}")
    if len(score_J) < 2 or np.ptp(score_J) == 0 or np.ptp(rating_J) == 0:
        raise ValueError("expected scores and ratings that vary, found one value; tau is not defined for it")
    tails = interval_tails(level, resamples)
    tau = float(kendalltau(score_J, rating_J, variant=variant).statistic)
    names, image_of_J = np.unique(image_of_J, return_inverse=True)
    if len(names) < 2:
        raise ValueError("image_of_J: expected judgements of two images or more, found one; no interval")
    taus = []
    for weight_BN in image_weights(len(names), resamples, seed):
        for weight_N in weight_BN:
            drawn = np.repeat(np.arange(len(score_J)), weight_N[image_of_J])
            taus.append(kendalltau(score_J[drawn], rating_J[drawn], variant=variant).statistic)
    # A resample of very few images can hold one rating alone: it has no tau.
    half = norm.ppf(tails[1]) * float(np.nanstd(taus, ddof=1))
    return {
        "tau": tau,
        "low": float(max(tau - half, -1)),
        "high": float(min(tau + half, 1)),
        "variant": variant,
        "n": len(score_J),
        "images": len(names),
    }


def _table(path, columns: int) -> list[list[str]]:
    lines = read_text(Path(path)).split("\n")
    table = []
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if len(fields) != columns and line.strip():
            raise ValueError(
                f"{path}, line {number}: expected {columns} fields between tabs, found {len(fields)};"
                " take the file from the data set's own archive"
            )
        if line.strip():
            table.append(fields)
    if not table:
        raise ValueError(f"{path}: expected lines of {columns} fields, found none; the file is empty")
    return table


def _numbers(values, path) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: expected ratings as numbers, found {error}") from error


def _rows(wanted, known, what: str) -> np.ndarray:
    row = {name: index for index, name in enumerate(known)}
    missing = [name for name in dict.fromkeys(wanted) if name not in row]
    if missing:
        raise ValueError(
            f"expected every judged {what} among the {len(row)} given, {len(missing)} are missing"
            f" (first: {', '.join(missing[:3])}); evaluate the split that was judged"
        )
    return np.array([row[name] for name in wanted], dtype=np.int64)
