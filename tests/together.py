"""Runs a function in several processes that train together, as torchrun would start them."""

import multiprocessing
import os
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
# pytest since every process imports the main module; the others are imported where they are needed, and
# would take each process longer than its work.
SERVER.set_forkserver_preload(
    [
        "mmlib.training.start", "mmlib.training.evaluation", "mmlib.data.shapes", "mmlib.data.shards",
        "pytest", "timm", "lightning_fabric", "scipy.stats", "scipy.cluster",
    ]
)  # fmt: skip
PATIENCE = 300  # seconds after which processes count as stuck


def torchrun_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on one machine."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def run_together(target, count: int, *arguments) -> list[int]:
    """Runs `target(*arguments)` in `count` processes; returns their exit codes by rank.

    They meet where torchrun has them meet: at a store in the process that started them.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        SERVER.Process(target=as_rank, args=(target, rank, count, store.port, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def as_rank(target, rank: int, count: int, port: int, arguments: tuple) -> None:
    """Runs `target(*arguments)` as a process of torchrun does."""
    os.environ |= torchrun_environment(rank, count, port)
    target(*arguments)


def settle(runs: Path, cache: Path) -> None:
    """Points a fresh process at the test's own folders."""
    import torch

    from mmlib import files

    torch.set_num_threads(1)
    files.RUNS, files.CACHE = runs, cache
