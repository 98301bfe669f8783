"""Work on the images of a batch in parallel, on as many CPU threads as torch may use.

The native kernels release the interpreter's lock while they run, so plain threads are enough.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

CHUNK_VALUES = 1 << 20  # handled at once: enough to be worth waking a thread, as float32 in a shared cache

_starting = threading.Lock()


def chunk_images(values_per_image: int) -> int:
    """How many images are handled at once, at least one."""
    return max(1, CHUNK_VALUES // max(1, values_per_image))


def in_chunks(work: Callable[[int, int], object], count: int, size: int) -> None:
    """Calls `work(start, stop)` for consecutive ranges that cover 0..count, in parallel.

    Args:
        work: does items start to stop - 1; called from several threads, never twice for an item.
        count: number of items.
        size: items of one call, at least 1; the last call may have fewer.

    Raises:
        Exception: whatever `work` raises.
    """
    threads = min(torch.get_num_threads(), -(-count // size))
    # One iterator for all threads: who is done first takes the next range.
    starts = iter(range(0, count, size))

    def run(_thread: int = 0) -> None:
        for start in starts:
            work(start, min(start + size, count))

    if threads <= 1:
        run()
        return
    with _starting:
        pool = _pool(os.getpid(), torch.get_num_threads())
    list(pool.map(run, range(threads)))


@lru_cache(maxsize=4)
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no further threads; a forked process gets its own."""
    pool = ThreadPoolExecutor(threads, "pixels", _use_one_thread)
    all_started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_started.wait)
    all_started.wait()
    # The setting is a thread's own, except for the value that threads to come begin with.
    torch.set_num_threads(threads)
    return pool


def _use_one_thread() -> None:
    # Asked first: a thread takes over the common setting when it first needs it, over its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
