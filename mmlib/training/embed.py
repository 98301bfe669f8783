"""Embeddings and validation: each distinct image and each caption encoded once.

Shapes: N images, M captions, D width.
"""

from collections.abc import Sequence

import torch

from mmlib.data import Tokenizer
from mmlib.data.batches import SplitTensors
from mmlib.metrics import RetrievalRanks, retrieval_ranks
from mmlib.model import MemoryNetwork


@torch.no_grad()
def embed_split(
    model: MemoryNetwork, data: SplitTensors, batch_size: int = 250, write: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of a split's images (N, D) and captions (M, D), float32, dropout off.

    Captions are encoded in order of length, so that a batch has little padding.

    Args:
        model: left in the mode (training or evaluation) that it was in.
        data: the split, on the model's device.
        batch_size: items at once; embeddings do not depend on it beyond rounding.
        write: write each batch into the memory after reading it (changes the model's slots).
    """
    was_training = model.training
    model.eval()
    try:
        image_ND = torch.cat(
            [
                model.embed_images(data.image_batch(index_B), write=write).float()
                for index_B in torch.arange(data.images).split(batch_size)
            ]
        )
        order_M = torch.argsort(data.length_M.cpu(), stable=True)
        sorted_MD = torch.cat(
            [
                model.embed_captions(*data.caption_batch(index_B), write=write).float()
                for index_B in order_M.split(batch_size)
            ]
        )
        text_MD = torch.empty_like(sorted_MD)
        text_MD[order_M.to(sorted_MD.device)] = sorted_MD
    finally:
        model.train(was_training)
    return image_ND, text_MD


@torch.no_grad()
def embed_captions(
    model: MemoryNetwork,
    tokenizer: Tokenizer,
    captions: Sequence[str],
    max_tokens: int,
    batch_size: int = 250,
) -> torch.Tensor:
    """Embeddings of any captions (M, D), float32, for a model in evaluation mode; nothing is written."""
    device = next(model.parameters()).device
    tokens_ML, length_M = (torch.from_numpy(part) for part in tokenizer.encode(captions, max_tokens))
    return torch.cat(
        [
            model.embed_captions(tokens_BL.to(device), length_B.to(device)).float()
            for tokens_BL, length_B in zip(tokens_ML.split(batch_size), length_M.split(batch_size))
        ]
    )


def rank_split(model: MemoryNetwork, data: SplitTensors, batch_size: int = 250) -> RetrievalRanks:
    """Ranks of a split under the standard protocol."""
    image_ND, text_MD = embed_split(model, data, batch_size)
    return retrieval_ranks(image_ND, text_MD, data.split.image_of_caption_M)
