"""How far a model's scores agree with people's judgements of images and captions (Flickr8k).

Shapes: N images, M captions of a split, D width, J judgements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmlib.data import Dataset, Split
from mmlib.data.judgements import JudgementFiles, captions_by_number, captions_by_order
from mmlib.files import read_text
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.ranks import UnitRows, ranks_of_pairs
from mmlib.metrics.resampling import image_weights, interval_tails
from mmlib.metrics.summary import DIRECTIONS, recall_interval

EmbedCaptions = Callable[[list[str]], np.ndarray]
THRESHOLDS = (4.0, 3.0)  # mean expert rating that makes a hit; 4 is "describes without errors"


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
        return _rows_of(self.images, image_names, "image"), _rows_of(self.captions, caption_ids, "caption")


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
    table = _lines_of(path, columns=5)
    _rows_of([caption for _, caption, *_ in table], text_of_caption, "caption")
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
    table = _lines_of(path, columns=5)
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


def _lines_of(path, columns: int) -> list[list[str]]:
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


def _rows_of(wanted, known, what: str) -> np.ndarray:
    row = {name: index for index, name in enumerate(known)}
    missing = [name for name in dict.fromkeys(wanted) if name not in row]
    if missing:
        raise ValueError(
            f"expected every judged {what} among the {len(row)} given, {len(missing)} are missing"
            f" (first: {', '.join(missing[:3])}); evaluate the split that was judged"
        )
    return np.array([row[name] for name in wanted], dtype=np.int64)


def agreement_with_people(
    files: JudgementFiles,
    dataset: Dataset,
    split_name: str,
    image_ND,
    text_MD,
    ranks: RetrievalRanks,
    embed_captions: EmbedCaptions | None = None,
    resamples: int = 200,
) -> dict:
    """Kendall's tau against experts and crowd as CLIPScore computes it, and human-aware recall.

    A pair is scored if its image is in the split.  Its caption is found among those of the split
    by image and text, else embedded by `embed_captions`; a judgement without both is counted and
    left out.  All judgements that Flickr8k ships are of test images and test captions.

    Args:
        files: from `mmlib.data.judgements.find_judgements`.
        dataset: the data set; texts for caption ids where `files` has no token file.
        split_name: the split that was embedded.
        image_ND, text_MD: embeddings of that split.
        ranks: their standard ranks.
        embed_captions: texts to embeddings `(len(texts), D)`, for captions of other splits.
        resamples: of the intervals, at least 100.

    Returns:
        `caption_numbers` (where the numbers of caption ids come from), `expert` and `crowdflower`:
        the fields of `kendall_agreement`, or `reason` where tau is not defined; `judgements` read,
        `own_left_out`, `unscored` (counts by reason).  `human_aware`: `human_aware_recall` for each
        of `THRESHOLDS`, from the expert ratings.  None stands for what has no file.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or malformed, or a judged caption that
            has no text in any split.
    """
    split = dataset.splits[split_name]
    texts = captions_by_number(files.tokens) if files.tokens else captions_by_order(dataset)
    numbers = files.tokens.name if files.tokens else "the order of an image's captions"
    result = {"caption_numbers": numbers, "expert": None, "crowdflower": None, "human_aware": None}
    for name, variant in (("expert", "c"), ("crowdflower", "b")):
        path = getattr(files, name)
        if path is None:
            continue
        judged = read_expert(path, texts) if name == "expert" else read_crowdflower(path)
        image_J, text_J, more = _rows(judged, texts, split, embed_captions is not None)
        unscored = {
            "image outside the split": int((image_J < 0).sum()),
            "caption outside the split": int(((image_J >= 0) & (text_J < 0)).sum()),
        }
        kept = (image_J >= 0) & (text_J >= 0)
        image_J, text_J, rating_J = image_J[kept], text_J[kept], judged.rating_J[kept]
        result[name] = {
            "judgements": len(judged.rating_J),
            "own_left_out": judged.skipped,
            "unscored": unscored,
            **_tau(image_ND, _with_more(text_MD, more, embed_captions), image_J, text_J, rating_J, variant,
                   resamples),
        }  # fmt: skip
        if name == "expert":
            inside = text_J < len(split.captions)
            pairs = image_J[inside], text_J[inside], rating_J[inside]
            result["human_aware"] = [
                human_aware_recall(image_ND, text_MD, ranks, *pairs, threshold=threshold)
                for threshold in THRESHOLDS
            ]
    return result


def _rows(
    judged: Judgements, texts: dict[str, str], split: Split, embed_more: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows of each judgement's image and caption, -1 where there is none, and texts to embed after row M."""
    caption_J = judged.rows(judged.images, texts)[1]
    id_of_row = list(texts)
    image_row = {name: row for row, name in enumerate(split.images)}
    caption_row = {
        (split.images[image], text.strip()): row
        for row, (text, image) in reversed(list(enumerate(zip(split.captions, split.image_of_caption_M))))
    }
    more: dict[str, int] = {}

    def row_of(caption: str) -> int:
        text = texts[caption]
        row = caption_row.get((caption.rpartition("#")[0], text), -1)
        if row < 0 and embed_more:
            row = more.setdefault(text, len(split.captions) + len(more))
        return row

    row_of_id = {index: row_of(id_of_row[index]) for index in np.unique(caption_J).tolist()}
    image_J = np.array([image_row.get(image, -1) for image in judged.images], dtype=np.int64)
    return image_J, np.array([row_of_id[index] for index in caption_J.tolist()], dtype=np.int64), list(more)


def _with_more(text_MD, more: Sequence[str], embed_captions: EmbedCaptions | None) -> np.ndarray:
    text_MD = _array(text_MD)
    return np.concatenate([text_MD, _array(embed_captions(list(more)))]) if more else text_MD


def _array(embedding) -> np.ndarray:
    return np.asarray(embedding.cpu() if hasattr(embedding, "cpu") else embedding)


def _tau(image_ND, text_MD, image_J, text_J, rating_J, variant: str, resamples: int) -> dict:
    score_J = pair_scores(_array(image_ND), text_MD, image_J, text_J)
    try:
        return kendall_agreement(score_J, rating_J, image_J, variant=variant, resamples=resamples)
    except ValueError as error:
        # A collapsed model, or a split that nobody judged, has no tau; the evaluation goes on.
        return {"tau": None, "variant": variant, "n": len(score_J), "reason": str(error)}


def pair_scores(image_ND, text_MD, image_J, text_J) -> np.ndarray:
    """Cosine of each pair (image_J[j], text_J[j]), float32 (J,); equal rows give equal scores.

    CLIPScore (Hessel et al. 2021, eq. 1) is 2.5 times this, cut off at 0.  Kendall's tau knows
    order alone; the cut would only tie pairs that the model does tell apart.

    Raises:
        ValueError: indices out of range or of unequal number, or embeddings refused by
            `retrieval_ranks`.
    """
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    image_J, text_J = _checked_pairs(image_J, text_J, len(image), len(text))
    return (image[image_J] * text[text_J]).sum(1).float().cpu().numpy()


def human_aware_recall(
    image_ND,
    text_MD,
    ranks: RetrievalRanks,
    image_J,
    text_J,
    rating_J,
    *,
    threshold: float = 4.0,
    ks=(1, 5, 10),
) -> dict:
    """Recall where a pair that people rate well counts as a hit beside an image's own captions.

    Ratings of one pair are averaged; from `threshold` on the pair is right, in both directions.
    People judged a small part of all pairs, so this corrects the standard recall in part: it is
    never below it, and how far true recall lies above it stays unknown.

    Args:
        image_ND, text_MD: the embeddings that the ranks are of.
        ranks: `standard` ranks, for the captions' images and the recalls to compare with.
        image_J, text_J: rows of each judged pair, one entry per rating.
        rating_J: Flickr8k-Expert: 1 (unrelated) to 4 (describes without errors).
        threshold: least mean rating of a hit.
        ks: the K of R@K.

    Returns:
        `threshold`, `pairs` (pairs that became right) and per direction `n`, `judged` (queries
        of the judged pairs), `extended` (queries that gained a right answer) and for each K
        `r<K>` with `value`, `hits`, `low`, `high` (95 %) and `standard_hits`.

    Raises:
        ValueError: ranks of another protocol or of other embeddings, ratings that are not finite
            or not one per pair, indices out of range.
    """
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    images, texts = len(image), len(text)
    if ranks.protocol != "standard" or (ranks.images, len(ranks.t2i_M)) != (images, texts):
        raise ValueError(
            f"ranks: expected standard ranks of these {images} images and {texts} captions, found"
            f" {ranks.protocol} ranks of {ranks.images} and {len(ranks.t2i_M)}; rank these embeddings"
        )
    image_J, text_J = _checked_pairs(image_J, text_J, images, texts)
    rating_J = np.asarray(rating_J, dtype=np.float64)
    if rating_J.shape != image_J.shape or not np.isfinite(rating_J).all():
        raise ValueError(
            f"rating_J: expected one finite rating per judged pair, shape {image_J.shape}, found shape"
            f" {rating_J.shape}" + (" with NaN or infinity" if rating_J.shape == image_J.shape else "")
        )
    own_P = ranks.image_of_text_M * texts + np.arange(texts)  # a pair is one number: image * M + caption
    pair_P, of_pair_J = np.unique(image_J * texts + text_J, return_inverse=True)
    mean_P = np.bincount(of_pair_J, weights=rating_J) / np.bincount(of_pair_J)
    added_P = np.setdiff1d(pair_P[mean_P >= threshold], own_P)
    right_image_P, right_text_P = divmod(np.concatenate([own_P, added_P]), texts)
    found = ranks_of_pairs(image, text, right_image_P, right_text_P)
    result = {"threshold": threshold, "pairs": len(added_P)}
    for direction, (rank_Q, _) in zip(DIRECTIONS, found):
        i2t = direction == "i2t"
        result[direction] = {
            "n": len(rank_Q),
            "judged": len(np.unique(image_J if i2t else text_J)),
            "extended": len(np.unique(added_P // texts if i2t else added_P % texts)),
            **{f"r{k}": _recall(rank_Q, ranks, direction, k) for k in ks},
        }
    return result


def _recall(rank_Q: np.ndarray, ranks: RetrievalRanks, direction: str, k: int) -> dict:
    hit_Q = rank_Q <= k
    # One query per image is a sample of independent queries; several of one image are a cluster.
    low, high = recall_interval(
        hit_Q, ranks.image_of_query(direction) if len(rank_Q) > ranks.images else None
    )
    return {
        "value": float(hit_Q.mean()),
        "hits": int(hit_Q.sum()),
        "low": low,
        "high": high,
        "standard_hits": int((ranks.of(direction) <= k).sum()),
    }


def _checked_pairs(image_J, text_J, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    image_J, text_J = np.asarray(image_J, dtype=np.int64), np.asarray(text_J, dtype=np.int64)
    if image_J.ndim != 1 or image_J.shape != text_J.shape:
        raise ValueError(
            "image_J and text_J: expected one image and caption row per judgement, found shapes"
            f" {image_J.shape} and {text_J.shape}"
        )
    for name, row_J, rows in (("image_J", image_J, images), ("text_J", text_J, texts)):
        if len(row_J) and not 0 <= row_J.min() <= row_J.max() < rows:
            raise ValueError(
                f"{name}: expected rows in 0..{rows - 1}, found {row_J.min()}..{row_J.max()};"
                " they count embeddings from 0"
            )
    return image_J, text_J
