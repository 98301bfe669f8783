"""A disk that is full from some write on: a clear error, nothing lost, and the same call goes on later."""

import errno
import os
import resource
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import pytest
from events import DISK, watched
from forked import ended, settle
from tiny_runs import ADAMW_ONE, assert_same, before_step, checkpoint, left_behind, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.training import run_state

pytestmark = pytest.mark.usefixtures("tiny_place")
RUN = ADAMW_ONE | {"checkpoint_steps": 2}
FULL = [  # from how often an event has come, once for what starts a run and then later
    (("open", "environment.json"), 1), (("write", "tokenizer.json"), 1), (("write", "history.jsonl"), 1),
    (("fsync", "config.json"), 1), (("write", "status.json"), 1), (("write", "best.pt"), 1),
    (("replace", "model.safetensors"), 1), (("write", "history.jsonl"), 3), (("fsync", "history.jsonl"), 3),
    (("write", "last.pt"), 4), (("fsync", "last.pt"), 3), (("replace", "last.pt"), 2),
    (("open", "status.json"), 2), (("write", "status.json"), 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_cache):
    """What the run leaves on a disk that is large enough, and the events on the way."""
    import torch

    torch.set_num_threads(1)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", tiny_cache)
        patch.setattr(files, "RUNS", tmp_path_factory.mktemp("never-full"))
        with watched([files.RUNS], lambda number, kind, name: seen.append((number, kind, name))):
            tiny_train(**RUN)
        return left_behind("tiny"), seen


def full_from(where: tuple[str, str], count: int):
    """No space from the `count`-th event of this kind and file on."""
    come = []

    def happens(number: int, kind: str, name: str) -> None:
        if (kind, name) == where:
            come.append(number)
        if len(come) >= count and kind in DISK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return happens


def assert_fails_and_goes_on(whole: dict, where: tuple[str, str], count: int) -> None:
    with (
        watched([files.RUNS], full_from(where, count)),
        pytest.raises(OSError, match=r"No space left on device.*Free some space and start again") as caught,
    ):
        tiny_train(**RUN)
    assert f"could not write {files.RUNS / 'tiny' / where[1]}" in str(caught.value)
    folder = files.RUNS / "tiny"
    if (folder / "config.json").exists():
        assert run_state("tiny")[0] in ("killed", "failed")  # what can be said without a disk
    assert not list(folder.glob("*.part"))
    for kept in ("best", "last"):
        if (folder / f"{kept}.pt").exists():
            checkpoint("tiny", kept)
    tiny_train(**RUN)
    assert_same(whole, left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)


@pytest.mark.parametrize(
    ("kind", "name", "count"), [(*where, count) for where, count in FULL], ids=lambda value: str(value)
)
def test_a_disk_that_is_full_from_one_write_on(kind, name, count, whole):
    assert_fails_and_goes_on(whole[0], (kind, name), count)


@pytest.mark.slow
def test_a_disk_that_is_full_from_any_write_on(whole, monkeypatch, tmp_path):
    left, events = whole
    for where, times in Counter((kind, name) for _, kind, name in events if kind in DISK).items():
        for count in range(1, times + 1):
            monkeypatch.setattr(files, "RUNS", tmp_path / f"{'-'.join(where)}-{count}")
            assert_fails_and_goes_on(left, where, count)


@pytest.mark.parametrize("name", ["gallery.npz", "ranks.npz", "diagnosis.json", "results.json"])
def test_an_evaluation_on_a_full_disk_leaves_no_mixture(name):
    tiny_train(epochs=1)
    tiny_evaluate()
    folder = files.RUNS / "tiny"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def happens(number: int, kind: str, file: str) -> None:
        if (kind, file) == ("write", name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        watched([files.RUNS], happens),
        pytest.raises(OSError, match=f"could not write .*{name}.*No space left on device"),
    ):
        tiny_evaluate(split="val")
    assert not (folder / "results.json").exists(), "results of test beside ranks of val"
    tiny_evaluate()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def train_where_files_stay_small(runs, cache, changes, limit: int, message) -> None:
    """Trains; from the second epoch on, no file may be longer than `limit` bytes."""

    def forbid(training) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    settle(runs, cache)
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 6, forbid)
        try:
            tiny_train(**changes)
        except OSError as error:
            message.write_text(str(error))
            sys.exit(1)


def test_a_limit_of_the_system_is_as_a_full_disk(whole, tiny_place, tiny_cache, tmp_path):
    message = tmp_path / "message"
    assert ended(train_where_files_stay_small, tiny_place, tiny_cache, RUN, 20_000, message) == 1
    assert "could not write" in message.read_text()
    assert "last.pt (" in message.read_text()
    state, reason = run_state("tiny")
    assert state == "failed"
    assert "File too large; the previous one is intact" in reason
    assert checkpoint("tiny")["position"]["epoch"] == 2
    tiny_train(**RUN)
    assert_same(whole[0], left_behind("tiny"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(whole, small_disk, monkeypatch):
    monkeypatch.setattr(files, "RUNS", small_disk / "runs")
    ballast = small_disk / "ballast"

    def fill(training) -> None:
        with open(ballast, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    with monkeypatch.context() as patch:
        before_step(patch, 6, fill)
        with pytest.raises(OSError, match=r"could not write .*: No space left on device.*Free some space"):
            tiny_train(**RUN)
    assert run_state("tiny")[0] in ("killed", "failed")
    assert checkpoint("tiny")["position"]["epoch"] == 2
    ballast.unlink()
    tiny_train(**RUN)
    assert_same(whole[0], left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)
