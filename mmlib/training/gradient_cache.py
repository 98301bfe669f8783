"""Large batches in little memory: the loss of the whole batch, the encoders' graph of one chunk at a time.

GradCache (Gao et al. 2021, section 3.2).  A contrastive loss needs all embeddings at once, but only
embeddings: pass 1 computes them without a graph, the loss gives their gradients, and pass 2 computes
each chunk again, with a graph, and pushes its gradients through.  The gradient is that of the whole
batch, for one more forward.

Shapes: B pairs of the batch (of this process), C pairs of a chunk, D width.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts

Chunk = TypeVar("Chunk")
Pair = tuple[torch.Tensor, torch.Tensor]
Push = Callable[[torch.Tensor, torch.Tensor], None]


def cached_backward(
    embed: Callable[[Chunk], Pair],
    chunks: Sequence[Chunk],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    push: Push = torch.Tensor.backward,
    last_chunk: Callable[[bool], AbstractContextManager] = lambda is_last: contextlib.nullcontext(),
) -> torch.Tensor:
    """Adds the gradient of the whole batch's loss to the parameters, and returns the loss, detached.

    Dropout sees the same masks in both passes: torch's random state (CPU and current GPU) is put back
    before each chunk of pass 2, and in the end it is where one forward of all chunks leaves it.
    Encoders must not depend on what else is in their chunk: batch norm would take its statistics from a
    chunk in place of the batch, and update the running ones twice.  One chunk is computed the plain way.

    Args:
        embed: (image_CD, text_CD) of a chunk.
        chunks: of this process, in the order of the batch.
        loss_of: the loss of all embeddings, image_BD and text_BD in float32; it may gather those of other
            processes, with their gradients.
        backward: of the loss; scaled gradients (`fabric.backward` under fp16) are passed on as they are.
        push: (tensor, gradient) → backward of an embedding that is no loss; under Fabric, `fabric_push`.
        last_chunk: entered around each chunk of pass 2, told whether it is the last: processes need
            to exchange gradients in that one alone (`fabric.no_backward_sync(…, enabled=not is_last)`).

    Raises:
        ValueError: there are no chunks.
    """
    if not chunks:
        raise ValueError("expected at least one chunk of the batch, found none")
    if len(chunks) == 1:
        with last_chunk(True):
            loss = loss_of(*_embed(embed, chunks[0]))
            backward(loss)
        return loss.detach()
    states, pairs = _first_pass(embed, chunks)
    image_BD, text_BD = (torch.cat(parts).requires_grad_() for parts in zip(*pairs))
    loss = loss_of(image_BD, text_BD)
    backward(loss)
    sizes = [len(image_CD) for image_CD, _ in pairs]
    gradients = list(zip(*(_gradient(x_BD).split(sizes) for x_BD in (image_BD, text_BD))))
    after = _random_state()
    try:
        for place, chunk in enumerate(chunks):
            _set_random_state(states[place])
            with last_chunk(place == len(chunks) - 1):
                # As one tensor: a second backward would find the graph that the two share gone.
                push(torch.cat(_embed(embed, chunk)), torch.cat(gradients[place]))
    finally:
        _set_random_state(after)
    return loss.detach()


def fabric_push(fabric: "Fabric") -> Push:
    """Backward of an embedding whose gradient `fabric.backward(loss)` has scaled, if it scales.

    Fabric refuses a backward that does not come from itself, and its own scales what it is given: a
    gradient that is scaled already is divided first, which loses nothing, the scale being a power of two.
    """

    def push(tensor: torch.Tensor, gradient: torch.Tensor) -> None:
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            gradient = gradient / scaler.scale(torch.ones((), device=gradient.device))
        fabric.backward(tensor, gradient)

    return push


@torch.no_grad()
def _first_pass(embed: Callable[[Chunk], Pair], chunks: Sequence[Chunk]) -> tuple[list[tuple], list[Pair]]:
    states, pairs = [], []
    for chunk in chunks:
        states.append(_random_state())
        pairs.append(_embed(embed, chunk))
    return states, pairs


def _embed(embed: Callable[[Chunk], Pair], chunk: Chunk) -> Pair:
    # Autocast keeps the weights that it has cast: those of pass 1 have no graph, and through them pass 2
    # would find no way back. Not every torch keeps the two apart.
    torch.clear_autocast_cache()
    image_CD, text_CD = embed(chunk)
    return _at_least_float32(image_CD), _at_least_float32(text_CD)


def _at_least_float32(x_CD: torch.Tensor) -> torch.Tensor:
    return x_CD.to(torch.promote_types(x_CD.dtype, torch.float32))


def _gradient(x_BD: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x_BD) if x_BD.grad is None else x_BD.grad


def _random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
