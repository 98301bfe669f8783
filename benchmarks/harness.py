"""How a comparison is measured: alternating repetitions for time, a process of its own for memory.

A contender is a function that prepares its work and returns it: `make(**arguments) -> work`.  What
`make` does is not measured.  `work()` is; it may return the seconds to count, where a part of it is
preparation that cannot be told apart from outside.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEMORY_TIMEOUT = 3600  # seconds for one contender


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: what tables call it.
        make: a function at the top of a module; another process finds it there by its name.
        arguments: passed to it; JSON values.
    """

    name: str
    make: Callable[..., Callable[[], float | None]]
    arguments: dict = field(default_factory=dict)


def seconds_of(work: Callable[[], float | None]) -> float:
    """Seconds of one call, on a GPU until it is idle, or what the call itself counted."""
    _wait_for_gpu()
    started = time.perf_counter()
    counted = work()
    _wait_for_gpu()
    return time.perf_counter() - started if counted is None else counted


def alternate(
    works: list[Callable[[], float | None]], repetitions: int, warm_up: int = 1
) -> list[list[float]]:
    """Seconds of every repetition of every work: first, second, first, second, …

    Whatever else the machine does then falls on all of them alike.  The order turns by one from one
    repetition to the next, so that none always comes after the same other.
    """
    for work in works * warm_up:
        seconds_of(work)
    seconds = [[] for _ in works]
    for repetition in range(repetitions):
        for turn in range(len(works)):
            index = (turn + repetition) % len(works)
            gc.collect()
            seconds[index].append(seconds_of(works[index]))
    return seconds


def compare(
    what: str,
    ours: Contender,
    peers: list[Contender],
    *,
    work: str,
    amount: float | None = None,
    unit: str = "s",
    repetitions: int = 5,
    warm_up: int = 1,
    memory: bool = True,
    notes: dict[str, str] | None = None,
) -> list[dict]:
    """One row for each peer, measured in one run.

    Args:
        what: the section and what is measured, as `ranks 5k x 25k`.
        ours, peers: the contenders.
        work: sizes and settings, the same for all.
        amount: pairs or the like in one piece of work; values are then `amount / seconds`.
        unit: of the values; `s`, or with an amount `pairs/s`.
        repetitions, warm_up: counted and uncounted calls of each.
        memory: measure peak memory too, each contender in a process of its own.
        notes: by peer, what is not equal about it.

    Returns:
        Rows with `ours`, `peer` (medians in `unit`), `ratio` (median of the repetitions' ratios,
        above 1: ours is faster), `ratio_low`, `ratio_high`, `repetitions`, and peak memory in MiB.
    """
    contenders = [ours, *peers]
    works = [contender.make(**contender.arguments) for contender in contenders]
    seconds = alternate(works, repetitions, warm_up)
    del works
    gc.collect()
    peaks = [peak_memory(contender)["peak_mib"] if memory else None for contender in contenders]
    return [
        row(
            what, work, unit, (ours.name, seconds[0], peaks[0]), (peer.name, seconds[i], peaks[i]),
            amount, (notes or {}).get(peer.name, ""),
        )
        for i, peer in enumerate(peers, 1)
    ]  # fmt: skip


def row(what, work, unit, ours, peer, amount=None, note="") -> dict:
    """A row of the tables; `ours` and `peer` are (name, seconds of each repetition, peak MiB or None)."""
    ratios = [theirs / mine for mine, theirs in zip(ours[1], peer[1])]

    def value(seconds: list[float]) -> float:
        median = statistics.median(seconds)
        return round(median if amount is None else amount / median, 4)

    return {
        "what": what,
        "work": work,
        "unit": unit,
        "ours_name": ours[0],
        "peer_name": peer[0],
        "ours": value(ours[1]),
        "peer": value(peer[1]),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "repetitions": len(ratios),
        "ours_peak_mib": ours[2],
        "peer_peak_mib": peer[2],
        "note": note,
    }


def alone(what: str, work: str, unit: str, name: str, value: float, peak=None, note: str = "") -> dict:
    """A row for a value that has nothing beside it, as a share of a peak."""
    return {
        "what": what, "work": work, "unit": unit, "ours_name": name, "peer_name": None, "ours": value,
        "peer": None, "ratio": None, "ratio_low": None, "ratio_high": None, "repetitions": 1,
        "ours_peak_mib": peak, "peer_peak_mib": None, "note": note,
    }  # fmt: skip


def unavailable(what: str, work: str, reason: str) -> dict:
    """A row that says why something could not be measured."""
    return alone(what, work, "", "ours", None, note=f"not available: {reason}")


def peak_memory(contender: Contender) -> dict:
    """Peak memory of one call in a fresh process, less what the process held before it.

    Returns:
        `peak_mib`, `baseline_mib` and `seconds` of that one call (without a warm-up).

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    make = contender.make
    command = [
        sys.executable, "-m", "benchmarks.memory", f"{make.__module__}:{make.__qualname__}",
        json.dumps(contender.arguments),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=MEMORY_TIMEOUT, env=child_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{contender.name}: measuring memory failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, with the same number of threads."""
    torch = sys.modules.get("torch")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())} if torch else {}
    return {**os.environ, **threads, **changes}


def _wait_for_gpu() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
