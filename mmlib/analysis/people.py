"""Agreement of a model's scores with people's judgements of images and captions (Flickr8k).

Hessel et al. (2021), "CLIPScore", appendix A: Kendall's tau_c against the three experts, each expert's
rating its own row, without pairs whose caption is one of the image's own; tau_b against the
CrowdFlower share of yes, nothing left out.

Shapes: N images, M captions of a split, D width, P judged pairs, J judgements (three of each expert pair).
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmlib.data import Dataset
from mmlib.data.captions import read_lines, read_token_file
from mmlib.data.photos import FLICKR8K_TOKENS, find_file
from mmlib.files import from_root
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.ranks import UnitRows, ranks_of_pairs
from mmlib.metrics.resampling import TAILS, image_weights
from mmlib.metrics.summary import DIRECTIONS, recall_with_interval

EmbedCaptions = Callable[[list[str]], np.ndarray]
THRESHOLDS = (4.0, 3.0)  # mean expert rating that makes a hit; 4 is "describes without errors"


class JudgementFiles(NamedTuple):
    """Where people's judgements of Flickr8k lie; None for what is not there."""

    expert: Path | None  # ExpertAnnotations.txt
    crowdflower: Path | None  # CrowdFlowerAnnotations.txt
    tokens: Path | None  # Flickr8k.token.txt, which says what each caption number means


def find_judgements(root: str | Path) -> JudgementFiles | None:
    """The judgement files in `root` or in a folder of it; None where neither is there.

    Args:
        root: the data set's folder; a relative path is read from the repository's root.

    Raises:
        ValueError: a file is there twice with different content.
    """
    names = ("ExpertAnnotations.txt", "CrowdFlowerAnnotations.txt", FLICKR8K_TOKENS)
    found = JudgementFiles(*(find_file(from_root(root), name) for name in names))
    return found if found.expert or found.crowdflower else None


def captions_by_id(tokens: Path | None, dataset: Dataset) -> dict[str, str]:
    """Text by the id that judgements name a caption by, `<image file>#<number>`; spaces around it removed.

    Without a token file, number i is the i-th caption of its image, from 0: true of the Kaggle copy and of
    Karpathy's JSON, which keep the original order.

    Raises:
        ValueError: as `read_token_file`.
    """
    if tokens:
        numbered = read_token_file(tokens)
    else:
        numbered = defaultdict(dict)
        for split in dataset.splits.values():
            for text, image in zip(split.captions, split.image_of_caption_M):
                texts = numbered[split.images[image]]
                texts[len(texts)] = text
    return {f"{image}#{n}": text.strip() for image, texts in numbered.items() for n, text in texts.items()}


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
        files: from `find_judgements`.
        dataset: the data set; texts for caption ids where `files` has no token file.
        split_name: the split that was embedded.
        image_ND, text_MD: embeddings of that split.
        ranks: their standard ranks.
        embed_captions: texts to embeddings `(len(texts), D)`, for captions of other splits.
        resamples: of the intervals.

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
    texts = captions_by_id(files.tokens, dataset)
    numbers = files.tokens.name if files.tokens else "the order of an image's captions"
    result = {"caption_numbers": numbers, "expert": None, "crowdflower": None, "human_aware": None}
    image_row = {name: row for row, name in enumerate(split.images)}
    text_row: dict[tuple[str, str], int] = {}
    for row, (image, caption) in enumerate(zip(split.image_of_caption_M, split.captions)):
        text_row.setdefault((split.images[image], caption.strip()), row)
    for name, variant, each in (("expert", "c", 3), ("crowdflower", "b", 1)):
        path = getattr(files, name)
        if path is None:
            continue
        pairs, own = read_judgements(path, texts, expert=name == "expert")
        outside: dict[str, int] = {}  # texts to embed, as rows after those of the split
        row_P2 = np.full((len(pairs), 2), -1)
        for row_2, (image, caption, _) in zip(row_P2, pairs):
            text = texts[caption]
            row = text_row.get((caption.rpartition("#")[0], text), -1)
            if row < 0 and embed_captions is not None:
                row = outside.setdefault(text, len(split.captions) + len(outside))
            row_2[:] = image_row.get(image, -1), row
        image_J, text_J = np.repeat(row_P2, each, axis=0).T
        is_image, is_text = image_J >= 0, text_J >= 0
        kept = is_image & is_text
        counts = {
            "judgements": len(kept),
            "own_left_out": own,
            "unscored": {
                "image outside the split": int((~is_image).sum()),
                "caption outside the split": int((is_image & ~is_text).sum()),
            },
        }
        rating_J = np.array([ratings for *_, ratings in pairs], dtype=np.float64).ravel()[kept]
        image_J, text_J = image_J[kept], text_J[kept]
        every_MD = np.concatenate([text_MD, embed_captions(list(outside))]) if outside else text_MD
        score_J = pair_scores(image_ND, every_MD, image_J, text_J)
        try:
            tau = kendall_agreement(score_J, rating_J, image_J, variant=variant, resamples=resamples)
        except ValueError as error:
            # A collapsed model, or a split that nobody judged, has no tau; the evaluation goes on.
            tau = {"tau": None, "variant": variant, "n": len(score_J), "reason": str(error)}
        result[name] = counts | tau
        if name == "expert":
            inside = text_J < len(split.captions)
            judged = image_J[inside], text_J[inside], rating_J[inside]
            result["human_aware"] = [
                human_aware_recall(image_ND, text_MD, ranks, *judged, threshold=threshold)
                for threshold in THRESHOLDS
            ]
    return result


def read_judgements(
    path: Path, texts: dict[str, str], expert: bool
) -> tuple[list[tuple[str, str, list[float]]], int]:
    """Judged pairs of `ExpertAnnotations.txt`, or of `CrowdFlowerAnnotations.txt` (a share of yes each).

    Of the experts' pairs those with one of the image's own captions are left out.  A caption is the
    image's own if its text equals one of them, as in CLIPScore's code, which follows SPICE: of 5,822
    pairs 158 go and 16,992 ratings remain.

    Args:
        path: the file.
        texts: text by caption id, without spaces around it.
        expert: the file is the experts'.

    Returns:
        Pairs of image file name, caption id and ratings: experts 1 (unrelated) to 4 (describes without
        errors), crowd 0..1; and the number of pairs that were left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line, by number; a judged caption without a text.
    """
    table = []
    for number, line in read_lines(path):
        try:
            image, caption, *numbers = line.split("\t")
            first, second, third = map(float, numbers)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected an image, a caption and three numbers between tabs, found"
                f" {line[:100]!r}; take the file from the data set's own archive"
            ) from None
        table.append((image, caption, [first, second, third] if expert else [first]))
    if not table:
        raise ValueError(f"{path}: expected judged pairs, found none; the file is empty")
    missing = [caption for caption in dict.fromkeys(c for _, c, _ in table) if caption not in texts]
    if missing:
        raise ValueError(
            f"expected every judged caption among the {len(texts)} given, {len(missing)} are missing"
            f" (first: {', '.join(missing[:3])}); evaluate the split that was judged"
        )
    own: dict[str, set[str]] = {}
    for caption, text in texts.items():
        own.setdefault(caption.split("#")[0], set()).add(text)
    kept = [pair for pair in table if not expert or texts[pair[1]] not in own.get(pair[0], ())]
    return kept, len(table) - len(kept)


def kendall_agreement(score_J, rating_J, image_of_J, *, variant: str, resamples: int = 200) -> dict:
    """Kendall's tau between a model's scores and people's ratings, with an interval.

    The interval is the normal one around tau with the standard error of a bootstrap over images
    (all judgements of an image together), which needs few resamples: they cost about 15 ms each
    for 17,000 judgements.

    Args:
        score_J: cosine of each judged pair.
        rating_J: people's rating of it.
        image_of_J: the cluster of each judgement, integers.
        variant: `b` (CrowdFlower) or `c` (Expert).
        resamples: of the bootstrap.

    Returns:
        `tau`, `low`, `high` (95 %), `variant`, `n` (judgements) and `images`.

    Raises:
        ValueError: scores or ratings that are all equal or not finite, for which tau is not defined;
            judgements of a single image.
    """
    from scipy.stats import kendalltau, norm

    if len(score_J) < 2 or not (np.ptp(score_J) > 0 and np.ptp(rating_J) > 0):
        raise ValueError("expected finite scores and ratings that vary, found others; tau is not defined")
    tau = float(kendalltau(score_J, rating_J, variant=variant).statistic)
    names, image_of_J = np.unique(image_of_J, return_inverse=True)
    if len(names) < 2:
        raise ValueError("image_of_J: expected judgements of two images or more, found one; no interval")
    taus = []
    for weight_BN in image_weights(len(names), resamples, seed=0):
        for weight_N in weight_BN:
            drawn = np.repeat(np.arange(len(score_J)), weight_N[image_of_J])
            taus.append(kendalltau(score_J[drawn], rating_J[drawn], variant=variant).statistic)
    # A resample of very few images can hold one rating alone: it has no tau.
    half = norm.ppf(TAILS[1]) * float(np.nanstd(taus, ddof=1))
    return {
        "tau": tau,
        "low": float(max(tau - half, -1)),
        "high": float(min(tau + half, 1)),
        "variant": variant,
        "n": len(score_J),
        "images": len(names),
    }


def pair_scores(image_ND, text_MD, image_J, text_J) -> np.ndarray:
    """Cosine of each pair (image_J[j], text_J[j]), float32 (J,); equal rows give equal scores.

    CLIPScore (Hessel et al. 2021, eq. 1) is 2.5 times this, cut off at 0.  Kendall's tau knows
    order alone; the cut would only tie pairs that the model does tell apart.
    """
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    return (image[image_J] * text[text_J]).sum(1).float().cpu().numpy()


def human_aware_recall(
    image_ND, text_MD, ranks: RetrievalRanks, image_J, text_J, rating_J, *, threshold=4.0, ks=(1, 5, 10)
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
    """
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    texts = len(text)
    own_P = ranks.image_of_text_M * texts + np.arange(texts)  # a pair is one number: image * M + caption
    pair_P, of_pair_J = np.unique(image_J * texts + text_J, return_inverse=True)
    mean_P = np.bincount(of_pair_J, weights=rating_J) / np.bincount(of_pair_J)
    added_P = np.setdiff1d(pair_P[mean_P >= threshold], own_P)
    found = ranks_of_pairs(image, text, *divmod(np.concatenate([own_P, added_P]), texts))
    result = {"threshold": threshold, "pairs": len(added_P)}
    for direction, (rank_Q, _) in zip(DIRECTIONS, found):
        i2t = direction == "i2t"
        result[direction] = part = {
            "n": len(rank_Q),
            "judged": len(np.unique(image_J if i2t else text_J)),
            "extended": len(np.unique(added_P // texts if i2t else added_P % texts)),
        }
        for k in ks:
            part[f"r{k}"] = recall_with_interval(rank_Q <= k, None if i2t else ranks.image_of_text_M)
            part[f"r{k}"]["standard_hits"] = int((ranks.of(direction) <= k).sum())
    return result
