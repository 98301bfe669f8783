"""Work that is killed at random moments until it has been killed often enough, and then left to end.

A moment is an event's number (`events.watched`), or a share of the time that the same work took
undisturbed.  The moments are drawn from a seed; what a moment hits is left to the machine.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from events import watched
from forked import PATIENCE, SERVER, ended, settle
from tiny_runs import left_behind, tiny_continue, tiny_evaluate, tiny_train
from tqdm import tqdm

from mmlib.training import read_history, run_folder
from mmlib.training.checkpoint import load_checkpoint

TIMED = 0.25  # share of the moments that are times
LATEST = 0.6  # share of the undisturbed time after which no kill comes
SOON = 20  # events: fewer than an evaluation has


@dataclass(frozen=True)
class Work:
    """What a process does: train (or continue) a run with `changes`, then evaluate it."""

    run: str
    changes: dict
    most_broken: float | None = None  # of the samples of shards, where the default is too strict for a few

    def do(self) -> None:
        if self.most_broken:
            from mmlib.data import shards

            shards.MOST_BROKEN = self.most_broken
        begin = tiny_continue if "parent" in self.changes else tiny_train
        begin(run=self.run, if_complete="show", **self.changes)
        tiny_evaluate(self.run)


def work_until(place: Path, work: Work, last: int | None) -> None:
    """Works in `place`, in a process of its own that is killed at event `last`; writes down its events."""
    settle(place / "runs", place / "cache")
    tqdm.set_lock(threading.RLock())  # its own is a system-wide semaphore, which a killed process leaves
    diary = os.open(place / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def happens(number: int, kind: str, name: str) -> None:
        os.write(diary, f"{number} {kind} {name}\n".encode())
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched([place], happens):
        work.do()


def begin(place: Path, work: Work, last: int | None = None):
    """The process that works, started."""
    (place / "events").unlink(missing_ok=True)
    process = SERVER.Process(target=work_until, args=(place, work, last))
    process.start()
    return process


def undisturbed(place: Path, work: Work) -> tuple[float, int]:
    """Does the work; returns the seconds and events that it took."""
    ended(settle, place, place)  # the server's own start takes seconds
    started = time.monotonic()
    process = begin(place, work)
    process.join(PATIENCE)
    assert process.exitcode == 0
    return time.monotonic() - started, events(place)[-1][0]


def events(place: Path) -> list[tuple[int, str, str]]:
    """What the last process did, as (number, kind, file); the last of it was cut if it was killed."""
    lines = [line.split(" ") for line in (place / "events").read_text().splitlines()]
    return [(int(number), kind, name) for number, kind, name in lines]


def killed_at_random(place: Path, work: Work, kills: int, seed: int, whole: tuple[float, int]) -> list[str]:
    """Does the work with `kills` kills on the way, and returns what each of them cut.

    Work that ends before it was killed so often starts over.

    Args:
        place: holds `runs`, and is put back to what it holds now when the work starts over.
        whole: seconds and events of the work undisturbed.
    """
    draw = random.Random(seed)
    before = place.with_name(f"{place.name}-before")
    shutil.copytree(place, before)
    while len(cut := _killed(place, work, kills, draw, whole)) < kills:
        shutil.rmtree(place)
        shutil.copytree(before, place)
    process = begin(place, work)
    process.join(PATIENCE)
    assert process.exitcode == 0
    return cut


def _killed(place: Path, work: Work, kills: int, draw: random.Random, whole: tuple[float, int]) -> list[str]:
    """Up to `kills` kills; fewer if the work ended before."""
    seconds, numbers = whole
    cut, progress = [], 0.0
    while len(cut) < kills:
        # Where the work is further than the kills, it is killed soon: the rest is for later ones.
        soon = progress >= len(cut) / kills
        timed = not soon and draw.random() < TIMED
        number = draw.randint(1, SOON) if soon else round(math.exp(draw.uniform(0, math.log(numbers / 2))))
        process = begin(place, work, None if timed else number)
        process.join(draw.uniform(0, LATEST * seconds) if timed else PATIENCE)
        process.kill()  # one whose time is over; another has ended
        process.join()
        if process.exitcode == 0:
            return cut
        assert process.exitcode == -signal.SIGKILL
        cut.append(_described(place, timed))
        progress = _progress(work.run)
    return cut


def _progress(run: str) -> float:
    """Share of the training that a killed run can go on from; checks that what it left can be read."""
    with contextlib.suppress(FileNotFoundError):
        rows = read_history(run)
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    contents = {
        name: load_checkpoint(run_folder(run) / f"{name}.pt")
        for name in ("best", "last")
        if (run_folder(run) / f"{name}.pt").exists()
    }
    if "last" not in contents:
        return 0.0
    done = contents["last"]["position"]["epoch"] - 1 - contents["last"]["parent_epoch"]
    return done / contents["last"]["config"]["epochs"]


def _described(place: Path, timed: bool) -> str:
    done = events(place) if (place / "events").exists() else []
    _, kind, name = done[-1] if done else (0, "start", "")
    return f"{'after' if timed else 'at'} {kind} {name}".strip()


def results_of(run: str) -> dict:
    """All that a trained and evaluated run leaves and that must not depend on interruptions."""
    folder = run_folder(run)
    assert not list(folder.glob("*.part")), "what a killed writer left was not cleared away"
    return left_behind(run) | {
        "results": json.loads((folder / "results.json").read_text()),
        "ranks": torch.frombuffer(bytearray((folder / "ranks.npz").read_bytes()), dtype=torch.uint8),
    }
