"""How far a model's scores agree with people's judgements of images and captions (Flickr8k).

Shapes: N images, M captions of a split, D width, J judgements.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mmlib.data import Dataset, Split
from mmlib.data.judgements import JudgementFiles, captions_by_number, captions_by_order
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.agreement import (
    Judgements,
    kendall_agreement,
    read_crowdflower,
    read_expert,
)
from mmlib.metrics.human_aware import human_aware_recall, pair_scores

EmbedCaptions = Callable[[list[str]], np.ndarray]
THRESHOLDS = (4.0, 3.0)  # mean expert rating that makes a hit; 4 is "describes without errors"


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
