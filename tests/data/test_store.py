"""Packed image store: right pixels, packed once, whole or absent whatever happens meanwhile."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_flickr as tiny
from PIL import Image

import mmlib
from mmlib import paths
from mmlib.data.dataset import Dataset, Split
from mmlib.data.decoding import resize_image
from mmlib.data.folders import ImageFolder
from mmlib.data.store import CHUNK, open_store

SIZE = 4
NAMES = tiny.numbered(CHUNK + 3)  # two chunks, the second one short
STORE = f"tiny-0123456789abcdef-{SIZE}-squash.uint8"
DRAWN = tiny.dataset_of(tiny.Drawn(), NAMES)
REFUSING = tiny.dataset_of(tiny.Refusing(), NAMES)


def assert_drawn(store):
    """Every row has the colour that `Drawn` gives the image of that name."""
    expected_N3 = [(row % 256, row // 256, 7) for row in range(len(NAMES))]
    assert np.array_equal(store.images[:, 0, 0], expected_N3)
    assert (store.images == store.images[:, :1, :1]).all()
    assert store.index == {name: row for row, name in enumerate(NAMES)}


def python(*arguments):
    """A process that can import mmlib and tiny_flickr."""
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
    assert store.path == tmp_path / f"tiny-{'f' * 16}-8-squash.uint8"
    assert isinstance(store.images, np.memmap)
    assert store.images.shape == (6, 8, 8, 3)
    assert store.images.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0
    for split, images in (("train", train), ("test", test)):
        rows = store.rows(split)
        assert rows.dtype == np.int64
        for row, name in zip(rows, images, strict=True):
            image = Image.open(tmp_path / "images" / name).resize((8, 8), Image.Resampling.BICUBIC)
            assert store.index[name] == row
            assert np.array_equal(store.images[row], np.asarray(image))


def test_store_goes_to_the_cache_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "data" / "cache")
    assert open_store(DRAWN, SIZE).path == tmp_path / "data" / "cache" / STORE


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
        expected = resize_image(image, store.images.shape[1], resize)
        assert np.array_equal(store.images[store.index["70_g.jpg"]], expected)
    assert not np.array_equal(stores[0].images, stores[1].images)


def test_processes_pack_the_same_bytes(tmp_path):
    tiny.write_images(tmp_path / "images")
    names = tiny.names() * 5  # several chunks
    for copy, name in enumerate(names):
        shutil.copy(tmp_path / "images" / name, tmp_path / "images" / f"{copy}.jpg")
    dataset = tiny.dataset_of(ImageFolder(tmp_path / "images"), tiny.numbered(len(names)))
    inline = open_store(dataset, 8, workers=1, cache=tmp_path / "a")
    pooled = open_store(dataset, 8, workers=2, cache=tmp_path / "b")
    assert inline.path.read_bytes() == pooled.path.read_bytes()


def test_second_open_decodes_nothing(tmp_path):
    open_store(DRAWN, SIZE, cache=tmp_path)
    assert_drawn(open_store(REFUSING, SIZE, cache=tmp_path))


def test_data_with_another_fingerprint_have_another_store(tmp_path):
    open_store(DRAWN, SIZE, cache=tmp_path)
    with pytest.raises(AssertionError, match="was decoded"):
        open_store(tiny.dataset_of(tiny.Refusing(), NAMES, "f" * 16), SIZE, cache=tmp_path)


def _cut(path):
    os.truncate(path, path.stat().st_size - 1)


def _zero_the_end(path):
    n_bytes = path.stat().st_size
    os.truncate(path, n_bytes // 2)
    os.truncate(path, n_bytes)


def _replace_by_other_names(path):
    other = tiny.dataset_of(tiny.Drawn(), NAMES[::-1])
    path.unlink()
    open_store(other, SIZE, cache=path.parent)


def _edit_header(key, value):
    def edit(path):
        header = path.with_name(path.name + ".json")
        header.write_text(json.dumps({**json.loads(header.read_text()), key: value}))

    return edit


def _write_header(content):
    return lambda path: path.with_name(path.name + ".json").write_text(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, "it has 1,679 bytes, expected 1,680"),
        (_zero_the_end, "its pixels do not match their checksum"),
        (_replace_by_other_names, "its header has names_sha256 "),
        (_edit_header("format", 0), "its header has format 0, expected 2"),
        (_edit_header("shape", [1, 4, 4, 3]), "its header has shape [1, 4, 4, 3], expected [35, 4, 4, 3]"),
        (_edit_header("checksum", None), "its pixels do not match their checksum"),
        (_write_header('{"cut'), "its header is damaged: expected JSON, found "),
        (_write_header("[" * 9999), "its header is damaged: expected JSON, found brackets nested too deeply"),
        (_write_header("[]"), "its header is not a JSON object"),
        (lambda path: path.with_name(path.name + ".json").unlink(), f"there is no {STORE}.json"),
    ],
)
def test_damaged_or_foreign_store_is_packed_again_with_a_warning(tmp_path, caplog, damage, reason):
    path = open_store(DRAWN, SIZE, cache=tmp_path).path
    damage(path)
    caplog.clear()
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))
    assert f"{STORE} is packed again: {reason}" in caplog.text
    assert_drawn(open_store(REFUSING, SIZE, cache=tmp_path))


def test_header_without_pixels_is_packed_again(tmp_path):
    open_store(DRAWN, SIZE, cache=tmp_path).path.unlink()
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))


def stores_in(folder):
    """What lies in the folder beside lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


PACK = """
import sys, tiny_flickr
from pathlib import Path
from mmlib.data.store import open_store
kind, at, size, count, workers, cache = sys.argv[1:]
dataset = tiny_flickr.dataset_of(getattr(tiny_flickr, kind)(at), tiny_flickr.numbered(int(count)))
open_store(dataset, int(size), workers=int(workers), cache=Path(cache))
"""


def test_leftovers_of_a_data_set_whose_name_is_a_pattern_are_removed(tmp_path):
    dataset = replace(DRAWN, name="set [1]")
    path = open_store(dataset, SIZE, cache=tmp_path).path
    path.unlink()
    for name in (f"{path.name}.7.part", "set 1.7.part"):
        (tmp_path / name).write_bytes(b"")
    open_store(dataset, SIZE, cache=tmp_path)
    assert [file.name for file in tmp_path.glob("*.part")] == ["set 1.7.part"]


def test_killed_packing_starts_clean(tmp_path):
    process = python("-c", PACK, "Killing", NAMES[-1], SIZE, len(NAMES), 1, tmp_path)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    assert stores_in(tmp_path) == [f"{STORE}.{process.pid}.part"]
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))
    assert stores_in(tmp_path) == [STORE, f"{STORE}.json"]


def test_workers_end_with_a_killed_parent(tmp_path):
    process = python("-c", PACK, "Orphaned", NAMES[0], SIZE, len(NAMES), 2, tmp_path)
    finish(process)  # returns when the last process that holds its output has ended
    assert process.returncode == -signal.SIGKILL
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))
    assert stores_in(tmp_path) == [STORE, f"{STORE}.json"]


def test_killed_worker_is_an_error_that_says_what_to_do(tmp_path):
    dataset = tiny.dataset_of(tiny.Killing(NAMES[-1]), NAMES)
    with pytest.raises(RuntimeError, match=r"expected 2 worker processes .* workers=1 packs without"):
        open_store(dataset, SIZE, workers=2, cache=tmp_path)
    assert stores_in(tmp_path) == []


def test_script_without_guard_ends_with_what_to_do(tmp_path):
    (tmp_path / "script.py").write_text(PACK)
    arguments = ["Killing", "no image", SIZE, len(NAMES), 2, tmp_path / "cache"]
    process = python(tmp_path / "script.py", *arguments)
    _, errors = finish(process)
    assert process.returncode == 1
    assert "put its work under `if __name__ == '__main__':`" in errors
    assert "RuntimeError: expected 2 worker processes to pack images" in errors
    assert stores_in(tmp_path / "cache") == []


def test_interrupted_packing_leaves_nothing(tmp_path):
    dataset = tiny.dataset_of(tiny.Interrupted(NAMES[-1]), NAMES)
    with pytest.raises(KeyboardInterrupt):
        open_store(dataset, SIZE, cache=tmp_path)
    assert stores_in(tmp_path) == []
    assert_drawn(open_store(DRAWN, SIZE, cache=tmp_path))


def test_failed_write_leaves_nothing_and_the_error_is_the_systems(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK * SIZE * SIZE * 3, limits[1]))  # the first chunk fits
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            open_store(DRAWN, SIZE, cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert stores_in(tmp_path) == []


def test_disk_without_enough_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9_999, 8_320, 1_679))
    message = "expected 1,680 free bytes to pack 35 images of tiny, found 1,679; free some space"
    with pytest.raises(OSError, match=re.escape(message)) as caught:
        open_store(DRAWN, SIZE, cache=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert stores_in(tmp_path) == []


RACE = """
import sys, tiny_flickr
from pathlib import Path
from mmlib.data import store
made = []
pack = store._pack
store._pack = lambda *arguments: (made.append(1), pack(*arguments))
print("ready", flush=True)
sys.stdin.readline()  # until all are ready
dataset = tiny_flickr.dataset_of(tiny_flickr.Drawn(), tiny_flickr.numbered(500))
images = store.open_store(dataset, 32, workers=1, cache=Path(sys.argv[1])).images
right = [tuple(map(int, image[31, 31])) == (n % 256, n // 256, 7) for n, image in enumerate(images)]
print(len(made), len(right) == 500 and all(right))
"""


def test_processes_that_want_one_store_at_once_pack_it_once(tmp_path):
    processes = [python("-c", RACE, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [finish(process) for process in processes]
    assert sorted(out.strip() for out, _ in outputs) == ["0 True", "0 True", "1 True"]


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_images_are_named_and_counted(tmp_path, workers):
    tiny.write_images(tmp_path / "images")
    names = tiny.names()
    for row in range(CHUNK):
        shutil.copy(tmp_path / "images" / names[0], tmp_path / "images" / f"{row}.jpg")
    names = tiny.numbered(CHUNK) + names
    photo = tmp_path / "images" / "60_f.jpg"
    photo.write_bytes(photo.read_bytes()[:-40])
    (tmp_path / "images" / "5.jpg").write_text("no image")
    (tmp_path / "images" / "80_h.jpg").unlink()
    dataset = tiny.dataset_of(ImageFolder(tmp_path / "images"), names)
    with pytest.raises(ValueError, match=r"expected 40 readable images in tiny, found 3 .*") as caught:
        open_store(dataset, SIZE, workers=workers, cache=tmp_path / "cache")
    assert re.search(
        r"are not: 5\.jpg \(cannot decode 5\.jpg: expected .*\) and 2 more; get them again", str(caught.value)
    )
    assert stores_in(tmp_path / "cache") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_changed_after_it_was_hashed_is_not_packed_under_that_fingerprint(tmp_path, workers):
    """Not even one of equal size and time."""
    tiny.write_images(tmp_path)
    digests = {name: ImageFolder(tmp_path).digest(name) for name in tiny.names()}
    dataset = tiny.dataset_of(ImageFolder(tmp_path, digests), tiny.names())
    assert open_store(dataset, SIZE, cache=tmp_path / "before", workers=workers).images.any()
    photo = tmp_path / "60_f.jpg"
    content, status = bytearray(photo.read_bytes()), photo.stat()
    content[-40] ^= 1
    photo.write_bytes(content)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        ValueError, match=r"are not: 60_f\.jpg \(.*60_f\.jpg has changed since the data set was l"
    ):
        open_store(dataset, SIZE, cache=tmp_path / "after", workers=workers)
    assert stores_in(tmp_path / "after") == []


def test_one_unreadable_image_is_named_alone(tmp_path):
    dataset = tiny.dataset_of(ImageFolder(tmp_path), ["gone.jpg"])
    with pytest.raises(
        ValueError, match=r"gone\.jpg \(expected the file .*gone\.jpg, found nothing there\); get them again"
    ):
        open_store(dataset, SIZE, cache=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "expected a size of at least 1 pixel, found 0"),
        ({"resize": "pad"}, "expected resize to be one of squash, crop, found 'pad'"),
        ({"workers": 0}, "expected at least 1 worker, found 0; 1 packs without processes"),
        (
            {"dataset": tiny.dataset_of(tiny.Drawn(), [])},
            "expected images to pack, found none in data set 'tiny'",
        ),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_store(**{"dataset": DRAWN, "size": SIZE, "cache": tmp_path, **arguments})


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="expected a split of train, found 'dev'"):
        open_store(DRAWN, SIZE, cache=tmp_path).rows("dev")


def test_progress_bar_only_where_asked_or_on_a_terminal(tmp_path, capsys):
    open_store(DRAWN, SIZE, cache=tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    open_store(DRAWN, SIZE, cache=tmp_path / "b", progress=True)
    assert "packing tiny" in capsys.readouterr().err


def test_workers_start_without_torch():
    code = "import sys, mmlib.data.store, mmlib.data.folders; print('torch' in sys.modules)"
    assert finish(python("-c", code))[0] == "False\n"
