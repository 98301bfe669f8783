"""Flickr8k: every message of the loader, with what it must name."""

import json
import re

import pytest
import tiny_flickr as tiny

from mmlib import files
from mmlib.data.photos import load_flickr8k


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def original(tmp_path):
    return tiny.write_original(tmp_path)


@pytest.fixture
def kaggle(tmp_path):
    tiny.write_split_files(tiny.write_kaggle(tmp_path))
    return tmp_path


@pytest.fixture
def karpathy(tmp_path):
    return tiny.write_karpathy(tmp_path)


def assert_refused(root, error, message):
    with pytest.raises(error, match=re.escape(message)):
        load_flickr8k(root)


def append(path, line):
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")


def test_root_missing(tmp_path):
    message = f"expected the Flickr8k folder {tmp_path / 'nowhere'}, found none; unpack"
    assert_refused(tmp_path / "nowhere", FileNotFoundError, message)


def test_no_caption_file(original):
    (original / "Flickr8k.token.txt").unlink()
    assert_refused(original, FileNotFoundError, "Flickr8k.token.txt, captions.txt or dataset_flickr8k.json")


def test_two_different_caption_files_of_one_name(original):
    (original / "old").mkdir()
    tiny.write_token_file(original / "old" / "Flickr8k.token.txt", {"40_d.jpg": ["other"]})
    assert_refused(original, ValueError, "with different content; keep one")


@pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir", ".Trash-0", "#recycle"])
def test_what_systems_keep_of_a_caption_file_is_no_second_one(original, folder):
    (original / folder).mkdir()
    tiny.write_token_file(original / folder / "Flickr8k.token.txt", {"40_d.jpg": ["other"]})
    assert load_flickr8k(original).splits["train"].captions[0] == "caption of 40_d.jpg ."


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff"])
def test_empty_token_file(original, content):
    (original / "Flickr8k.token.txt").write_text(content, encoding="utf-8")
    assert_refused(
        original, ValueError, "Flickr8k.token.txt, found none of 40_d.jpg and 7 more; get the file"
    )


@pytest.mark.parametrize("content", ["", "image,caption\n", "40_d.jpg,a dog\n"])
def test_empty_csv(kaggle, content):
    (kaggle / "captions.txt").write_text(content)
    assert_refused(
        kaggle, ValueError, "captions.txt: expected captions below the header, found none; write a"
    )


@pytest.mark.parametrize("line", ["40_d.jpg#9", "40_d.jpg\ttext", "40_d.jpg#x\ttext", "#1\ttext"])
def test_malformed_token_line(original, line):
    append(original / "Flickr8k.token.txt", line)
    message = f"line 19: expected 'name.jpg#0<TAB>caption', found {line!r}; correct or remove"
    assert_refused(original, ValueError, message)


def test_one_number_with_two_captions(original):
    append(original / "Flickr8k.token.txt", "40_d.jpg#0\tother words")
    message = (
        "line 19: expected one caption for 40_d.jpg#0, found a second, 'other words' after"
        " 'caption of 40_d.jpg .'; remove"
    )
    assert_refused(original, ValueError, message)


def test_not_utf8(original):
    path = original / "Flickr8k.token.txt"
    path.write_bytes(path.read_bytes() + "40_d.jpg#9\tcafé".encode("latin-1"))
    message = "Flickr8k.token.txt, line 19: expected UTF-8 text, found byte 0xe9; convert"
    assert_refused(original, ValueError, message)


def test_csv_without_header(kaggle):
    (kaggle / "captions.txt").write_text("40_d.jpg,a dog\n60_f.jpg,a cat\n")
    message = "'image,caption', found '60_f.jpg,a cat' under '40_d.jpg,a dog'; correct the file"
    assert_refused(kaggle, ValueError, message)


@pytest.mark.parametrize("split", tiny.SPLITS)
def test_split_file_missing(original, split):
    (original / tiny.SPLIT_FILES[split]).unlink()
    message = (
        f"expected lists of the images of each split in {original} or a folder of it (as"
        f" Flickr_8k.trainImages.txt), found none of {split}; put them there, or dataset_flickr8k"
    )
    assert_refused(original, FileNotFoundError, message)


def test_incomplete_split_files_are_not_filled_up_from_karpathy(original):
    tiny.write_karpathy_file(original)
    (original / tiny.SPLIT_FILES["val"]).unlink()
    assert_refused(original, FileNotFoundError, "found none of val; put them there")


def test_kaggle_copy_without_splits(tmp_path):
    tiny.write_kaggle(tmp_path)
    assert_refused(tmp_path, FileNotFoundError, "found none of train, val, test; put them there")


def test_split_file_empty(original):
    (original / "Flickr_8k.devImages.txt").write_text("\n")
    message = "Flickr_8k.devImages.txt: expected one image name a line, found none; get"
    assert_refused(original, ValueError, message)


def test_image_in_two_splits(original):
    append(original / "Flickr_8k.testImages.txt", "40_d.jpg\n60_f.jpg\n")
    message = "expected every image in one split, found 40_d.jpg and 1 more in train and test; get"
    assert_refused(original, ValueError, message)


def test_image_missing(original):
    for name in ("50_e.jpg", "70_g.jpg", "80_h.jpg"):
        (original / "Flicker8k_Dataset" / name).unlink()
    message = (
        f"expected every image of the splits in {original / 'Flicker8k_Dataset'}, found no 50_e.jpg"
        " and 2 more; complete the folder"
    )
    assert_refused(original, FileNotFoundError, message)


def test_image_without_captions(original):
    texts = tiny.captions()
    del texts["50_e.jpg"]
    tiny.write_token_file(original / "Flickr8k.token.txt", texts)
    message = "Flickr8k.token.txt, found none of 50_e.jpg; get the file again"
    assert_refused(original, ValueError, message)


def test_no_image_folder(original):
    (original / "Flicker8k_Dataset").rename(original.parent / f"{original.name}_moved")
    for seed in range(3):  # a NAS box makes a folder for each picture
        tiny.write_images(original / "@eaDir" / f"{seed}.jpg")
    message = f"expected a folder with the images of the splits under {original}, usually Flicker8k"
    assert_refused(original, FileNotFoundError, message)


def test_several_image_folders_of_unusual_names(original):
    (original / "Flicker8k_Dataset").rename(original / "b")
    tiny.write_images(original / "a")
    message = (
        f"expected one folder with the images of the splits under {original}, found {original / 'a'},"
        f" {original / 'b'}; rename the right one to Images"
    )
    assert_refused(original, ValueError, message)


def test_karpathy_file_cut_short(karpathy):
    path = karpathy / "dataset_flickr8k.json"
    path.write_text(path.read_text()[:200])
    assert_refused(karpathy, ValueError, "dataset_flickr8k.json is damaged: expected JSON, found")


@pytest.mark.parametrize("content", [[], {"annotations": []}, {"images": None}])
def test_another_json_file(karpathy, content):
    (karpathy / "dataset_flickr8k.json").write_text(json.dumps(content))
    assert_refused(karpathy, ValueError, "; get the file again")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"filename": "x.jpg", "split": "val"},
            "images.8.sentences: Field required, found 'dict'; get the file",
        ),
        (
            {"filename": "x.jpg", "split": "val", "sentences": ["text"]},
            ".0: expected a valid dictionary",
        ),
        (
            3,
            "images.8: expected a valid dictionary or instance of KarpathyImage, found 3",
        ),
        (
            {"filename": "x.jpg", "split": "rest", "sentences": []},
            "images.8.split: expected 'train', 'val'",
        ),
        (
            {"filename": "40_d.jpg", "split": "test", "sentences": []},
            "in one split, found test after",
        ),
    ],
)
def test_malformed_karpathy_entry(karpathy, entry, message):
    tiny.write_karpathy_file(karpathy, [*tiny.karpathy_entries(), entry])
    assert_refused(karpathy, ValueError, "dataset_flickr8k.json, images.8")
    assert_refused(karpathy, ValueError, message)


@pytest.mark.parametrize("name", ["../images/40_d.jpg", "/etc/40_d.jpg", "a/../../40_d.jpg"])
def test_karpathy_image_outside_the_folder(karpathy, name):
    entries = tiny.karpathy_entries()
    tiny.write_karpathy_file(karpathy, [entries[0] | {"filename": name}, *entries[1:]])
    assert_refused(karpathy, FileNotFoundError, f"found no {name}; complete the folder")


def test_karpathy_split_empty(karpathy):
    tiny.write_karpathy_file(karpathy, tiny.karpathy_entries()[:4])
    message = "expected images in the splits train, val, test, found none in val, test; get"
    assert_refused(karpathy, ValueError, message)
