"""Flickr30k: each layout, each message."""

import re

import pytest
import tiny_sets as tiny

from mmlib import files
from mmlib.data.photos import SIZES as SIZES_OF
from mmlib.data.photos import load_flickr30k


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def karpathy(tmp_path):
    return tiny.write_flickr30k_karpathy(tiny.write_flickr30k_images(tmp_path))


@pytest.fixture
def original(tmp_path):
    return tiny.write_lists(tiny.write_token_file(tiny.write_flickr30k_images(tmp_path)))


def assert_tiny(dataset, said_of=tiny.said_of):
    assert dataset.name == "flickr30k"
    assert {name: split.images for name, split in dataset.splits.items()} == tiny.FLICKR30K
    for split in dataset.splits.values():
        assert split.captions == tuple(text for image in split.images for text in said_of(image))
        assert split.image_of_caption_M.tolist() == [n for n in range(len(split.images)) for _ in range(2)]
    assert dataset.source.load("7000000007.jpg").size == (120, 90)
    assert not dataset.redistributable


def stripped(name):
    return [text.strip() for text in tiny.said_of(name)]


SIZES = (
    "Splits have train 3, val 2, test 1 images; Karpathy's have train 29,000, val 1,014, test 1,000: figures"
    " on other splits are not comparable with published ones."
)


def test_karpathys_layout(karpathy):
    dataset = load_flickr30k(karpathy)
    assert_tiny(dataset)
    assert dataset.notes == (SIZES, "Left out: 1 image in no split.")


def test_the_original_layout(original):
    dataset = load_flickr30k(original)
    assert_tiny(dataset, stripped)
    assert dataset.notes == (
        SIZES, "Left out: 1 image in no split.", "Left out: 2 captions of 1 image in no split."
    )  # fmt: skip


def test_the_usual_sizes_are_not_noted(karpathy, monkeypatch):
    monkeypatch.setitem(SIZES_OF, "flickr30k", ("Karpathy's", {"train": 3, "val": 2, "test": 1}))
    assert load_flickr30k(karpathy).notes == ("Left out: 1 image in no split.",)


@pytest.mark.parametrize(
    "folder", ["flickr30k_images", "images", "photos", ".", "flickr30k_images/flickr30k_images"]
)
def test_images_in_any_usual_folder(tmp_path, folder):
    assert_tiny(load_flickr30k(tiny.write_flickr30k_karpathy(tiny.write_flickr30k_images(tmp_path, folder))))


@pytest.mark.parametrize(
    "names",
    [
        ("flickr30k_train.txt", "flickr30k_val.txt", "flickr30k_test.txt"),
        ("train_images.txt", "valid_images.txt", "test_images.txt"),
        ("Flickr_30k.trainImages.txt", "Flickr_30k.devImages.txt", "Flickr_30k.testImages.txt"),
        ("splits/Training.TXT", "splits/validation.txt", "splits/Test_ids.txt"),
        ("karpathy-train.txt", "karpathy-val.txt", "karpathy-test.txt"),
    ],
)
def test_lists_under_any_usual_name(tmp_path, names):
    root = tiny.write_lists(tiny.write_token_file(tiny.write_flickr30k_images(tmp_path)), names)
    (root / "README.txt").write_text("no list")
    (root / "constrained.txt").write_text("no list")
    assert_tiny(load_flickr30k(root), stripped)


def test_the_original_captions_with_karpathys_splits(tmp_path):
    root = tiny.write_token_file(tiny.write_flickr30k_karpathy(tiny.write_flickr30k_images(tmp_path)))
    assert_tiny(load_flickr30k(root), stripped)


def test_lists_go_before_karpathys_splits(karpathy):
    tiny.write_lists(karpathy)
    (karpathy / "val.txt").write_text("6000000006\n6000000006")
    assert load_flickr30k(karpathy).splits["val"].images == ("6000000006.jpg",)


def test_the_fingerprint_is_that_of_the_data(karpathy, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    tiny.write_flickr30k_karpathy(tiny.write_flickr30k_images(other, "images"))
    fingerprint = load_flickr30k(karpathy).fingerprint
    assert load_flickr30k(other).fingerprint == fingerprint
    tiny.save(other / "images" / "7000000007.jpg", 99)
    assert load_flickr30k(other).fingerprint != fingerprint


def assert_refused(root, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_flickr30k(root)


def test_no_folder(tmp_path):
    message = f"expected the Flickr30k folder {tmp_path / 'x'}, found none; unpack Flickr30k there"
    assert_refused(tmp_path / "x", FileNotFoundError, message)


def test_no_captions(tmp_path):
    tiny.write_lists(tiny.write_flickr30k_images(tmp_path))
    message = "results_20130124.token or dataset_flickr30k.json (Karpathy, with the splits), found none"
    assert_refused(tmp_path, FileNotFoundError, message)


def test_no_splits(original):
    for name in ("train.txt", "val.txt", "test.txt"):
        (original / name).unlink()
    message = (
        f"expected lists of the images of each split in {original} or a folder of it (as train.txt), found"
        " none of train, val, test; put them there, or dataset_flickr30k.json in place of all three"
    )
    assert_refused(original, FileNotFoundError, message)


def test_a_missing_list_is_not_filled_up_from_karpathy(karpathy):
    tiny.write_lists(karpathy)
    (karpathy / "test.txt").unlink()
    assert_refused(karpathy, FileNotFoundError, "(as train.txt), found none of test; put")


def test_two_different_lists_of_one_split(original):
    (original / "flickr30k_val.txt").write_text("1000000001")
    assert_refused(original, ValueError, "expected one flickr30k_val.txt, found")
    (original / "flickr30k_val.txt").write_bytes((original / "val.txt").read_bytes())
    assert_tiny(load_flickr30k(original), stripped)


def test_an_image_that_is_missing(karpathy):
    (karpathy / "flickr30k-images" / "5000000005.jpg").unlink()
    assert_refused(karpathy, FileNotFoundError, "found no 5000000005.jpg; complete the folder")


def test_an_image_in_two_splits(original):
    (original / "val.txt").write_text("7000000007")
    assert_refused(original, ValueError, "found 7000000007.jpg in val and test; get the split files again")


def test_an_image_without_captions(original):
    (original / "results_20130124.token").write_text("7000000007.jpg#0\tone .")
    assert_refused(original, ValueError, "results_20130124.token, found none of 3000000004.jpg and 4 more")


def test_lists_that_systems_keep_are_no_second_ones(original):
    (original / "@eaDir").mkdir()
    (original / "@eaDir" / "train.txt").write_text("other")
    assert_tiny(load_flickr30k(original), stripped)
