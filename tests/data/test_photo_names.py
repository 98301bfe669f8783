"""Names of images in all layouts: Unicode forms, upper and lower case, other formats, odd folders."""

import re
import unicodedata
from pathlib import Path

import pytest
import tiny_flickr
import tiny_sets
from PIL import Image

from mmlib import files
from mmlib.data.photos import load_coco, load_flickr8k, load_flickr30k


def flickr8k_original(root: Path):
    return load_flickr8k, tiny_flickr.write_original(root), "40_d.jpg"


def flickr8k_kaggle(root: Path):
    tiny_flickr.write_split_files(tiny_flickr.write_kaggle(root))
    return load_flickr8k, root, "40_d.jpg"


def flickr8k_karpathy(root: Path):
    return load_flickr8k, tiny_flickr.write_karpathy(root), "40_d.jpg"


def flickr30k_lists(root: Path):
    tiny_sets.write_lists(tiny_sets.write_token_file(tiny_sets.write_flickr30k_images(root)))
    return load_flickr30k, root, "6000000006.jpg"


def flickr30k_karpathy(root: Path):
    tiny_sets.write_flickr30k_karpathy(tiny_sets.write_flickr30k_images(root))
    return load_flickr30k, root, "6000000006.jpg"


def coco_karpathy(root: Path):
    tiny_sets.write_coco_karpathy(tiny_sets.write_coco_images(root))
    return load_coco, root, tiny_sets.coco_name("val2014", 139)


def coco_official(root: Path):
    tiny_sets.write_coco_official(tiny_sets.write_coco_images(root))
    return load_coco, root, tiny_sets.coco_name("val2014", 139)


LAYOUTS = [
    flickr8k_original, flickr8k_kaggle, flickr8k_karpathy, flickr30k_lists, flickr30k_karpathy,
    coco_karpathy, coco_official,
]  # fmt: skip
COMPOSED = "Café 1 ü.JPG"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))


def rename(root: Path, old: str, in_texts: str, on_disk: str) -> Path:
    """Another name of one image, in all text files and on the disk; returns its file."""
    for path in root.rglob("*"):
        if path.suffix in (".txt", ".json", ".token"):
            path.write_text(path.read_text("utf-8").replace(old, in_texts), "utf-8")
    (file,) = root.rglob(old)
    return file.rename(file.with_name(on_disk))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_is_found_under_any_name_that_a_person_would_call_the_same(tmp_path, layout):
    """In a folder whose name is a pattern, too; the identity is that of the composed name."""
    identities = set()
    decomposed = unicodedata.normalize("NFD", COMPOSED)
    pairs = [
        (COMPOSED, COMPOSED), (COMPOSED, decomposed), (decomposed, COMPOSED), (decomposed, decomposed),
        (COMPOSED, decomposed.lower()),
    ]  # fmt: skip
    for number, (in_texts, on_disk) in enumerate(pairs):
        load, root, old = layout(tmp_path / f"set [{number}]*?")
        file = rename(root, old, in_texts, on_disk)
        dataset = load(root)
        (name,) = (name for name in dataset.images() if Path(name).name == COMPOSED)
        assert dataset.source.read(name) == file.read_bytes()
        with Image.open(file) as image:
            assert dataset.source.load(name).size == image.size
        assert not [note for note in dataset.notes if "without a file" in note]
        # Some captions of these sets quote the name of their image, and are kept as they are.
        identities.add((tuple(split.captions for split in dataset.splits.values()), dataset.fingerprint))
    assert len(identities) == len({captions for captions, _ in identities}) == (1 if load is load_coco else 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_that_could_be_two_files_are_refused_in_both_spellings(tmp_path, layout):
    load, root, old = layout(tmp_path)
    file = rename(root, old, "Photo 1.jpg", "photo 1.JPG")
    file.with_name("PHOTO 1.jpg").write_bytes(file.read_bytes())
    with pytest.raises(
        ValueError, match=r"expected one name in .* for each of '.*Photo 1\.jpg', found '.*' and '.*'"
    ) as e:
        load(root)
    assert set(re.findall(r"photo 1\.jpg", str(e.value).partition("found")[2], re.IGNORECASE)) == {
        "photo 1.JPG", "PHOTO 1.jpg",
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["png", "webp", "gif", "bmp", "tif"])
def test_images_of_other_formats_are_accepted_where_they_are_listed(tmp_path, layout, ending):
    load, root, old = layout(tmp_path)
    file = rename(root, old, f"drawing.{ending}", f"drawing.{ending}")
    with Image.open(file) as image:
        image.convert("RGB").save(file)
    dataset = load(root)
    (name,) = (name for name in dataset.images() if Path(name).name == file.name)
    with Image.open(file) as image:
        assert dataset.source.load(name).size == image.size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_systems_put_among_the_images_is_passed_over_in_one_note(tmp_path, layout):
    load, root, old = layout(tmp_path)
    before = load(root)
    (file,) = root.rglob(old)
    for number in range(40):
        file.with_name(f"._{number}.jpg").write_bytes(b"of a Mac")
        thumbnail = file.parent / "@eaDir" / f"{number}.jpg" / "THUMB_M.jpg"
        thumbnail.parent.mkdir(parents=True)
        thumbnail.write_bytes(b"of a NAS box")
    file.with_name("Thumbs.db").write_bytes(b"of Windows")
    after = load(root)
    assert after.fingerprint == before.fingerprint
    assert set(after.notes) - set(before.notes) == {
        "Skipped among the images, since they are none of the set: 42."
    }


def test_a_folder_that_a_caption_file_names_stays_below_the_data_set(tmp_path):
    load, root, old = coco_official(tmp_path)
    rename(root, old, f"../../{old}", old)
    with pytest.raises(
        ValueError, match=r"image folder: expected a name of letters, .* found 'val2014/\.\./\.\.'"
    ):
        load(root)


def test_missing_images_are_named_harmlessly(tmp_path):
    _, root, old = flickr8k_original(tmp_path)
    rename(root, old, "\x1b[2J40.jpg", "other.jpg")
    with pytest.raises(FileNotFoundError, match=r"found no \\x1b\[2J40\.jpg; complete the folder"):
        load_flickr8k(root)
