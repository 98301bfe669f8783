"""Folders of images: names that a person would call the same, what is skipped, and files that changed."""

import hashlib
import os
import re
import unicodedata
from collections import Counter

import pytest
from PIL import Image

from mmlib.data.folders import ImageFolder, find_image_folder, list_images, match_names, normal_form

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
         "expected one name like 'a.jpg' in photos, found 'A.jpg' and 'a.JPG', which differ in upper"
         " and lower case or Unicode form alone; rename or remove the others"),
        ([COMPOSED], [COMPOSED, DECOMPOSED],
         r"expected one name like 'caf\xe9 0.JPG' in photos, found 'caf\xe9 0.JPG' and 'cafe\u0301 0.JPG',"),
        (["a.jpg", "A.jpg"], ["a.jpg"],
         "expected an image for each of 'a.jpg' and 'A.jpg', found only 'a.jpg' in photos; give them names"),
    ],
)  # fmt: skip
def test_names_that_could_be_several_are_shown_in_both_spellings(wanted, there, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        match_names(wanted, there, "photos")


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_what_is_no_image_of_the_set_is_skipped_and_counted(tmp_path):
    root = tmp_path / "photos [2024]*"
    strays = ("._a.jpg", "._b.PNG", "Thumbs.db", ".DS_Store", "clip.mov", "LICENSE")
    make(root / "Images", "a.jpg", "b.PNG", "c.webp", "d.tif", "e.bmp", "f.gif", "captions.txt", *strays)
    make(root / "Images", *(f"@eaDir/{name}.jpg/SYNOPHOTO_THUMB_M.jpg" for name in "abc"))
    make(root, "__MACOSX/Images/._a.jpg", ".Trash-0/files/a.jpg", "#recycle/b.png")
    make(root, "Images/folder.jpg/note.txt")  # a folder with an image's name
    folder, names, notes = find_image_folder(root, ("Images",))
    assert (folder, names) == (root / "Images", {"a.jpg", "b.PNG", "c.webp", "d.tif", "e.bmp", "f.gif"})
    assert notes == [
        "Skipped, since they are no images of the set: 2 ._*, 1 #recycle/, 1 *.db and 6 of other kinds."
    ]
    names, folders, skipped = list_images(root / "Images")
    assert folders == [root / "Images" / "folder.jpg"]
    kinds = ["*.db", "*.mov", ".DS_Store", "@eaDir/", "LICENSE"]
    assert skipped == Counter({"._*": 2, **dict.fromkeys(kinds, 1)})


def test_a_folder_that_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    """As a disk's lost+found; the data set's own folder must be readable."""
    make(tmp_path, "Images/a.jpg", "lost+found/b.jpg")
    closed = [tmp_path / "lost+found"]
    real = os.scandir

    def scandir(folder):
        if folder in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_image_folder(tmp_path, ("Images",))[1:] == (
        {"a.jpg"},
        ["Skipped, since they are no images of the set: 1 unreadable lost+found/."],
    )
    closed.append(tmp_path)
    with pytest.raises(PermissionError):
        find_image_folder(tmp_path, ("Images",))


def test_nothing_left_ends_with_what_was_found_instead(tmp_path):
    make(tmp_path, "Images/1.HEIC", "Images/2.heic", *(f"@eaDir/{n}.jpg/THUMB.jpg" for n in range(40)))
    with pytest.raises(
        FileNotFoundError, match=r"usually Images/, found 2 \*\.heic, 1 @eaDir/; unpack the images"
    ):
        find_image_folder(tmp_path, ("Images",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="usually Images/, found none; unpack the images there"):
        find_image_folder(tmp_path / "empty", ("Images",))


def test_of_several_folders_those_with_listed_images_count(tmp_path):
    for number in range(5):
        make(tmp_path, f"figures {number}/plot.png")
    make(tmp_path, "images/logo.png", "my photos/IMG_1.JPG")
    folder, _, notes = find_image_folder(tmp_path, ("Images", "images"), ["img_1.jpg"])
    assert folder == tmp_path / "my photos"
    others = ", ".join(str(tmp_path / f"figures {number}") for number in range(3))
    assert notes == [f"Images are read from {folder}; {others} and 3 more hold images too, unread."]
    assert find_image_folder(tmp_path, ("Images", "images"))[0] == tmp_path / "images"
    with pytest.raises(
        ValueError, match=r"expected one folder with images .*, found 7: .* and 4 more; rename"
    ):
        find_image_folder(tmp_path, ("Images",))


def test_normal_form_leaves_plain_names():
    assert (normal_form(DECOMPOSED), normal_form("A b.jpg")) == (COMPOSED, "A b.jpg")


def test_a_link_that_leads_in_a_circle_stops_no_scan(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    for name in ("b.jpg", "loop"):
        os.symlink(name, tmp_path / name)
    assert list_images(tmp_path) == ({"a.png"}, [], Counter({"*.jpg": 1, "loop": 1}))
