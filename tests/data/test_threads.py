"""Work in chunks: each item once, errors come through, torch keeps its number of threads."""

import threading

import pytest
import torch

from mmlib.data.threads import chunk_images, in_chunks


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "size"), [(0, 4), (3, 4), (4, 4), (23, 4), (5, 1)])
def test_every_item_is_done_once(count, size):
    done, lock = [0] * count, threading.Lock()

    def work(start, stop):
        assert 0 < stop - start <= size
        with lock:
            for i in range(start, stop):
                done[i] += 1

    in_chunks(work, count, size)
    assert done == [1] * count


def test_workers_have_one_thread_each_and_this_one_keeps_its_own(threads):
    seen = set()
    in_chunks(lambda *_: seen.add((threading.current_thread().name, torch.get_num_threads())), 40, 1)
    assert torch.get_num_threads() == threads
    if threads > 1:
        assert all(name.startswith("pixels") and count == 1 for name, count in seen)
    started = []
    later = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert started == [threads]


def test_an_error_of_the_work_comes_through():
    def work(start, _stop):
        if start == 6:
            raise ValueError("seventh item")

    with pytest.raises(ValueError, match="seventh item"):
        in_chunks(work, 9, 1)


def test_chunks_are_of_bounded_size():
    assert chunk_images(3 * 64 * 64) == 85
    assert chunk_images(3 * 1024 * 1024) == 1
    assert chunk_images(0) > 1
