"""Memory that is used again: only once nobody holds it."""

import gc

import pytest
import torch

from mmlib.data import buffers


@pytest.fixture(autouse=True)
def _no_buffers():
    buffers._free.clear()
    yield
    buffers._free.clear()


def test_a_buffer_is_used_again_when_its_tensor_is_gone():
    first = buffers.empty((4, 5))
    address = first.data_ptr()
    assert first.shape == (4, 5)
    assert first.dtype == torch.float32
    del first
    gc.collect()
    assert buffers.empty((2, 10)).data_ptr() == address


def test_a_buffer_is_never_lent_twice_while_a_view_of_it_lives():
    first = buffers.empty((4, 5))
    view = first[1:].permute(1, 0)
    address = first.data_ptr()
    del first
    others = [buffers.empty((4, 5)) for _ in range(8)]
    assert address not in {other.data_ptr() for other in others}
    assert len({other.data_ptr() for other in others}) == 8
    del view
    gc.collect()
    assert buffers.empty((4, 5)).data_ptr() == address


def test_what_autograd_saved_is_not_overwritten():
    weight = torch.ones(3, requires_grad=True)
    image = buffers.empty((3,))
    image.copy_(torch.tensor([1.0, 2.0, 3.0]))
    loss = (weight * image).sum()
    del image
    buffers.empty((3,)).fill_(9)
    loss.backward()
    assert weight.grad.tolist() == [1, 2, 3]


def test_few_buffers_are_kept():
    held = [buffers.empty((size,)) for size in range(1, 8) for _ in range(5)]
    del held
    gc.collect()
    assert len(buffers._free) == buffers.SIZES
    assert all(len(free) <= buffers.KEPT for free in buffers._free.values())
