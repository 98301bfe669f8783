"""MS-COCO: each layout, each message."""

import re

import pytest
import tiny_sets as tiny

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data import photos
from mmlib.data.photos import load_coco
from mmlib.data.store import open_store

SAID = {"id": 1, "image_id": 42, "caption": "a dog ."}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def karpathy(tmp_path):
    return tiny.write_coco_karpathy(tiny.write_coco_images(tmp_path))


@pytest.fixture
def official(tmp_path):
    return tiny.write_coco_official(tiny.write_coco_images(tmp_path))


def captions_of(images):
    numbers = [str(int(name[-16:-4])) for name in images]
    return tuple(text for number in numbers for text in tiny.said_of(number))


def assert_splits(dataset, **splits):
    assert dataset.name == "coco"
    assert {name: split.images for name, split in dataset.splits.items()} == splits
    for split in dataset.splits.values():
        assert split.captions == captions_of(split.images)
        assert split.image_of_caption_M.tolist() == [n for n in range(len(split.images)) for _ in range(2)]
        assert dataset.source.load(split.images[0]).size == (120, 90)
    assert not dataset.redistributable


def test_karpathys_splits_with_restval_in_train(karpathy):
    dataset = load_coco(karpathy)
    assert_splits(
        dataset,
        train=tiny.coco_images("train", "restval"),
        val=tiny.coco_images("val"),
        test=tiny.coco_images("test"),
    )
    assert dataset.notes == (
        "Images that dataset_coco.json calls restval are in train.",
        "Splits have train 3, val 2, test 1 images; Karpathy's, with restval in train, have train 113,287,"
        " val 5,000, test 5,000: figures on other splits are not comparable with published ones.",
    )


def test_the_official_splits_have_no_test(official):
    dataset = load_coco(official)
    assert_splits(dataset, train=tiny.coco_images("train"), val=tiny.coco_images("restval", "val", "test"))
    assert dataset.notes == (
        "No test split: the captions of COCO's own were never published; dataset_coco.json (Karpathy) has"
        " one.",
        "Splits have train 2, val 4 images; COCO's own of 2014 have train 82,783, val 40,504: figures on"
        " other splits are not comparable with published ones.",
    )
    with pytest.raises(
        ParameterError, match=r"expected one of train, val, which is .* coco hold, found 'test'"
    ):
        dataset.split("test")
    assert dataset.split("val") is dataset.splits["val"]


def test_captions_of_an_official_image_with_several_entries_are_joined(official):
    """An entry a caption, as converters write them: other ids, or the same one again, for one file."""
    expected = load_coco(official).fingerprint
    content = tiny.annotations("train2014")
    images, said = content["images"], content["annotations"]
    for number, annotation in enumerate(said):
        if annotation["id"] % 10:
            name = tiny.coco_name("train2014", annotation["image_id"])
            images.append({"id": 500 + number, "file_name": name})
            annotation["image_id"] = 500 + number
    content |= {"images": [*images, images[0]], "annotations": [*said, said[0]]}
    tiny.write_json(official / "annotations" / "captions_train2014.json", content)
    assert load_coco(official).fingerprint == expected


def test_what_follows_needs_no_test_split(official):
    dataset = load_coco(official)
    assert dataset.identity["splits"].keys() == {"train", "val"}
    store = open_store(dataset, 16)
    assert {split: len(rows) for split, rows in store.splits.items()} == {"train": 2, "val": 4}


def test_the_official_files_of_2017(tmp_path):
    tiny.write_coco_official(tiny.write_coco_images(tmp_path, year="2017"), year="2017")
    dataset = load_coco(tmp_path)
    assert dataset.splits["train"].images == ("train2017/000000000009.jpg", "train2017/000000000007.jpg")
    assert dataset.splits["val"].captions == captions_of(dataset.splits["val"].images)
    assert "COCO's own of 2017 have train 118,287, val 5,000" in dataset.notes[1]


def test_the_usual_sizes_are_not_noted(karpathy, monkeypatch):
    monkeypatch.setitem(photos.SIZES, "coco", ("Karpathy's", {"train": 3, "val": 2, "test": 1}))
    assert len(load_coco(karpathy).notes) == 1


@pytest.mark.parametrize("folder", ["images", "coco"])
def test_images_may_lie_a_folder_deeper(tmp_path, folder):
    dataset = load_coco(tiny.write_coco_karpathy(tiny.write_coco_images(tmp_path, folder)))
    assert dataset.source.folder == tmp_path / folder
    assert dataset.splits["test"].images == tiny.coco_images("test")


def test_karpathys_file_decides_and_may_lie_a_folder_deeper(official):
    tiny.write_coco_official(official, year="2017")
    (official / "texts").mkdir()
    tiny.write_coco_karpathy(official / "texts")
    assert load_coco(official).splits["test"].images == tiny.coco_images("test")


def test_the_fingerprint_is_that_of_the_data(karpathy, tmp_path_factory):
    other = tiny.write_coco_karpathy(tiny.write_coco_images(tmp_path_factory.mktemp("other"), "images"))
    fingerprint = load_coco(karpathy).fingerprint
    assert load_coco(other).fingerprint == fingerprint
    (image,) = tiny.coco_images("test")
    tiny.save(other / "images" / image, 99)
    assert load_coco(other).fingerprint != fingerprint


def assert_refused(root, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_coco(root)


def test_no_folder(tmp_path):
    message = f"expected the COCO folder {tmp_path / 'x'}, found none; unpack"
    assert_refused(tmp_path / "x", FileNotFoundError, message)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ((), "none"),
        (("train2014",), "captions_train2014.json"),
        (("train2014", "val2017"), "captions_train2014.json, captions_val2017.json"),
        (
            ("train2014", "val2014", "val2017"),
            "captions_train2014.json, captions_val2014.json, captions_val2017.json",
        ),
    ],
)
def test_other_captions_than_those_of_one_year_are_refused(tmp_path, there, found):
    tiny.write_coco_images(tmp_path)
    for name in there:
        (tmp_path / f"captions_{name}.json").write_text("{}")
    message = (
        f"expected captions in {tmp_path} or a folder of it: dataset_coco.json (Karpathy), or"
        " captions_train2014.json and captions_val2014.json, or both of 2017 (official; the splits of the"
        f" years differ), found {found}; leave"
    )
    assert_refused(tmp_path, FileNotFoundError, message)


def test_image_folders_missing_or_apart(tmp_path):
    tiny.write_coco_karpathy(tmp_path)
    message = f"expected the image folders train2014/, val2014/ side by side in {tmp_path} or a folder"
    assert_refused(tmp_path, FileNotFoundError, message + " of it, found none; unpack")
    tiny.write_coco_images(tmp_path, "images")
    (tmp_path / "images" / "val2014").rename(tmp_path / "val2014")
    there = f"{tmp_path / 'val2014'}, {tmp_path / 'images' / 'train2014'}; unpack"
    assert_refused(tmp_path, FileNotFoundError, message + " of it, found " + there)


def test_an_image_that_is_missing(karpathy):
    (image,) = tiny.coco_images("test")
    (karpathy / image).unlink()
    assert_refused(karpathy, FileNotFoundError, f"found no {image}; complete the folder")


def test_images_without_captions(official):
    content = tiny.annotations("val2014")
    content["annotations"] = content["annotations"][1:4]
    tiny.write_json(official / "annotations" / "captions_val2014.json", content)
    assert_refused(official, ValueError, "found none of val2014/COCO_val2014_000000000042.jpg; get the file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [],
            "captions_val2014.json, the file: expected a valid dictionary or instance of Coco",
        ),
        ({"images": [{"id": 4}]}, "images.0.file_name: Field required, found 'dict'; get the file again"),
        (
            {"images": [{"id": 4, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}]},
            "expected one image of each id, found two of id 4",
        ),
        (
            {"annotations": [SAID | {"caption": None}]},
            "annotations.0.caption: expected a valid string",
        ),
        (
            {"annotations": [SAID | {"id": True}]},
            "annotations.0.id: expected a valid integer, found T",
        ),
        (
            {"annotations": [SAID | {"image_id": 9}]},
            "annotation 1: expected a caption of an image of the file",
        ),
        (
            {"annotations": [SAID, SAID | {"caption": "b"}]},
            "expected one annotation of each id, found two of id",
        ),
    ],
)
def test_a_malformed_official_file(official, content, message):
    content = tiny.annotations("val2014") | content if isinstance(content, dict) else content
    tiny.write_json(official / "annotations" / "captions_val2014.json", content)
    assert_refused(official, ValueError, message)


def test_an_official_file_cut_short(official):
    path = official / "annotations" / "captions_train2014.json"
    path.write_text(path.read_text()[:100])
    assert_refused(official, ValueError, "captions_train2014.json is damaged: expected JSON, found")


def test_a_malformed_entry_of_karpathy(karpathy):
    tiny.write_coco_karpathy(karpathy, [*tiny.coco_entries(), tiny.coco_entries()[0] | {"split": "rest"}])
    message = "images.6.split: expected 'train', 'val', 'test' or 'restval', found 'rest'; get"
    assert_refused(karpathy, ValueError, message)
