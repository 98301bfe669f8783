"""Fingerprint and digests: what changes them, and what is not read a second time."""

import hashlib
import json
import os
import re

import pytest

from mmlib.data import dataset as fingerprint
from mmlib.data.dataset import Split, dataset_fingerprint, file_digests

IMAGES = ("a.jpg", "b.jpg")
CAPTIONS = ("one", "two", "three")
DIGESTS = {"a.jpg": "0" * 64, "b.jpg": "1" * 64}


def identity(name="train", images=IMAGES, captions=CAPTIONS, owners=(0, 0, 1), digests=DIGESTS):
    return dataset_fingerprint({name: Split(name, images, captions, owners)}, digests)


def test_fingerprint_is_16_hex_digits_and_stable():
    assert identity() == identity()
    assert re.fullmatch("[0-9a-f]{16}", identity())
    # Spelled out, because runs are compared across versions of this package by this value.
    content = (
        f'[["train", ["a.jpg", "b.jpg"], ["{"0" * 64}", "{"1" * 64}"], ["one", "two", "three"], [0, 0, 1]]]'
    )
    assert identity() == hashlib.sha256(content.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "val"},
        {"images": ("a.jpg", "c.jpg"), "digests": {"a.jpg": "0" * 64, "c.jpg": "1" * 64}},
        {"images": ("b.jpg", "a.jpg")},
        {"captions": ("one", "two", "three ")},
        {"captions": ("two", "one", "three")},
        {"captions": ("onetwo", "", "three")},
        {"captions": ("one", "two", "thr\ud800ee")},
        {"owners": (0, 1, 1)},
        {"digests": {"a.jpg": "0" * 64, "b.jpg": "2" * 64}},
    ],
)
def test_every_difference_changes_the_fingerprint(change):
    assert identity(**change) != identity()


def test_order_of_the_splits_and_digests_of_other_images_do_not_count():
    splits = {name: Split(name, IMAGES, CAPTIONS, (0, 0, 1)) for name in ("train", "val")}
    backwards = dict(reversed(splits.items()))
    assert dataset_fingerprint(splits, DIGESTS) == dataset_fingerprint(backwards, DIGESTS | {"c.jpg": "3"})


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "files" / name for name in ("one", "empty", "two")]
    paths[0].parent.mkdir()
    for path, content in zip(paths, (b"1", b"", b"2" * 100_000)):
        path.write_bytes(content)
    return paths


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read, in sorted order when asked."""
    names = []
    real = fingerprint.file_sha256

    def spy(path):
        names.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(fingerprint, "file_sha256", spy)
    return names


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    """Files that were just written are taken for old ones."""
    monkeypatch.setattr(fingerprint, "SETTLED_NS", 0)


def expected(files):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_digests_are_those_of_the_bytes_in_order(files, tmp_path):
    assert file_digests(files, tmp_path / "deep" / "cache.json") == expected(files)
    assert file_digests([files[2], files[0], files[2]], tmp_path / "c.json") == expected(
        [files[2], files[0], files[2]]
    )
    assert file_digests([], tmp_path / "none.json") == []


def test_only_changed_files_are_read_again(files, tmp_path, read):
    cache = tmp_path / "cache.json"
    file_digests(files, cache)
    assert sorted(read) == ["empty", "one", "two"]
    read.clear()
    file_digests(files, cache)
    assert read == []
    files[0].write_bytes(b"longer")
    os.utime(files[1], ns=(1, 1))
    assert file_digests(files, cache) == expected(files)
    assert sorted(read) == ["empty", "one"]


def test_a_file_replaced_by_one_of_equal_size_and_time_is_read_again(files, tmp_path, read):
    cache = tmp_path / "cache.json"
    before = file_digests(files, cache)
    for target, content in ((files[0], b"x"), (tmp_path / "other", b"y")):  # in place, and moved there
        there = files[0].stat()
        target.write_bytes(content)
        os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
        while target.stat().st_ctime_ns == there.st_ctime_ns:  # within one tick of the clock
            os.utime(target, ns=(there.st_atime_ns, there.st_mtime_ns))
        os.replace(target, files[0])
        here = files[0].stat()
        assert (here.st_size, here.st_mtime_ns) == (1, there.st_mtime_ns)
        read.clear()
        assert file_digests(files, cache) == expected(files) != before
        assert read == ["one"]


def test_a_file_that_was_just_changed_is_not_remembered(files, tmp_path, read, monkeypatch):
    """A coarse clock may give the next change the same time."""
    cache = tmp_path / "cache.json"
    monkeypatch.setattr(fingerprint, "SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        assert file_digests(files, cache) == expected(files)
    assert sorted(read) == ["empty", "empty", "one", "one", "two", "two"]
    assert json.loads(cache.read_text()) == {}


def test_a_file_that_changes_while_it_is_read_is_not_remembered(files, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "file_sha256", lambda path: os.utime(path, ns=(1, 1)) or "0" * 64)
    assert file_digests(files[:1], tmp_path / "cache.json") == ["0" * 64]
    assert json.loads((tmp_path / "cache.json").read_text()) == {}


def test_other_files_stay_in_the_cache(files, tmp_path, read):
    cache = tmp_path / "cache.json"
    file_digests(files[:1], cache)
    file_digests(files[1:], cache)
    read.clear()
    file_digests(files, cache)
    assert read == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"cut',
        b"\xff\xfe",
        b"[]",
        b'{"x": 3}',
        b'{"x": [1, 2]}',
        b"[" * 9999,
    ],
)
def test_damaged_cache_is_built_anew_with_a_warning(files, tmp_path, damage, caplog):
    cache = tmp_path / "cache.json"
    cache.write_bytes(damage)
    assert file_digests(files, cache) == expected(files)
    assert "is built anew" in caplog.text
    assert sorted(json.loads(cache.read_text())) == sorted(map(str, files))


def test_cache_that_cannot_be_written_is_a_warning(files, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    assert file_digests(files, tmp_path / "file" / "cache.json") == expected(files)
    assert "digests are not kept" in caplog.text


def test_cache_is_written_whole_or_not_at_all(files, tmp_path, monkeypatch):
    cache = tmp_path / "cache.json"
    file_digests(files[:1], cache)
    before = cache.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    file_digests(files, cache)
    assert cache.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["cache.json", "files"]


def test_missing_file(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        file_digests([*files, tmp_path / "gone"], tmp_path / "cache.json")
