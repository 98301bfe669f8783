"""Shards as a data set: what it holds, what it says of itself, its leak guard, and its order."""

import json
import os
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
from tiny_shards import SIZE, config_of, encoded, picture, sample, write_numbered, write_tar

from mmlib import files
from mmlib.config import AugmentConfig
from mmlib.data import build_tokenizer, load_dataset, open_store, shard_index, shards
from mmlib.data.batches import WINDOW, PairSource, SplitTensors, window_order
from mmlib.data.decoding import decode_image, resize_image
from mmlib.data.shard_files import Place, Tar
from mmlib.data.shard_index import Sample
from mmlib.data.shards import load_shards
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
        match=r"train_shards: expected at most 1% broken samples, found 2 of 101: one\.tar: bad \(no image,"
        r" or one that cannot be decoded\); two\.tar: bad \(no caption\); get these shards again",
    ):
        train_of(*good, one, two, val=val)


def test_a_damaged_shard_counts_as_if_it_were_as_long_as_the_others(tmp_path, val, monkeypatch):
    tars = write_numbered(tmp_path, [6, 6, 6])
    open(tars[0], "wb").close()
    with pytest.raises(
        ValueError, match=r"found 6 of 18: .*00000\.tar \(it is no whole tar file: empty file\)"
    ):
        train_of(*tars, val=val)
    monkeypatch.setattr(shards, "MOST_BROKEN", 0.5)
    dataset = train_of(*tars, val=val)
    assert len(dataset.splits["train"].images) == 12
    assert "0 broken samples and the rest of 1 damaged shards: " in dataset.notes[0]


def test_shards_without_one_usable_sample(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"val_shards: expected samples of an image and a caption, found none in 1 shards \(w\.tar: "
        r"mute \(no caption\); 1 files that belong to no sample: mute\.bin \(a file of another kind\)\)",
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


def test_thousands_of_images_of_one_name_are_named_in_one_go(tmp_path):
    """Each by its key, without a search through all names that are taken."""
    asked = Counter()

    class Taken(dict):
        def __contains__(self, name):
            asked[name] += 1
            return super().__contains__(name)

    tar = Tar(Place("/d/0.tar"), "0" * 64, tmp_path)
    taken = Taken()
    for number in range(2000):
        one = Sample(f"{number}", "jpg", 0, 0, "", 0, [], "dog", None, None)
        taken[shards._free_name(one, tar, taken)] = None
    assert list(taken)[:3] == ["dog", "0/dog", "0/2/dog"]
    assert sum(asked.values()) < 3 * 2000


def test_images_of_one_name_are_told_apart(tmp_path):
    tars = [write_tar(tmp_path / f"{name}/0.tar", [("k", sample(n)[1])]) for n, name in enumerate("cdef")]
    dataset = val_of(*tars)
    images = dataset.splits["val"].images
    assert images == ("k.jpg", "0/k.jpg", "0/k/k.jpg", "0-2/k/k.jpg")
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
    taken = shard_index.read_tar
    monkeypatch.setattr(shard_index, "read_tar", lambda *given: read.append(1) or taken(*given))
    first = val_of(shard)
    os.utime(shard)
    assert val_of(shard).identity == first.identity
    assert len(read) == 1
    (index,) = cache.glob("shards/*.json")
    index.write_text("no index")
    assert val_of(shard).identity == first.identity
    assert len(read) == 2


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
    taken = shard_index.read_tar
    monkeypatch.setattr(shard_index, "read_tar", lambda *given: read.append(1) or taken(*given))

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
    with pytest.raises(FileNotFoundError, match=r"expected one of 1 images of shards, found '\\x1b'"):
        dataset.source.load("\x1b")


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
