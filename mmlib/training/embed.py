"""Embeddings and validation: each distinct image and each caption encoded once.

Shapes: N images, M captions, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmlib.analysis import memory_health
from mmlib.data import Tokenizer
from mmlib.data.batches import SplitTensors
from mmlib.metrics import RetrievalRanks, retrieval_ranks
from mmlib.model import DualEncoder
from mmlib.training.health import embedding_health
from mmlib.training.processes import all_gather_objects

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


@torch.no_grad()
def embed_split(
    model: DualEncoder,
    data: SplitTensors,
    batch_size: int = 250,
    write: bool = False,
    fabric: "Fabric | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of a split's images (N, D) and captions (M, D), float32, dropout off.

    Captions are encoded in order of length, so that a batch has little padding.

    Args:
        model: left in the mode (training or evaluation) that it was in.
        data: the split, on the model's device.
        batch_size: items at once; embeddings do not depend on it beyond rounding.
        write: write each batch into the memory after reading it (changes the model's slots).
        fabric: its processes encode the batches between them; which one encodes a batch changes
            nothing, so the embeddings are those of a single process to the bit.  Not with `write`.
    """
    was_training = model.training
    model.eval()
    try:
        image_ND = _of_all(
            torch.arange(data.images).split(batch_size),
            lambda index_B: model.embed_images(data.image_batch(index_B), write=write).float(),
            fabric,
        )
        order_M = torch.argsort(data.length_M.cpu(), stable=True)
        sorted_MD = _of_all(
            order_M.split(batch_size),
            lambda index_B: model.embed_captions(*data.caption_batch(index_B), write=write).float(),
            fabric,
        )
        text_MD = torch.empty_like(sorted_MD)
        text_MD[order_M.to(sorted_MD.device)] = sorted_MD
    finally:
        model.train(was_training)
    return image_ND, text_MD


def _of_all(batches: Sequence[torch.Tensor], embed, fabric: "Fabric | None") -> torch.Tensor:
    """The embeddings of all batches in order, each batch encoded by one process."""
    if fabric is None or fabric.world_size == 1:
        return torch.cat([embed(index_B) for index_B in batches])
    own = [embed(index_B).cpu() for index_B in batches[fabric.global_rank :: fabric.world_size]]
    parts = all_gather_objects(fabric, own)
    in_order = [parts[i % fabric.world_size][i // fabric.world_size] for i in range(len(batches))]
    return torch.cat(in_order).to(fabric.device)


@torch.no_grad()
def embed_captions(
    model: DualEncoder,
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


def rank_split(
    model: DualEncoder, data: SplitTensors, fabric: "Fabric | None" = None, batch_size: int = 250
) -> tuple[RetrievalRanks, dict]:
    """Ranks of a split under the standard protocol, and the health of its embeddings.

    Returns:
        The ranks; and `embedding_health` with `memory`, the `memory_health` (None without a memory).  The
        same in every process.
    """
    image_ND, text_MD = embed_split(model, data, batch_size, fabric=fabric)
    ranks = retrieval_ranks(image_ND, text_MD, data.split.image_of_caption_M)
    was_training = model.training
    memory = memory_health(model.eval(), data)
    model.train(was_training)
    return ranks, {**embedding_health(image_ND, text_MD), "memory": memory or None}
