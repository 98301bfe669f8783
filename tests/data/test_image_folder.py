"""Folders of images: which one is read, names that a person would call the same, files that changed."""

import hashlib
import os
import re
import unicodedata

import pytest
from PIL import Image

from mmlib.data.dataset import ImageFolder
from mmlib.data.photos import find_image_folder, image_folders, match_names, normal_form

COMPOSED = "café 0.JPG"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_an_image_is_read_by_its_name_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (6, 4), 7).save(tmp_path / "x.jpg", "PNG", exif=exif)
    image = ImageFolder(tmp_path).load("x.jpg", 2)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 6), (7, 7, 7))
    content = (tmp_path / "x.jpg").read_bytes()
    assert ImageFolder(tmp_path).read("x.jpg") == content
    assert ImageFolder(tmp_path).digest("x.jpg") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"expected the file .*gone\.jpg, found nothing there"):
        ImageFolder(tmp_path).load("gone.jpg")
    (tmp_path / "x.jpg").write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"cannot decode x\.jpg: "):
        ImageFolder(tmp_path).load("x.jpg")


def test_a_file_that_changed_since_it_was_hashed_is_refused(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "a b.png")
    source = ImageFolder(tmp_path, {"A.png": ImageFolder(tmp_path).digest("a b.png")}, {"A.png": "a b.png"})
    assert source.load("A.png").size == (1, 1)
    Image.new("L", (1, 1), 9).save(tmp_path / "a b.png")
    with pytest.raises(
        ValueError, match=r"a b\.png has changed since the data set was loaded: expected the b"
    ):
        source.load("A.png")


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("a.jpg", ["a.jpg", "A.jpg"], "a.jpg"),
        ("a.jpg", ["A.JPG", "b.jpg"], "A.JPG"),
        (COMPOSED, [DECOMPOSED, "b.jpg"], DECOMPOSED),
        (DECOMPOSED, [COMPOSED], COMPOSED),
        (COMPOSED, [DECOMPOSED.lower()], DECOMPOSED.lower()),
        (COMPOSED, [COMPOSED, DECOMPOSED.lower()], COMPOSED),
        ("straße.jpg", ["STRASSE.jpg"], "STRASSE.jpg"),
        ("d/a.jpg", ["a.jpg", "d/A.jpg"], "d/A.jpg"),
        ("a.jpg", ["a.jpeg", "b.jpg"], None),
    ],
)
def test_names_that_a_person_would_call_the_same(wanted, there, expected):
    assert match_names([wanted], there, "photos").get(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "there", "message"),
    [
        (["a.jpg"], ["A.jpg", "a.JPG"],
         "expected one name in photos for each of 'a.jpg', found 'A.jpg' and 'a.JPG'; give images names that"
         " differ in more than upper and lower case or Unicode form"),
        ([COMPOSED], [COMPOSED, DECOMPOSED],
         r"expected one name in photos for each of 'caf\xe9 0.JPG', found 'caf\xe9 0.JPG' and 'cafe\u0301"),
        (["a.jpg", "A.jpg"], ["a.jpg"],
         "expected one name in photos for each of 'A.jpg' and 'a.jpg', found 'a.jpg'; give images names"),
    ],
)  # fmt: skip
def test_names_that_could_be_several_are_shown_in_both_spellings(wanted, there, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        match_names(wanted, there, "photos")


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_what_is_no_image_of_the_set_is_passed_over(tmp_path):
    root = tmp_path / "photos [2024]*"
    strays = ("._a.jpg", "._b.PNG", "Thumbs.db", ".DS_Store", "clip.mov", "LICENSE")
    make(root / "Images", "a.jpg", "b.PNG", "c.webp", "d.tif", "e.bmp", "f.gif", "captions.txt", *strays)
    make(root / "Images", *(f"@eaDir/{name}.jpg/SYNOPHOTO_THUMB_M.jpg" for name in "abc"))
    make(root, "__MACOSX/Images/._a.jpg", ".Trash-0/files/a.jpg", "#recycle/b.png")
    make(root, "Images/folder.jpg/note.txt")  # a folder with an image's name
    expected = (root / "Images", {"a.jpg", "b.PNG", "c.webp", "d.tif", "e.bmp", "f.gif"})
    assert find_image_folder(root, ["a.jpg"]) == expected


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    """As a disk's lost+found."""
    make(tmp_path, "Images/a.jpg", "lost+found/b.jpg")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_image_folder(tmp_path, ["a.jpg"]) == (tmp_path / "Images", {"a.jpg"})


def test_the_folder_with_the_most_listed_images_is_read(tmp_path):
    for number in range(5):
        make(tmp_path, f"figures {number}/plot.png")
    make(tmp_path, "images/logo.png", "images/a.jpg", "my photos/IMG_1.JPG", "my photos/a.jpg")
    assert find_image_folder(tmp_path, ["img_1.jpg", "a.jpg"])[0] == tmp_path / "my photos"
    assert find_image_folder(tmp_path, ["a.jpg"])[0] == tmp_path / "images"  # of a usual name
    with pytest.raises(ValueError, match=r"expected one folder with the images .*, found .* 0, .*; rename"):
        find_image_folder(tmp_path, ["plot.png"])
    with pytest.raises(FileNotFoundError, match=r"usually Flicker8k_Dataset/ or .*, found none; unpack the"):
        find_image_folder(tmp_path, ["b.jpg"])


def test_normal_form_leaves_plain_names():
    assert (normal_form(DECOMPOSED), normal_form("A b.jpg")) == (COMPOSED, "A b.jpg")


def test_a_link_that_leads_in_a_circle_stops_no_scan(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    os.symlink("loop", tmp_path / "loop")
    os.symlink(tmp_path, tmp_path / "self")
    assert image_folders(tmp_path) == {tmp_path: {"a.png"}}
