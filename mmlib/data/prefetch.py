"""The next batches are made while the model works on this one."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import fields

import torch

DEPTH = 2  # batches made ahead


def prefetched(batches: Iterator, device: torch.device, depth: int = DEPTH) -> Iterator:
    """The same batches in the same order, made by another thread up to `depth` ahead.

    On a GPU the copies to it run on a stream of their own beside the model's work.  The thread ends
    when the batches end, when making one fails (the error is raised here), and when the returned
    iterator is closed.

    Args:
        batches: of dataclasses whose tensors are on `device`.
        device: of the training.
    """
    made: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()
    thread = threading.Thread(target=_make, args=(batches, device, made, closed), daemon=True)
    thread.start()
    try:
        while True:
            batch, ready, error = made.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield _handed_over(batch, ready, device)
    finally:
        closed.set()
        while thread.is_alive():  # it may wait for room in the queue
            try:
                made.get(timeout=0.01)
            except queue.Empty:
                thread.join(0.01)


def _make(batches: Iterator, device: torch.device, made: queue.Queue, closed: threading.Event) -> None:
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    try:
        while not closed.is_set():
            with torch.cuda.stream(stream):
                batch = next(batches, None)
                ready = stream.record_event() if stream and batch is not None else None
            made.put((batch, ready, None))
            if batch is None:
                return
    except BaseException as error:  # raised where the batches are used
        made.put((None, None, error))


def _handed_over(batch, ready: torch.cuda.Event | None, device: torch.device):
    """The batch, when the model's stream may read it."""
    if ready is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(ready)
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, torch.Tensor):
                value.record_stream(stream)  # so that its memory is not given away before it was read
    return batch
