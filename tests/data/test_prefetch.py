"""Batches made ahead: the same, in order, bounded, and no thread left behind."""

import threading
from dataclasses import dataclass

import pytest
import torch

from mmlib.data.batches import prefetched

CPU = torch.device("cpu")


@dataclass
class Item:
    value: torch.Tensor


def items(count: int, made: list | None = None):
    for number in range(count):
        if made is not None:
            made.append(number)
        yield Item(torch.tensor(number))


def test_the_same_batches_in_the_same_order():
    assert [int(item.value) for item in prefetched(items(20), CPU)] == list(range(20))


def test_no_more_is_made_ahead_than_asked_for():
    made = []
    ahead = prefetched(items(100, made), CPU, depth=2)
    next(ahead)
    ahead.close()
    # one handed out, two in the queue, one waiting for room, and those taken while it was closed
    assert len(made) < 20


def test_an_error_in_making_is_raised_where_the_batches_are_used():
    def broken():
        yield Item(torch.tensor(0))
        raise OSError("the disk is gone")

    ahead = prefetched(broken(), CPU)
    assert int(next(ahead).value) == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_no_thread_stays_behind_when_the_rest_is_not_wanted():
    before = threading.active_count()
    ahead = prefetched(items(1000), CPU)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
