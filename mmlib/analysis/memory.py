"""Which memory slots are read by what.

Shapes: N images, M captions, S slots, W words.
"""

import json
import re
from collections import Counter

import numpy as np
import torch

from mmlib.data.batches import SplitTensors
from mmlib.model import MemoryNetwork

TOP_SLOTS = 6
TOP_WORDS = 5
MIN_CAPTIONS = 8  # a rarer word's mean attention says little
STOP_WORDS = {"a", "an", "and", "as", "at", "by", "in", "is", "of", "on", "the", "to", "with"}


def slot_readers(model: MemoryNetwork, data: SplitTensors, batch_size: int = 250) -> dict[str, np.ndarray]:
    """How a split's images and captions read the slots.

    Four reads are described: `image` and `text` (the modality memories), `central_image` and
    `central_text` (the first read of the central memory after fusion).  An image is described by
    the words of its captions.

    Returns:
        For each read, `<read>_weight` (S,), the mean attention per slot (sums to 1), and
        `<read>_top`, a JSON list of the most read slots: `slot`, `share` and `read_by`, the words
        whose items read it most, each with its lift (mean attention of the items with that word
        over that of all items).
    """
    image_NS, central_image_NS = _reads(model, data, "image", batch_size)
    text_MS, central_text_MS = _reads(model, data, "text", batch_size)
    words, has_word_WM = _words_of_captions(data.split.captions)
    image_of_caption_M = data.split.image_of_caption_M
    has_word_WN = np.zeros((len(words), data.images), dtype=bool)
    for w, captions in enumerate(has_word_WM):
        has_word_WN[w, image_of_caption_M[captions]] = True
    described = {
        "image": (image_NS, has_word_WN),
        "text": (text_MS, has_word_WM),
        "central_image": (central_image_NS, has_word_WN),
        "central_text": (central_text_MS, has_word_WM),
    }
    arrays = {}
    for read, (weight_QS, has_word_WQ) in described.items():
        arrays[f"{read}_weight"] = weight_QS.mean(0)
        arrays[f"{read}_top"] = np.array(json.dumps(_top_slots(weight_QS, words, has_word_WQ)))
    return arrays


@torch.no_grad()
def _reads(
    model: MemoryNetwork, data: SplitTensors, modality: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    is_image, parts = modality == "image", []
    for index_B in torch.arange(data.images if is_image else data.captions).split(batch_size):
        inputs = (data.image_batch(index_B),) if is_image else data.caption_batch(index_B)
        parts.append(model.slot_reads(modality, *inputs))
    modality_QS, central_QS = (torch.cat(part).cpu().numpy() for part in zip(*parts))
    return modality_QS, central_QS


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
