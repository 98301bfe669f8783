"""Shards as a data set: what they hold and say, their leak guard, their order; patterns; and writing them."""

import hashlib
import json
import os
import tarfile
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageOps
from tiny_shards import (
    SIZE,
    config_of,
    dataset_of,
    encoded,
    picture,
    sample,
    write_numbered,
    write_tar,
)  # fmt: skip

from mmlib import files
from mmlib.config import AugmentConfig
from mmlib.data import build_tokenizer, load_dataset, open_store, shard_files, shards
from mmlib.data.batches import WINDOW, PairSource, SplitTensors, window_order
from mmlib.data.dataset import ImageFolder
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.shapes import load_shapes
from mmlib.data.shard_files import shard_name
from mmlib.data.shards import find_shards, load_shards, write_shards
from mmlib.training.processes import share


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def tolerant(monkeypatch):
    """A half may be broken, so that a test needs not hundreds of samples."""
    monkeypatch.setattr(shards, "MOST_BROKEN", 0.5)


@pytest.fixture
def val(tmp_path):
    return str(write_tar(tmp_path / "val.tar", [sample(900), sample(901)]))


def train_of(*tars, val=(), **changes):
    """The data set of training shards as a training loads it."""
    return load_dataset(config_of(tars, val_shards=[val] if val else ["x"], **changes))


def val_of(*tars):
    return load_shards(config_of(["x"], val_shards=[str(tar) for tar in tars]).model_copy(update=ONLY_VAL))


ONLY_VAL = {"train_shards": []}
BAD = {"jpg": b"no image", "txt": b"a"}
JPEG = encoded(picture(0), "JPEG")


def of_url(number: int, caption: str, url: str, **options) -> dict[str, bytes]:
    """img2dataset's files of a sample."""
    facts = json.dumps({"caption": caption, "url": url}).encode()
    return {"jpg": encoded(picture(number), "JPEG", **options), "json": facts, "txt": caption.encode()}


# --- what is left out, and what is joined


@pytest.mark.usefixtures("tolerant")
def test_what_is_left_out_is_counted_and_named_in_what_a_terminal_can_show(tmp_path):
    samples = [sample(0), ("bad\x1b[2J", BAD), sample(2), ("mute", {"jpg": JPEG, "cls": b"1"})]
    shard = write_tar(tmp_path / "v.tar", samples)
    for _ in range(2):  # read, then from the cache
        dataset = val_of(shard)
        assert dataset.splits["val"].images == ("v-000000000.jpg", "v-000000002.jpg")
        assert dataset.notes == (
            "Left out of val: 2 broken samples: v.tar: bad\\x1b[2J (no image, or one that cannot be decoded);"
            " v.tar: mute (no caption).",
            "In val's tar files, 1 files that belong to no sample: mute.cls (a file of another kind).",
        )


def test_more_than_a_hundredth_broken_is_an_error(tmp_path, val):
    good = write_numbered(tmp_path, [99])
    one = write_tar(tmp_path / "one.tar", [("bad", BAD)])
    assert len(train_of(*good, one, val=val).splits["train"].images) == 99
    two = write_tar(tmp_path / "two.tar", [("bad", {"jpg": JPEG})])
    with pytest.raises(
        ValueError,
        match=r"train_shards: expected samples of an image .*, at most 1% of them broken, found 99 that can"
        r" be used, 2 broken ones and 0 damaged tar files of 3 \(one\.tar: bad \(no image, or one that cannot"
        r" be decoded\); two\.tar: bad \(no caption\); .*\); get these shards again",
    ):
        train_of(*good, one, two, val=val)


def test_a_damaged_shard_is_refused_unless_it_is_one_of_a_hundred(tmp_path, val, monkeypatch):
    tars = write_numbered(tmp_path, [6, 6, 6])
    open(tars[0], "wb").close()
    with pytest.raises(
        ValueError, match=r"found 12 .* 1 damaged tar files of 3 \(.*00000\.tar \(it is no whole tar file"
    ):
        train_of(*tars, val=val)
    monkeypatch.setattr(shards, "MOST_BROKEN", 0.5)
    dataset = train_of(*tars, val=val)
    assert len(dataset.splits["train"].images) == 12
    assert "0 broken samples and the rest of 1 damaged shards: " in dataset.notes[0]


def test_shards_without_one_usable_sample(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"val_shards: expected samples of .*, found 0 that can be used, 1 broken ones .* \(w\.tar: mute"
        r" \(no caption\); 1 files that belong to no sample: mute\.bin \(a file of another kind\)\)",
    ):
        val_of(write_tar(tmp_path / "w.tar", [("mute", {"jpg": JPEG, "bin": b"1"})]))
    with pytest.raises(ValueError, match="expected train_shards, val_shards or test_shards, found none"):
        load_shards(config_of(["x"]).model_copy(update={"train_shards": [], "val_shards": []}))


def test_samples_of_one_image_are_joined(tmp_path):
    """Ten images with five one-caption samples each, in two shards, are ten images with fifty captions."""
    samples = [
        (f"{5 * n + c:09d}", of_url(n, f"caption {c} of {n}", f"https://host/{n}.jpg"))
        for c in range(5)
        for n in range(10)
    ]
    tars = [write_tar(tmp_path / f"{k}.tar", samples[25 * k : 25 * k + 25]) for k in range(2)]
    dataset = val_of(*tars)
    split = dataset.splits["val"]
    assert len(split.images) == 10
    for n in range(10):
        assert [split.captions[m] for m in np.flatnonzero(split.image_of_caption_M == n)] == [
            f"caption {c} of {n}" for c in range(5)
        ]
    assert dataset.notes == (
        "Joined 40 samples of val to images that other samples show (same bytes, or same name in a data set):"
        " 10 images.",
    )


def test_images_that_a_data_set_names_are_as_many_as_their_names(tmp_path):
    """Two photos of Flickr8k have the same bytes; a data set comes back as it was written."""
    twins = [sample(0, 2, name=name, dataset="d")[1] for name in ("a.jpg", "b.jpg", "a.jpg")]
    split = val_of(write_tar(tmp_path / "v.tar", zip("012", twins))).splits["val"]
    assert split.images == ("a.jpg", "b.jpg")
    assert split.image_of_caption_M.tolist() == [0, 0, 1, 1]  # the second a.jpg is the first again


def test_a_shard_that_is_named_twice_is_read_once(tmp_path):
    tars = [write_tar(tmp_path / name / "0.tar", [sample(0), sample(1)]) for name in "ab"]
    dataset = val_of(*tars)
    assert len(dataset.splits["val"].captions) == 2
    assert dataset.notes == ("Read once: 1 shards of val with the same bytes as another one.",)


def test_of_tars_that_overlap_each_sample_counts_once(tmp_path):
    """Equal captions under another key may be two people's: they count."""
    first = write_tar(tmp_path / "0.tar", [sample(0, 2), sample(1)])
    other = write_tar(tmp_path / "1.tar", [sample(1), sample(2), sample(0, 2), ("another", sample(2)[1])])
    dataset = val_of(first, other)
    assert dataset.splits["val"].image_of_caption_M.tolist() == [0, 0, 1, 2, 2]
    assert dataset.notes == (
        "Left out of val: 2 samples that repeat the image and captions of an earlier one.",
        "Joined 1 samples of val to images that other samples show (same bytes, or same name in a data set):"
        " 3 images.",
    )


def test_images_of_one_name_are_told_apart(tmp_path):
    tars = [write_tar(tmp_path / f"{name}/0.tar", [("k", sample(n)[1])]) for n, name in enumerate("cdef")]
    dataset = val_of(*tars)
    images = dataset.splits["val"].images
    assert images == ("k.jpg", "0/k.jpg", "0-2/k.jpg", "0-3/k.jpg")
    assert [dataset.source.read(image) for image in images] == [sample(n)[1]["jpg"] for n in range(4)]


# --- identity: what was read, and whether it is still that


def replace_keeping_times(path, content: bytes) -> None:
    status = os.stat(path)
    assert len(content) == status.st_size
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_other_content_of_equal_name_size_time_and_counts_is_another_data_set(tmp_path, val):
    (tar,) = write_numbered(tmp_path, [3])
    before = train_of(tar, val=val)
    with open(tar, "rb") as file:
        content = file.read()
    replace_keeping_times(tar, content.replace(b"sample 1", b"simple 1"))
    after = train_of(tar, val=val)
    assert after.splits["train"].captions[1] == "simple 1 caption 0"
    assert after.fingerprint != before.fingerprint
    assert after.held_out_fingerprint == before.held_out_fingerprint
    replace_keeping_times(tar, content)
    assert train_of(tar, val=val).identity == before.identity


def test_the_fingerprint_is_that_of_what_is_seen(tmp_path, val):
    tars = write_numbered(tmp_path, [3, 3])
    whole = train_of(*tars, val=val)
    copies = write_numbered(tmp_path / "elsewhere", [3, 3])
    assert train_of(*copies, val=val).identity == whole.identity
    assert whole.identity["splits"]["train"] == {"images": 6, "captions": 6}
    assert len({train_of(*some, val=val).fingerprint for some in (tars, tars[:1], tars[::-1])}) == 3


def test_a_shard_is_read_once_and_after_a_touch_only_hashed(tmp_path, monkeypatch, cache):
    shard = write_tar(tmp_path / "v.tar", [sample(0)])
    read = []
    taken = shard_files.read_tar
    monkeypatch.setattr(shard_files, "read_tar", lambda *given: read.append(1) or taken(*given))
    first = val_of(shard)
    os.utime(shard)
    assert val_of(shard).identity == first.identity
    assert len(read) == 1
    (index,) = cache.glob("shards/*.json")
    index.write_text("no index")
    with pytest.raises(ValueError, match=r"shards/\w+-\d\.json is damaged"):
        val_of(shard)


def test_a_second_change_in_one_tick_of_the_clock_is_seen(tmp_path, monkeypatch):
    """Network disks and FAT keep times of a second or two: the shard's stamp is then the same."""
    one, other = ([(key, sample(0)[1] | {"txt": text})] for key, text in (("k", b"a cat"), ("k", b"a dog")))
    shard = write_tar(tmp_path / "v.tar", one)
    status = os.stat(shard)
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: status if path == str(shard) else stat(path, **how))
    assert val_of(shard).splits["val"].captions == ("a cat",)
    write_tar(shard, other)
    assert val_of(shard).splits["val"].captions == ("a dog",)


def test_of_several_that_want_one_shard_at_once_one_reads_it(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "v.tar", [sample(n) for n in range(4)])
    reading, read = threading.Barrier(4), []
    taken = shard_files.read_tar
    monkeypatch.setattr(shard_files, "read_tar", lambda *given: read.append(1) or taken(*given))

    def load(_):
        reading.wait(30)
        return val_of(shard).identity

    with ThreadPoolExecutor(4) as pool:
        identities = list(pool.map(load, range(4)))
    assert len(read) == 1
    assert identities == [identities[0]] * 4


def test_an_image_that_was_changed_after_it_was_indexed_is_refused(tmp_path):
    shard = write_tar(tmp_path / "v.tar", [sample(0)])
    dataset = val_of(shard)
    shard.write_bytes(shard.read_bytes().replace(JPEG[-20:-10], bytes(10)))
    with open(shard, "r+b") as file:
        file.seek(700)
        file.write(b"x")
    with pytest.raises(
        ValueError, match=r"v\.tar has changed: expected the bytes of v-000000000\.jpg as they"
    ):
        dataset.source.load("v-000000000.jpg")


# --- the leak guard


def test_what_is_held_out_is_left_out_and_counted(tmp_path):
    def of(key, content, **facts):
        return key, {"jpg": content, "json": json.dumps({"caption": "a caption", **facts}).encode()}

    photo = encoded(picture(1, 80), "JPEG", quality=95)
    held_out = write_tar(
        tmp_path / "v.tar",
        [
            of("0", encoded(picture(0, 80), "JPEG", quality=95), name="3333333333_0123456789.jpg"),
            of("1", photo),
            of("2", encoded(picture(2, 80), "JPEG", quality=95)),
        ],
    )
    train = [
        of("0", encoded(picture(10))),
        of("1", encoded(picture(11)), url="https://live.staticflickr.com/7/3333333333_0123456789.jpg"),
        of("2", encoded(picture(12)), name="3333333333_0123456789.jpg"),
        of("3", photo),
        of("4", encoded(ImageOps.mirror(picture(2, 80)), "JPEG", quality=60)),
        of("5", encoded(picture(13)), url="https://elsewhere.org/3333333333_0123456789.jpg"),  # no id
        of("3333333333", encoded(picture(14))),  # img2dataset's number
        of("7", encoded(picture(15))),
    ]
    shard = write_tar(tmp_path / "s.tar", train)
    dataset = train_of(shard, val=str(held_out))
    assert dataset.splits["train"].images == ("s-0.jpg", "s-5.jpg", "s-3333333333.jpg", "s-7.jpg")
    assert dataset.splits["train"].shard_of_image_N.tolist() == [0] * 4
    assert dataset.notes == (
        "Leak guard: left out 4 of 8 training images and 4 captions that are held out in shards val"
        " (2 by id, 1 by bytes, 1 by look).",
    )
    kept = train_of(shard, val=str(held_out), leaks="keep")
    assert len(kept.splits["train"].images) == 8
    assert kept.fingerprint != dataset.fingerprint
    assert kept.held_out_fingerprint == dataset.held_out_fingerprint


# --- the order of an epoch


SIZES = st.lists(st.integers(0, 6), min_size=1, max_size=3 * WINDOW)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 100))
def test_a_window_mixes_the_captions_of_a_few_shards_and_an_epoch_has_each_once(sizes, seed, epoch):
    shard_M = np.repeat(np.arange(len(sizes)), sizes)
    windows = list(window_order(shard_M, seed, epoch))
    assert sorted(np.concatenate([[], *windows]).tolist()) == list(range(len(shard_M)))
    filled = sum(size > 0 for size in sizes)
    assert [len(set(shard_M[window])) for window in windows[:-1]] == [WINDOW] * (len(windows) - 1)
    assert sum(len(set(shard_M[window])) for window in windows) == filled
    for one, other in zip(windows, window_order(shard_M, seed, epoch)):
        assert np.array_equal(one, other)


def test_epochs_and_seeds_have_orders_of_their_own():
    shard_M = np.repeat(np.arange(3 * WINDOW), 20)
    orders = [np.concatenate(list(window_order(shard_M, *key))) for key in ((0, 1), (0, 2), (1, 1))]
    assert len({order.tobytes() for order in orders}) == 3
    first = next(window_order(shard_M, 0, 1))
    assert np.abs(np.diff(first)).mean() > WINDOW * 20 / 4  # captions of a shard do not stay together


@pytest.fixture
def tensors(tmp_path, val):
    """25 samples in 20 shards, one to three captions each, as a training reads them."""
    tars = write_numbered(tmp_path, [1, 2] * 8 + [1, 0, 0, 0], lambda number: 1 + number % 3)
    dataset = train_of(*tars, val=val)
    store = open_store(dataset, SIZE)
    tokenizer = build_tokenizer("word", dataset.splits["train"].captions)
    return SplitTensors(dataset, store, tokenizer, "train", 8, 1, torch.device("cpu"))


def content_of(batches):
    return [
        (b.image_id_R.tolist(), b.tokens.tolist(), b.image.numpy().tobytes(), b.rows, b.size) for b in batches
    ]


@pytest.mark.parametrize("which", ["all", "one"])
def test_started_anywhere_an_epoch_is_the_rest_of_the_whole(tensors, which):
    source = PairSource(tensors, 4, which, 3, AugmentConfig(flip=True))
    whole = content_of(source.batches(2, 0))
    seen = Counter(image for batch in whole for image in batch[0])
    assert seen == {n: 1 + n % 3 if which == "all" else 1 for n in range(25)}
    for start in range(len(whole) + 1):
        assert content_of(source.batches(2, start)) == whole[start:]


def test_the_order_does_not_depend_on_the_number_of_processes(tensors):
    def ids(rank, processes):
        source = PairSource(tensors, 6, "all", 3, AugmentConfig(), lambda n: share(n, rank, processes))
        return [batch.image_id_R[: batch.rows].tolist() for batch in source.batches(1, 0)]

    together = [list(chain(*parts)) for parts in zip(*(ids(rank, 3) for rank in range(3)))]
    assert together == ids(0, 1)


def test_memory_is_that_of_a_few_batches_not_of_the_data(tmp_path, val):
    side = 96
    dataset = train_of(*write_numbered(tmp_path, [60] * 5), val=val, image_size=side)
    store = open_store(dataset, side)
    tokenizer = build_tokenizer("word", dataset.splits["train"].captions)
    data = SplitTensors(dataset, store, tokenizer, "train", 8, 1, torch.device("cpu"))
    source = PairSource(data, 4, "all", 0, AugmentConfig())

    def peak(epoch):
        tracemalloc.start()
        try:
            assert sum(batch.rows for batch in source.batches(epoch, 0)) == 300
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported at the first use
    image = 3 * side**2 * (1 + 4)  # as uint8, and as float32 that is normalised
    assert peak(2) < 60 * image  # of 300 images: four batches of 4, and what threads decode


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pixels_are_those_that_the_packed_store_would_have(tmp_path, val, resize):
    content = encoded(picture(1).resize((60, 30)), "JPEG")
    dataset = train_of(write_tar(tmp_path / "a.tar", [("k", {"jpg": content, "txt": b"a"})]), val=val)
    store = open_store(dataset, SIZE, resize)
    assert len(store.array) == 2  # of val alone: training images are not packed
    tokenizer = build_tokenizer("word", ["a"])
    data = SplitTensors(dataset, store, tokenizer, "train", 8, 1, torch.device("cpu"))
    (pixels_HWC,) = data.pixel_batch(torch.tensor([0])).numpy()
    assert np.array_equal(pixels_HWC, resize_image(decode_image(content, "k"), SIZE, resize))
    assert data.images_at_hand == 1


# --- patterns


def test_patterns_name_shards_in_their_order_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    for name in ("a-000.tar", "a-001.tar", "b.tar", "c [1].tar"):
        (tmp_path / name).touch()
    found = find_shards(
        ["b.tar", "a-{000..001}.tar", "a-*.tar", f"file://{tmp_path}/c [1].tar", "c [1].tar"], "x"
    )
    assert list(map(shard_name, found)) == ["b.tar", "a-000.tar", "a-001.tar", "c [1].tar"]
    urls = ["http://host/d/{08..10}.tar?key=a/b", "HTTPS://host/{e,f}-{1..2}.tar"]
    assert [(url, shard_name(url)) for url in find_shards(urls, "x")] == [
        *((f"http://host/d/{n}.tar?key=a/b", f"{n}.tar") for n in ("08", "09", "10")),
        *((f"HTTPS://host/{n}.tar", f"{n}.tar") for n in ("e-1", "e-2", "f-1", "f-2")),
    ]


@pytest.mark.parametrize("folder", ["photos [2024]", "set {1}", "a*b", "what?"])
def test_a_folder_that_is_there_by_name_is_no_pattern(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(files, "ROOT", tmp_path / folder)
    (tmp_path / folder / folder).mkdir(parents=True)
    for shard in ("0.tar", "1.tar"):
        (tmp_path / folder / folder / shard).touch()
    inside, whole = folder, str(tmp_path / folder / folder)
    for pattern in ("*.tar", "{0..1}.tar", "[01].tar"):
        for start in (inside, whole, f"file://{whole}"):
            found = find_shards([f"{start}/{pattern}"], "x")
            assert list(map(shard_name, found)) == ["0.tar", "1.tar"]
    assert list(map(shard_name, find_shards([f"{whole}/1.tar"], "x"))) == ["1.tar"]


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        (
            "gone-*.tar",
            FileNotFoundError,
            r"x: 'gone-\*\.tar': expected tar files, .* that match 'gone-\*\.tar' in",
        ),
        ("a-{000..001}.tar", FileNotFoundError, r"x: 'a-\{000\.\.001\}\.tar': .* that match 'a-001\.tar' in"),
        (".", FileNotFoundError, r"as in folder/train-\*\.tar"),
        (
            "s3://bucket/a.tar",
            FileNotFoundError,
            r"x: 's3://bucket/a\.tar': .*or a URL of http, https or",
        ),
        ("pipe:cat a.tar", FileNotFoundError, "or a URL of http, https or file, found none"),
        ("http:///a.tar", ValueError, "x: 'http:///a.tar': expected an address with a host"),
        ("http://[::1/a.tar", ValueError, "Invalid IPv6"),
        ("a-{0..1.tar", ValueError, r"x: 'a-\{0\.\.1\.tar': expected balanced braces, not nested"),
        ("{a,{b,c}}.tar", ValueError, "expected balanced braces, not nested"),
        ("{0..999999999999}.tar", ValueError, "expected 1 to 1,000,000 shards, found 1,000,000,000,000"),
        ("{0..9999}/{0..9999}.tar", ValueError, "expected 1 to 1,000,000 shards, found 100,000,000"),
        ("a\0.tar", ValueError, r"x: 'a\\x00\.tar': .*null byte"),
        ("{5..3}.tar", ValueError, "expected 1 to 1,000,000 shards, found 0"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(tmp_path, monkeypatch, pattern, kind, message):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "a-000.tar").touch()
    with pytest.raises(kind, match=message):
        find_shards(["a-000.tar", pattern], "x")


# --- writing


SPLITS = {
    "train": [("3.jpg", ["one", " two \n"]), ("1.jpg", ["", "un café à 北京"]), ("2.jpg", ["three"])],
    "val": [("5.jpg", ["four", "four"])],
    "test": [("4.jpg", ["five"]), ("6.jpg", ["six"])],
}


@pytest.fixture
def on_disk(tmp_path):
    """The same splits with JPEG files behind them."""
    for images in SPLITS.values():
        for name, _ in images:
            number = int(name[0])
            (tmp_path / name).write_bytes(encoded(picture(number), "JPEG", quality=70 + number))
    return dataset_of(ImageFolder(tmp_path), **SPLITS)


def files_in(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def load_back(folder):
    return load_shards(
        config_of(
            [folder / "train-*.tar"],
            val_shards=[str(folder / "val-*.tar")],
            test_shards=[str(folder / "test-*.tar")],
        )
    )


def test_every_file_of_a_sample_is_there(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out", samples_per_shard=2)
    assert sorted(os.listdir(tmp_path / "out")) == [
        "shards.json", "test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
    files = files_in(tmp_path / "out" / "train-000000.tar")
    assert sorted(files) == [f"{n:09d}.{suffix}" for n in (0, 1) for suffix in ("jpg", "json", "txt")]
    assert files["000000000.jpg"] == (tmp_path / "3.jpg").read_bytes()
    assert json.loads(files["000000000.json"]) == {
        "name": "3.jpg", "captions": ["one", " two \n"], "dataset": "tiny", "fingerprint": "0123456789abcdef",
    }  # fmt: skip
    assert files["000000000.txt"] == b"one"
    assert files["000000001.txt"] == b""
    assert next(iter(files_in(tmp_path / "out" / "train-000001.tar"))) == "000000002.jpg"


def test_the_same_data_give_the_same_bytes_and_the_manifest_says_which(on_disk, tmp_path):
    manifests = [write_shards(on_disk, tmp_path / name, samples_per_shard=2) for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert json.loads((tmp_path / "a" / "shards.json").read_text()) == manifests[0]
    assert manifests[0]["dataset"] == on_disk.identity
    tar = (tmp_path / "a" / "train-000000.tar").read_bytes()
    assert manifests[0]["shards"]["train-000000.tar"] == {
        "split": "train", "samples": 2, "captions": 4, "bytes": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
    }  # fmt: skip
    with tarfile.open(tmp_path / "a" / "val-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}


def test_all_splits_come_back_as_they_were(tmp_path):
    shapes = load_shapes(train=4, val=3, test=5, size=SIZE)
    write_shards(shapes, tmp_path / "out", samples_per_shard=3)
    assert "000000000.png" in files_in(tmp_path / "out" / "val-000000.tar")  # without loss
    back = load_back(tmp_path / "out")
    assert (back.name, list(back.splits), back.notes) == ("shapes", ["train", "val", "test"], ())
    for name, split in back.splits.items():
        assert split.images == shapes.splits[name].images
        assert split.captions == shapes.splits[name].captions
        assert np.array_equal(split.image_of_caption_M, shapes.splits[name].image_of_caption_M)
        for image in split.images:
            assert np.array_equal(np.asarray(back.source.load(image)), shapes.source.load(image))


def test_shards_can_be_written_again_from_shards(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out")
    write_shards(load_back(tmp_path / "out"), tmp_path / "again")
    again = load_back(tmp_path / "again")
    assert again.splits["val"].captions == ("four", "four")
    assert again.splits["train"].captions == ("one", " two \n", "", "un café à 北京", "three")
    assert again.source.read("5.jpg") == (tmp_path / "5.jpg").read_bytes()
    assert again.identity == load_back(tmp_path / "out").identity


# --- interruptions and errors


def test_an_interrupted_writing_leaves_no_half_shard_and_goes_on(on_disk, tmp_path):
    out = tmp_path / "out"
    expected = write_shards(on_disk, tmp_path / "whole", samples_per_shard=1)
    gone = tmp_path / "1.jpg"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        write_shards(on_disk, out, samples_per_shard=1)
    assert os.listdir(out) == ["train-000000.tar"]
    gone.write_bytes(content)
    assert write_shards(on_disk, out, samples_per_shard=1) == expected
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_finished_or_foreign_shards_are_not_touched(on_disk, tmp_path):
    write_shards(on_disk, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"found shards\.json \(1 in all\) in .*out; choose another"):
        write_shards(on_disk, tmp_path / "out")
    (tmp_path / "out" / "shards.json").unlink()
    (tmp_path / "out" / "train-000001.tar").touch()
    with pytest.raises(FileExistsError, match=r"or other shards, found train-000001\.tar \(1 in all\)"):
        write_shards(on_disk, tmp_path / "out")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected images to write, found none in data set 'tiny'"):
        write_shards(dataset_of(train=[]), tmp_path)
    silent = dataset_of(train=[("1.jpg", ["a"]), ("2.jpg", [])])
    with pytest.raises(ValueError, match=r"found none of '2\.jpg' in train \(1 in all\)"):
        write_shards(silent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
