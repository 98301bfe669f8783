"""Which memory slots are read by what.

Shapes: N images, M captions, Q items of one kind, H heads, S slots, W words.
"""

import json
import math
import re
from collections import Counter

import numpy as np
import torch

from mmlib.data.batches import SplitTensors
from mmlib.model import DualEncoder

TOP_SLOTS = 6
TOP_WORDS = 5
MIN_CAPTIONS = 8  # a rarer word's mean attention says little
STOP_WORDS = {"a", "an", "and", "as", "at", "by", "in", "is", "of", "on", "the", "to", "with"}


def slot_readers(model: DualEncoder, data: SplitTensors, batch_size: int = 250) -> dict[str, np.ndarray]:
    """How a split's images and captions read the slots.

    An image is described by the words of its captions.

    Returns:
        For each read that the model has (see `DualEncoder.slot_reads`), `<read>_weight` (S,), the mean
        attention per slot (sums to 1); `<read>_sharpness` (2,), the entropy and the count of
        `read_sharpness`; and `<read>_top`, a JSON list of the most read slots: `slot`, `share` and
        `read_by`, the words whose items read it most, each with its lift (mean attention of the items with
        that word over that of all items).  Empty for a model without a memory.
    """
    words, has_word_WM = _words_of_captions(data.split.captions)
    has_word_WN = np.zeros((len(words), data.images), dtype=bool)
    for w, captions in enumerate(has_word_WM):
        has_word_WN[w, data.split.image_of_caption_M[captions]] = True
    arrays = {}
    for modality, has_word_WQ in (("image", has_word_WN), ("text", has_word_WM)):
        for read, weight_QHS in _reads(model, data, modality, batch_size).items():
            weight_QS = weight_QHS.mean(1).numpy()
            arrays[f"{read}_weight"] = weight_QS.mean(0)
            arrays[f"{read}_sharpness"] = np.array(read_sharpness(weight_QHS))
            arrays[f"{read}_top"] = np.array(json.dumps(_top_slots(weight_QS, words, has_word_WQ)))
    return arrays


@torch.no_grad()
def read_sharpness(weight_QHS: torch.Tensor) -> tuple[float, int]:
    """How sharply items read, and how many slots are read at all.

    Returns:
        Mean entropy of a head's attention over its maximum, ln S: 1 if every slot is read alike, 0 if one
        alone; and the number of slots that some head of some item gives more than twice an even share.
    """
    slots = weight_QHS.shape[-1]
    entropy_QH = -torch.special.xlogy(weight_QHS, weight_QHS).sum(-1)
    live_S = (weight_QHS > 2 / slots).flatten(0, 1).any(0)
    return float(entropy_QH.mean()) / math.log(slots), int(live_S.sum())


def memory_health(model: DualEncoder, data: SplitTensors, items: int = 250) -> dict[str, float]:
    """How the first images and captions of a split read the central memory; empty without a memory.

    Args:
        model: in evaluation mode.
        data: the split, on the model's device.
        items: how many of each.

    Returns:
        `image_entropy`, `caption_entropy` and `live_slots` of `read_sharpness`, the last over both together;
        and `slots`, S.
    """
    reads = [
        _reads(model, data, modality, items, items).get(f"central_{modality}")
        for modality in ("image", "text")
    ]
    if reads[0] is None:
        return {}
    (image_entropy, _), (caption_entropy, _) = map(read_sharpness, reads)
    live = read_sharpness(torch.cat(reads))[1]
    slots = reads[0].shape[-1]
    return {
        "image_entropy": image_entropy, "caption_entropy": caption_entropy, "live_slots": live, "slots": slots
    }  # fmt: skip


def _reads(
    model: DualEncoder, data: SplitTensors, modality: str, batch_size: int, items: int | None = None
) -> dict[str, torch.Tensor]:
    """Attention of all items, or the first, on the slots, (Q, H, S), for each read."""
    is_image, parts = modality == "image", []
    for index_B in torch.arange(data.images if is_image else data.captions)[:items].split(batch_size):
        inputs = (data.image_batch(index_B),) if is_image else data.caption_batch(index_B)
        parts.append(model.slot_reads(modality, *inputs))
    return {read: torch.cat([part[read].float().cpu() for part in parts]) for read in parts[0]}


def _words_of_captions(captions: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Words of at least `MIN_CAPTIONS` captions, and which captions hold them, (W, M) bool."""
    in_caption = [set(re.findall(r"[a-z]+", caption.lower())) - STOP_WORDS for caption in captions]
    count = Counter(word for words in in_caption for word in words)
    words = sorted(word for word, n in count.items() if n >= MIN_CAPTIONS)
    has_word_WM = np.array([[word in found for found in in_caption] for word in words], dtype=bool)
    return words, has_word_WM.reshape(len(words), len(captions))


def _top_slots(weight_QS: np.ndarray, words: list[str], has_word_WQ: np.ndarray) -> list[dict]:
    share_S = weight_QS.mean(0)
    mean_WS = (has_word_WQ @ weight_QS) / np.maximum(has_word_WQ.sum(1, keepdims=True), 1)
    lift_WS = mean_WS / np.maximum(share_S, 1e-12)
    top = []
    for slot in np.argsort(-share_S, kind="stable")[:TOP_SLOTS]:
        readers = np.argsort(-lift_WS[:, slot], kind="stable")[:TOP_WORDS]
        top.append(
            {
                "slot": int(slot),
                "share": float(share_S[slot]),
                "read_by": [[words[w], round(float(lift_WS[w, slot]), 2)] for w in readers],
            }
        )
    return top
