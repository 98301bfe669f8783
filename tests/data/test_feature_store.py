"""The store of frozen features: right values, computed once, whole or continued whatever happens."""

import errno
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from mmlib.data import store
from mmlib.data.store import FeatureStore, open_array

N, F, BATCH = 11, 3, 4
HEADER = {"encoder": "e" * 16, "shape": [N, F], "precision": "fp32"}


class Features:
    """Computes row r as (r, r/8, -r), and keeps what was asked; stops at a row if told to."""

    def __init__(self, stop_at=N, error=KeyboardInterrupt):
        self.asked, self.stop_at, self.error = [], stop_at, error

    def __call__(self, start, stop):
        if stop > self.stop_at:
            raise self.error
        self.asked.append((start, stop))
        row = np.arange(start, stop, dtype=np.float32)[:, None]
        return row * np.array([1, 1 / 8, -1], dtype=np.float32)


def refuse(start, stop):
    raise AssertionError(f"rows {start} to {stop} were computed again")


def open_at(path, compute, **changes):
    return open_array(path, HEADER | changes, compute, BATCH, "features")


def assert_right(array):
    assert array.dtype == np.float16
    assert isinstance(array, np.memmap)
    assert np.array_equal(array, Features()(0, N))


def files_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "tiny.float16"


def test_features_are_computed_once_in_batches_and_read_only(path):
    compute = Features()
    array = open_at(path, compute)
    assert compute.asked == [(0, 4), (4, 8), (8, 11)]
    assert_right(array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert_right(open_at(path, refuse))
    assert files_in(path.parent) == ["tiny.float16", "tiny.float16.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_computation_goes_on_where_it_stopped(path, caplog, error):
    with pytest.raises(error):
        open_at(path, Features(stop_at=9, error=error))
    assert files_in(path.parent) == ["tiny.float16.part", "tiny.float16.part.json"]
    compute = Features()
    with caplog.at_level(logging.INFO):
        assert_right(open_at(path, compute))
    assert compute.asked == [(8, 11)]
    assert "tiny.float16 goes on at row 8 of 11" in caplog.text
    assert files_in(path.parent) == ["tiny.float16", "tiny.float16.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from mmlib.data import store
from test_feature_store import Features, open_at
store.RECORD_SECONDS = -1
class Killed(Features):
    def __call__(self, start, stop):
        if start == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(start, stop)
open_at(Path(sys.argv[1]), Killed())
"""


def test_a_killed_computation_goes_on_at_its_last_record(path):
    folder = os.path.dirname(__file__)
    process = subprocess.run([sys.executable, "-c", KILLED, str(path), folder], timeout=300)
    assert process.returncode == -signal.SIGKILL
    compute = Features()
    assert_right(open_at(path, compute))
    assert compute.asked == [(8, 11)]


def test_all_rows_done_and_no_name_yet(path, monkeypatch):
    monkeypatch.setattr(store.ArrayFile, "seal", lambda *_: (_ for _ in ()).throw(OSError("full")))
    monkeypatch.setattr(store, "RECORD_SECONDS", -1)
    with pytest.raises(OSError, match="full"):
        open_at(path, Features())
    monkeypatch.undo()
    compute = Features()
    assert_right(open_at(path, compute))
    assert compute.asked == [(8, 11)]  # whole batches are kept


@pytest.mark.parametrize(
    "spoil",
    [
        lambda part, record: part.write_bytes(b"short"),
        lambda part, record: record.write_text("{"),
        lambda part, record: record.write_text("[1]"),
        lambda part, record: record.unlink(),
        lambda part, record: part.unlink(),
        lambda part, record: record.write_text(
            json.dumps(json.loads(record.read_text()) | {"header": {"encoder": "f" * 16}})
        ),
    ],
)
def test_an_unfinished_file_that_cannot_be_trusted_starts_anew(path, spoil):
    with pytest.raises(KeyboardInterrupt):
        open_at(path, Features(stop_at=9))
    part = path.with_name("tiny.float16.part")
    spoil(part, part.with_name("tiny.float16.part.json"))
    compute = Features()
    assert_right(open_at(path, compute))
    assert compute.asked[0] == (0, 4)


def test_another_batch_size_goes_on_at_a_whole_batch(path):
    with pytest.raises(KeyboardInterrupt):
        open_at(path, Features(stop_at=9))
    compute = Features()
    array = open_array(path, HEADER, compute, 3, "features")
    assert compute.asked == [(6, 9), (9, 11)]
    assert_right(array)


def test_a_store_of_other_weights_is_refused_by_name(path):
    open_at(path, Features())
    expected = (
        f"feature store of other weights: {path} was made by an encoder with fingerprint {'e' * 16}, expected"
        f" {'d' * 16}; remove the file, or bring those weights back"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        open_at(path, refuse, encoder="d" * 16)
    assert_right(open_at(path, refuse))


def _edit_header(key, value):
    def edit(path):
        header = path.with_name(path.name + ".json")
        header.write_text(json.dumps({**json.loads(header.read_text()), key: value}))

    return edit


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "it has 65 bytes, expected 66"),
        (lambda path: path.write_bytes(bytes(2 * N * F)), "its features do not match their checksum"),
        (_edit_header("format", 0), "its header has format 0, expected 2"),
        (_edit_header("precision", "bf16"), "its header has precision 'bf16', expected 'fp32'"),
        (lambda path: path.with_name(path.name + ".json").unlink(), "there is no tiny.float16.json"),
        (
            lambda path: path.with_name(path.name + ".json").write_text("{"),
            "its header is damaged: expected JSON, found ",
        ),
    ],
)
def test_a_damaged_store_is_computed_again_with_a_warning(path, caplog, damage, reason):
    open_at(path, Features())
    damage(path)
    assert_right(open_at(path, Features()))
    assert f"tiny.float16 is computed again: {reason}" in caplog.text
    assert_right(open_at(path, refuse))


@pytest.mark.parametrize("value", [1e5, np.inf, np.nan])
def test_features_that_float16_cannot_hold(path, value):
    def compute(start, stop):
        feature = np.zeros((stop - start, F), dtype=np.float32)
        feature[6 - start : 7 - start] = value
        return feature

    with pytest.raises(ValueError, match=r"features of row 6 cannot be stored: .* set cache_features to"):
        open_at(path, compute)
    assert not path.exists()


def test_features_of_another_shape(path):
    with pytest.raises(ValueError, match=r"expected features of shape \(3,\), found \(2,\)"):
        open_at(path, lambda start, stop: np.zeros((stop - start, 2)))


def test_a_full_disk_is_the_systems_error_and_leaves_no_half_store(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BATCH * F * 2 + 1, limits[1]))  # the first batch fits
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            open_at(path, Features())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert not path.exists()
    assert_right(open_at(path, Features()))


def test_a_disk_without_enough_space(path, monkeypatch):
    import shutil

    path.parent.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 35, 65))
    expected = "expected 66 free bytes to store the features of 11 items, found 65; free some space"
    with pytest.raises(OSError, match=expected):
        open_at(path, refuse)


WAITING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_feature_store import Features, open_at, assert_right
compute = Features()
print("ready", flush=True)
sys.stdin.readline()
assert_right(open_at(Path(sys.argv[1]), compute))
print(len(compute.asked))
"""


def test_processes_that_want_the_same_features_at_once_compute_them_once(path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(path), os.path.dirname(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert sorted(outputs) == ["0", "3"]


def test_progress_bar_only_where_asked_or_on_a_terminal(path, capsys):
    open_at(path, Features())
    assert capsys.readouterr() == ("", "")
    open_array(path.with_name("b"), HEADER, Features(), BATCH, "features of tiny", True)
    assert "features of tiny" in capsys.readouterr().err


def test_rows_of_a_split(path):
    store = FeatureStore(open_at(path, Features()), {"train": np.arange(4)}, path)
    assert store.rows("train").tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="expected a split of train, found 'dev'"):
        store.rows("dev")
