"""Flickr8k: each layout, each oddity.  Bad input is in test_flickr8k_errors.py."""

import json
import os

import pytest
import tiny_flickr as tiny
from PIL import Image

from mmlib import files
from mmlib.data.photos import load_flickr8k
from mmlib.data.store import open_store


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))


def assert_tiny(dataset):
    """The data set holds exactly what tiny_flickr wrote."""
    texts = tiny.captions()
    assert dataset.name == "flickr8k"
    assert list(dataset.splits) == ["train", "val", "test"]
    for name, split in dataset.splits.items():
        assert split.images == tiny.SPLITS[name]
        assert split.captions == tuple(text for image in split.images for text in texts[image])
        owners = [split.images[index] for index in split.image_of_caption_M]
        assert owners == [image for image in split.images for _ in texts[image]]
    assert dataset.source.load("40_d.jpg").size == (20, 30)


@pytest.mark.parametrize(
    "images",
    [
        "Flicker8k_Dataset",
        "Flickr8k_Dataset",
        "Images",
        "images",
        "my photos",
        ".",
        "Flicker8k_Dataset/Flicker8k_Dataset",
    ],
)
@pytest.mark.parametrize("text", [".", "Flickr8k_text"])
def test_original_layout(tmp_path, images, text):
    dataset = load_flickr8k(tiny.write_original(tmp_path, images, text))
    assert_tiny(dataset)
    assert dataset.notes == (
        tiny.EMPTY,
        "Left out: 1 image in no split.",
        "Left out: 1 caption of 1 image in no split.",
    )


def test_kaggle_layout_with_official_lists(tmp_path):
    tiny.write_split_files(tiny.write_kaggle(tmp_path))
    assert_tiny(load_flickr8k(tmp_path))


def test_kaggle_layout_with_karpathys_splits(tmp_path):
    tiny.write_karpathy_file(tiny.write_kaggle(tmp_path))
    assert_tiny(load_flickr8k(tmp_path))


def test_karpathy_layout(tmp_path):
    dataset = load_flickr8k(tiny.write_karpathy(tmp_path))
    assert_tiny(dataset)
    assert dataset.notes == (
        tiny.EMPTY,
        "Left out: 1 image in no split.",
    )


def test_karpathy_order_is_that_of_the_file(tmp_path):
    tiny.write_karpathy_file(tiny.write_karpathy(tmp_path), tiny.karpathy_entries()[::-1])
    assert load_flickr8k(tmp_path).splits["train"].images == tiny.SPLITS["train"][::-1]


def test_equal_data_have_equal_fingerprints_in_every_layout(tmp_path):
    roots = [tmp_path / name for name in ("original", "kaggle", "karpathy")]
    tiny.write_original(roots[0])
    tiny.write_split_files(tiny.write_kaggle(roots[1]))
    tiny.write_karpathy(roots[2])
    fingerprints = {load_flickr8k(root).fingerprint for root in roots}
    assert len(fingerprints) == 1
    (roots[2] / "images" / "40_d.jpg").write_bytes((roots[2] / "images" / "30_c.jpg").read_bytes())
    assert load_flickr8k(roots[2]).fingerprint not in fingerprints


def test_relative_root_is_read_from_the_repository_root(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    tiny.write_original(tmp_path / "data" / "flickr8k")
    assert_tiny(load_flickr8k("data/flickr8k"))


def test_windows_line_ends_and_byte_order_marks(tmp_path):
    tiny.write_original(tmp_path)
    tiny.write_token_file(tmp_path / "Flickr8k.token.txt", tiny.captions(), end="\r\n", mark="\ufeff")
    for split, name in tiny.SPLIT_FILES.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(tiny.SPLITS[split]).encode())
    assert_tiny(load_flickr8k(tmp_path))


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x0c", "\x1c", "\x85"])
def test_only_line_ends_end_a_caption(tmp_path, separator):
    tiny.write_original(tmp_path)
    texts = tiny.captions() | {"40_d.jpg": [f"one{separator}caption"]}
    tiny.write_token_file(tmp_path / "Flickr8k.token.txt", texts)
    assert load_flickr8k(tmp_path).splits["train"].captions[0] == f"one{separator}caption"


def test_csv_keeps_line_breaks_in_quotes_and_equal_captions(tmp_path):
    tiny.write_split_files(tiny.write_kaggle(tmp_path))
    said = ["two\nlines", "same .", "same ."]
    tiny.write_csv(tmp_path / "captions.txt", tiny.captions() | {"40_d.jpg": said})
    assert list(load_flickr8k(tmp_path).splits["train"].captions[:3]) == said


def test_captions_are_ordered_by_their_number(tmp_path):
    tiny.write_original(tmp_path)
    lines = (tmp_path / "Flickr8k.token.txt").read_text(encoding="utf-8").split("\n")
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines[::-1]), encoding="utf-8")
    assert_tiny(load_flickr8k(tmp_path))


def test_captions_of_an_image_that_does_not_exist_are_noted(tmp_path):
    tiny.write_original(tmp_path)
    ghost = {"2258277193_586949ec62.jpg.1": ["people waiting .", "two women ."]}
    tiny.write_token_file(tmp_path / "Flickr8k.token.txt", tiny.captions() | ghost)
    dataset = load_flickr8k(tmp_path)
    assert_tiny(dataset)
    assert dataset.notes[-1] == "Left out: 3 captions of 2 images in no split."


def test_repeated_lines_are_taken_once(tmp_path):
    tiny.write_original(tmp_path)
    for file in ("Flickr8k.token.txt", "Flickr_8k.trainImages.txt"):
        content = (tmp_path / file).read_text(encoding="utf-8")
        first = content.split("\n")[0]
        (tmp_path / file).write_text(f"{first}\n{content}", encoding="utf-8")
    assert_tiny(load_flickr8k(tmp_path))


def test_the_original_files_go_before_others(tmp_path):
    tiny.write_original(tmp_path)
    tiny.write_csv(tmp_path / "captions.txt", tiny.captions() | {"30_c.jpg": ["other"]})
    entries = tiny.karpathy_entries()
    entries[0]["split"] = "test"
    tiny.write_karpathy_file(tmp_path, entries)
    assert_tiny(load_flickr8k(tmp_path))


def test_other_image_folders_and_leftovers_of_systems_are_passed_over(tmp_path):
    tiny.write_original(tmp_path)
    for other in ("thumbs", "__MACOSX/Flicker8k_Dataset", ".trash"):
        tiny.write_images(tmp_path / other)
    for name in ("._40_d.jpg", "._50_e.jpg", "Thumbs.db", ".DS_Store"):
        (tmp_path / "Flicker8k_Dataset" / name).write_bytes(b"of a system")
    tiny.write_images(tmp_path / "Flicker8k_Dataset" / "@eaDir" / "40_d.jpg")
    os.symlink(tmp_path, tmp_path / "self")
    dataset = load_flickr8k(tmp_path)
    assert_tiny(dataset)
    assert dataset.source.folder == tmp_path / "Flicker8k_Dataset"
    assert dataset.notes[0] == "Skipped among the images, since they are none of the set: 5."


def test_equal_copies_of_a_text_file_are_one(tmp_path):
    tiny.write_original(tmp_path)
    tiny.write_original(tmp_path, text="Flickr8k_text")
    assert_tiny(load_flickr8k(tmp_path))


def test_an_image_replaced_by_one_of_equal_size_and_time_changes_the_fingerprint_and_the_pixels(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("mmlib.data.dataset.SETTLED_NS", 0)
    before = load_flickr8k(tiny.write_original(tmp_path))
    packed = open_store(before, 8)
    photo = tmp_path / "Flicker8k_Dataset" / "40_d.jpg"
    status = photo.stat()
    with Image.open(photo) as image:
        image.rotate(180).save(photo, quality=20)
    photo.write_bytes(photo.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    while photo.stat().st_ctime_ns == status.st_ctime_ns:  # within one tick of the clock
        os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = load_flickr8k(tmp_path)
    assert after.fingerprint != before.fingerprint
    again = open_store(after, 8)
    changed_N = (packed.array != again.array).any(axis=(1, 2, 3))
    assert [name for name, changed in zip(after.images(), changed_N) if changed] == ["40_d.jpg"]


def test_second_load_reads_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr("mmlib.data.dataset.SETTLED_NS", 0)
    first = load_flickr8k(tiny.write_original(tmp_path))
    monkeypatch.setattr("mmlib.data.dataset.file_sha256", None)
    assert load_flickr8k(tmp_path).fingerprint == first.fingerprint
    assert len(json.loads((files.CACHE / "flickr8k-digests.json").read_text())) == 8


def test_captions_spread_over_a_karpathy_file_are_joined_by_image(tmp_path):
    """A caption an entry, those of an image apart, one entry twice; ids tell equal captions from repeats."""
    said = tiny.captions() | {"40_d.jpg": ["same .", "same .", "other ."]}
    entries = [
        {"filename": name, "split": split, "sentences": [{"raw": said[name][row], "sentid": row}]}
        for row in range(3)
        for split, images in tiny.SPLITS.items()
        for name in images
        if row < len(said[name])
    ]
    tiny.write_karpathy_file(tiny.write_karpathy(tmp_path), [*entries, entries[0]])
    dataset = load_flickr8k(tmp_path)
    for split, images in tiny.SPLITS.items():
        assert dataset.splits[split].images == images
        assert list(dataset.splits[split].captions) == [text for name in images for text in said[name]]


def test_a_repeated_karpathy_entry_is_taken_once(tmp_path):
    entries = tiny.karpathy_entries()
    tiny.write_karpathy_file(tiny.write_karpathy(tmp_path), [*entries, entries[1]])
    assert_tiny(load_flickr8k(tmp_path))
