"""The order of an epoch is arithmetic: every sample once, equal shares, the same again."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mmlib.data.shards.order import epoch_segments, shuffled

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def samples_of(segments):
    return [(s.shard, n) for s in segments for n in range(s.start, s.stop)]


@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 100), processes=st.integers(1, 12))
def test_together_the_processes_read_every_sample_once_in_equal_shares(sizes, seed, epoch, processes):
    shares = [samples_of(epoch_segments(sizes, seed, epoch, rank, processes)) for rank in range(processes)]
    assert sorted(s for share in shares for s in share) == [
        (shard, n) for shard, size in enumerate(sizes) for n in range(size)
    ]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_come_in_another_order_in_another_epoch_or_with_another_seed():
    def order(seed, epoch):
        return [segment.shard for segment in epoch_segments([3] * 50, seed, epoch, 0, 1)]

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert order(0, 0) != list(range(50))


def test_each_process_passes_by_most_shards():
    """Reading a stretch of the whole, a process opens as few shards as there can be."""
    opened = [len(epoch_segments([10] * 20, 0, 1, rank, 4)) for rank in range(4)]
    assert sum(opened) <= 20 + 3


@given(count=st.integers(0, 200), buffer=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_shuffling_loses_nothing_and_holds_a_buffer_at_most(count, buffer, seed):
    asked = []

    def items():
        for item in range(count):
            asked.append(item)
            yield item

    out = []
    for item in shuffled(items(), buffer, seed, 1, 0):
        out.append(item)
        assert len(asked) - len(out) <= buffer
    assert Counter(out) == Counter(range(count))
    assert out == list(shuffled(range(count), buffer, seed, 1, 0))


def test_shuffling_mixes_over_the_buffer_and_differs_by_seed_epoch_and_process():
    orders = [
        list(shuffled(range(6_000), 1_000, *key)) for key in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))
    ]
    assert len({tuple(order) for order in orders}) == 4
    moved = [abs(place - item) for place, item in enumerate(orders[0])]
    assert sum(moved) / len(moved) > 500
