"""Cached arrays: right values, made once, whole or continued whatever happens meanwhile."""

import errno
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_flickr as tiny
from PIL import Image

import mmlib
from mmlib import files
from mmlib.data import store as store_module
from mmlib.data.dataset import Dataset, ImageFolder, Split
from mmlib.data.decoding import resize_image
from mmlib.data.store import open_array, open_store

SIZE = 4
NAMES = tiny.numbered(35)
DRAWN = tiny.dataset_of(tiny.Drawn(), NAMES)
REFUSING = tiny.dataset_of(tiny.Refusing(), NAMES)

N, F, BATCH = 11, 3, 4
NOTE = {"encoder": "e" * 16, "shape": [N, F], "precision": "fp32"}


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
    return open_array(path, NOTE | changes, compute, BATCH, "features")


def assert_right(array):
    assert array.dtype == np.float16
    assert isinstance(array, np.memmap)
    assert np.array_equal(array, Features()(0, N))


def assert_drawn(store):
    """Every row has the colour that `Drawn` gives the image of that name."""
    expected_N3 = [(row % 256, row // 256, 7) for row in range(len(NAMES))]
    assert np.array_equal(store.array[:, 0, 0], expected_N3)
    assert (store.array == store.array[:, :1, :1]).all()


def files_in(folder):
    """What lies in the folder beside lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def endings_in(folder):
    return [os.path.splitext(name)[1] for name in files_in(folder)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "tiny"


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(store_module, "IMAGES", 8)


@pytest.fixture
def file_limit():
    """Sets the size that files may grow to."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def python(*arguments):
    """A process that can import mmlib and the tests' helpers."""
    search = os.pathsep.join([str(Path(mmlib.__file__).parents[1]), str(Path(tiny.__file__).parent)])
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": search},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Output and errors of a process that ends by itself; one that hangs is a failure, and killed."""
    try:
        return process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def test_store_of_files(tmp_path):
    tiny.write_images(tmp_path / "images")
    train, test = tiny.SPLITS["train"], tiny.SPLITS["test"]
    splits = {name: Split(name, images, (), ()) for name, images in (("test", test), ("train", train))}
    dataset = Dataset("tiny", splits, ImageFolder(tmp_path / "images"), "f" * 16)
    store = open_store(dataset, 8, cache=tmp_path)
    assert store.path.name.startswith(f"tiny-{'f' * 16}-8-squash-")
    assert store.path.parent == tmp_path
    assert isinstance(store.array, np.memmap)
    assert store.array.shape == (6, 8, 8, 3)
    assert store.array.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        store.array[0] = 0
    for split, images in (("train", train), ("test", test)):
        rows = store.splits[split]
        assert rows.dtype == np.int64
        for row, name in zip(rows, images, strict=True):
            image = Image.open(tmp_path / "images" / name).resize((8, 8), Image.Resampling.BICUBIC)
            assert np.array_equal(store.array[row], np.asarray(image))


def test_store_goes_to_the_cache_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "data" / "cache")
    assert open_store(DRAWN, SIZE).path.parent == tmp_path / "data" / "cache"


@pytest.mark.parametrize("width_height", [(40, 20), (20, 40), (33, 47), (5, 3), (16, 16)])
def test_crop_is_shorter_side_then_centre(width_height):
    pixels = np.random.default_rng(0).integers(0, 256, (*width_height[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    long, left_top = {  # at 16 pixels: int(16 * long / short), round((long - 16) / 2)
        (40, 20): ((32, 16), (8, 0)),
        (20, 40): ((16, 32), (0, 8)),
        (33, 47): ((16, 22), (0, 3)),
        (5, 3): ((26, 16), (5, 0)),
        (16, 16): ((16, 16), (0, 0)),
    }[width_height]
    scaled = np.asarray(image.resize(long, Image.Resampling.BICUBIC))
    left, top = left_top
    assert np.array_equal(resize_image(image, 16, "crop"), scaled[top : top + 16, left : left + 16])


def test_resize_modes_and_sizes_have_stores_of_their_own(tmp_path):
    tiny.write_images(tmp_path / "images")
    dataset = tiny.dataset_of(ImageFolder(tmp_path / "images"), tiny.names())
    stores = [open_store(dataset, *key, cache=tmp_path) for key in ((8, "squash"), (8, "crop"), (9, "crop"))]
    assert len({store.path for store in stores}) == 3
    for store, resize in zip(stores, ("squash", "crop", "crop")):
        image = Image.open(tmp_path / "images" / "70_g.jpg")
        expected = resize_image(image, store.array.shape[1], resize)
        assert np.array_equal(store.array[tiny.names().index("70_g.jpg")], expected)
    assert not np.array_equal(stores[0].array, stores[1].array)


def test_packed_once_unless_the_fingerprint_is_another(tmp_path):
    open_store(DRAWN, SIZE, cache=tmp_path)
    assert_drawn(open_store(REFUSING, SIZE, cache=tmp_path))
    with pytest.raises(AssertionError, match="was decoded"):
        open_store(tiny.dataset_of(tiny.Refusing(), NAMES, "f" * 16), SIZE, cache=tmp_path)


def test_arrays_are_computed_once_in_batches_and_read_only(path):
    compute = Features()
    array = open_at(path, compute)
    assert compute.asked == [(0, 4), (4, 8), (8, 11)]
    assert_right(array)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert_right(open_at(path, refuse))
    assert endings_in(path.parent) == [".npy"]


@pytest.mark.parametrize(
    "damage",
    [lambda path: os.truncate(path, path.stat().st_size - 1), lambda path: path.write_bytes(b"\x80\x04N.")],
)
def test_a_damaged_array_is_refused_and_made_again_when_it_is_deleted(path, damage):
    made = Path(open_at(path, Features()).filename)
    damage(made)
    with pytest.raises(
        ValueError, match=r"tiny-\w+\.npy is cut short or damaged \(.*\); delete it and start"
    ):
        open_at(path, Features())
    made.unlink()
    assert_right(open_at(path, Features()))


def test_what_was_made_of_something_else_is_another_array(path):
    made = [
        open_at(path, Features(), **changes).filename for changes in ({}, {"encoder": "f"}, {"precision": 1})
    ]
    assert len(set(made)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_computation_continues_where_it_stopped(path, caplog, error):
    with pytest.raises(error):
        open_at(path, Features(stop_at=9, error=error))
    assert endings_in(path.parent) == [".part"]
    compute = Features()
    with caplog.at_level(logging.INFO):
        assert_right(open_at(path, compute))
    assert compute.asked == [(8, 11)]
    assert "continues at row 8 of 11" in caplog.text
    assert endings_in(path.parent) == [".npy"]


def test_another_batch_size_continues_at_a_whole_batch(path):
    with pytest.raises(KeyboardInterrupt):
        open_at(path, Features(stop_at=9))
    compute = Features()
    array = open_array(path, NOTE, compute, 3, "features")
    assert compute.asked == [(6, 9), (9, 11)]
    assert_right(array)


@pytest.mark.parametrize("size", [0, 5, 128, 131, 10_000])
def test_an_unfinished_file_of_any_size_is_no_obstacle(path, size):
    with pytest.raises(KeyboardInterrupt):
        open_at(path, Features(stop_at=9))
    (part,) = path.parent.glob("*.part")
    os.truncate(part, min(size, part.stat().st_size))
    assert_right(open_at(path, Features()))


def test_what_another_note_left_unfinished_is_not_continued(path):
    with pytest.raises(KeyboardInterrupt):
        open_at(path, Features(stop_at=9), encoder="f" * 16)
    compute = Features()
    assert_right(open_at(path, compute))
    assert compute.asked[0] == (0, 4)


PACK = """
import sys, tiny_flickr
from pathlib import Path
from mmlib.data import store
store.IMAGES = 8
at, size, count, cache = sys.argv[1:]
dataset = tiny_flickr.dataset_of(tiny_flickr.Killing(at), tiny_flickr.numbered(int(count)))
store.open_store(dataset, int(size), cache=Path(cache))
print("packed")
"""


def test_killed_packing_continues(tmp_path, small_batches):
    process = python("-c", PACK, NAMES[-1], SIZE, len(NAMES), tmp_path)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert endings_in(tmp_path) == [".part"]
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))
    assert endings_in(tmp_path) == [".npy"]


def test_a_full_disk_is_the_systems_error_and_leaves_no_half_store(path, file_limit):
    file_limit(128 + BATCH * F * 2 + 1)  # the header and the first batch fit
    with pytest.raises(OSError, match=r"could not write .*tiny-\w+\.npy: File too large") as caught:
        open_at(path, Features())
    assert caught.value.errno == errno.EFBIG
    assert endings_in(path.parent) == [".part"]
    file_limit(2**30)
    assert_right(open_at(path, Features()))


RACE = """
import sys
from pathlib import Path
from test_store import Features, open_at, assert_right
compute = Features()
print("ready", flush=True)
sys.stdin.readline()  # until all are ready
assert_right(open_at(Path(sys.argv[1]), compute))
print(len(compute.asked))
"""


def test_processes_that_want_one_array_at_once_make_it_once(path):
    processes = [python("-c", RACE, path) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(finish(process)[0].strip() for process in processes) == ["0", "3"]


def test_unreadable_images_are_named_and_counted(tmp_path, small_batches):
    tiny.write_images(tmp_path / "images")
    names = tiny.names()
    for row in range(32):
        shutil.copy(tmp_path / "images" / names[0], tmp_path / "images" / f"{row}.jpg")
    names = tiny.numbered(32) + names
    photo = tmp_path / "images" / "60_f.jpg"
    photo.write_bytes(photo.read_bytes()[:-40])
    (tmp_path / "images" / "5.jpg").write_text("no image")
    (tmp_path / "images" / "80_h.jpg").unlink()
    dataset = tiny.dataset_of(ImageFolder(tmp_path / "images"), names)
    with pytest.raises(ValueError, match=r"expected 40 readable images in tiny, found 3 .*") as caught:
        open_store(dataset, SIZE, cache=tmp_path / "cache")
    assert re.search(
        r"are not: 5\.jpg \(cannot decode 5\.jpg: expected .*\) and 2 more; get them again", str(caught.value)
    )
    assert files_in(tmp_path / "cache") == []


def test_an_image_that_changed_after_it_was_hashed_is_not_packed_under_that_fingerprint(tmp_path):
    """Not even one of equal size and time."""
    tiny.write_images(tmp_path)
    digests = {name: ImageFolder(tmp_path).digest(name) for name in tiny.names()}
    dataset = tiny.dataset_of(ImageFolder(tmp_path, digests), tiny.names())
    assert open_store(dataset, SIZE, cache=tmp_path / "before").array.any()
    photo = tmp_path / "60_f.jpg"
    content, status = bytearray(photo.read_bytes()), photo.stat()
    content[-40] ^= 1
    photo.write_bytes(content)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        ValueError, match=r"are not: 60_f\.jpg \(.*60_f\.jpg has changed since the data set was l"
    ):
        open_store(dataset, SIZE, cache=tmp_path / "after")
    assert files_in(tmp_path / "after") == []


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="expected images to pack, found none in data set 'tiny'"):
        open_store(tiny.dataset_of(tiny.Drawn(), []), SIZE, cache=tmp_path)


@pytest.mark.parametrize("value", [1e5, np.inf, np.nan])
def test_features_that_float16_cannot_hold(path, value):
    def compute(start, stop):
        feature = np.zeros((stop - start, F), dtype=np.float32)
        feature[6 - start : 7 - start] = value
        return feature

    with pytest.raises(ValueError, match=r"features of row 6 cannot be stored: .* set cache_features to"):
        open_at(path, compute)
    assert files_in(path.parent) == []


def test_rows_of_another_shape(path):
    with pytest.raises(ValueError, match=r"expected rows of shape \(3,\), found \(2,\)"):
        open_at(path, lambda start, stop: np.zeros((stop - start, 2)))
