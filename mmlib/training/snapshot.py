"""What a checkpoint is made of, copied in a moment, so that training may go on and change the originals."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

FREE_TIMES = 4  # a GPU must have so many times a copy's size free to hold it: two are under way at most


class Snapshot:
    """A copy of nested dicts, lists and tuples with all their tensors.

    What lies on a GPU with room to spare is copied there, which the host does not wait for, and fetched
    by `on_host`, from any thread, beside the GPU's other work.  Otherwise it is fetched at once.

    Args:
        content: plain values are kept as they are.
    """

    def __init__(self, content: Any):
        self._device = _gpu_with_room(content)
        if self._device is None:
            self._content = _mapped(content, _fetched)
        else:
            self._content = _mapped(content, lambda tensor: tensor.detach().clone())
            self._made = torch.cuda.current_stream(self._device).record_event()

    def on_host(self) -> Any:
        """The copy, its tensors in the host's memory."""
        if self._device is None:
            return self._content
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(self._made)
        with torch.cuda.stream(stream):
            return _mapped(self._content, _fetched)


def _fetched(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _mapped(content: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(content, torch.Tensor):
        return copy(content)
    if isinstance(content, dict):
        return {key: _mapped(value, copy) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_mapped(value, copy) for value in content)
    return content


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)


def _gpu_with_room(content: Any) -> torch.device | None:
    """The GPU that holds tensors of `content`, if as much as it needs is free there."""
    on_gpu = [tensor for tensor in _tensors(content) if tensor.device.type == "cuda"]
    if not on_gpu:
        return None
    device, size = on_gpu[0].device, sum(tensor.nbytes for tensor in on_gpu)
    return device if torch.cuda.mem_get_info(device)[0] >= FREE_TIMES * size else None
