"""Leak guard: images of the training split that are held out somewhere, by id, bytes and look."""

import pytest
from PIL import ImageOps
from test_lookalikes import jpeg, picture, screenshot

from mmlib import files
from mmlib.data.dataset import Dataset, ImageFolder, Split
from mmlib.data.leaks import Leak, find_leaks, photo_id, without_leaks
from mmlib.data.shapes import load_shapes


@pytest.fixture
def dataset_of(tmp_path, monkeypatch):
    """Writes a data set: pictures (or bytes) by name by split, two captions each but one of the first."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")

    def make(name, **splits):
        folder = tmp_path / name
        folder.mkdir()
        for images in splits.values():
            for file, image in images.items():
                (folder / file).parent.mkdir(exist_ok=True)
                if isinstance(image, bytes):
                    (folder / file).write_bytes(image)
                else:
                    image.save(folder / file, format="PNG")
        built = {}
        for split, images in splits.items():
            image_of_caption = [row for row in range(len(images)) for _ in range(2)][1:]
            texts = [f"{list(images)[row]}, caption {m}" for m, row in enumerate(image_of_caption)]
            built[split] = Split(split, tuple(images), texts, image_of_caption)
        return Dataset(name, built, ImageFolder(folder), f"fingerprint of {name}", ("A note.",))

    return make


def image_bytes(folder, file):
    return (folder / file).read_bytes()


@pytest.mark.parametrize(
    ("image", "dataset", "expected"),
    [
        ("667626_18933d713e.jpg", "flickr8k", "flickr:667626"),
        ("train/667626_18933d713e_b.jpg", None, "flickr:667626"),
        ("667626_18933d713e", None, "flickr:667626"),
        ("667626.jpg", "flickr30k", "flickr:667626"),
        ("36979.jpg", "flickr30k", "flickr:36979"),
        ("667626.jpg", None, None),  # a number of anybody's
        ("667626.jpg", "flickr8k", None),
        ("COCO_val2014_000000391895.jpg", None, "coco:391895"),
        ("val2014/COCO_val2014_000000391895.jpg", "coco", "coco:391895"),
        ("000000391895.jpg", None, "coco:391895"),
        ("https://farm4.staticflickr.com/3153/2970183120_ed15b2c7e5_z.jpg", None, "flickr:2970183120"),
        ("https://www.flickr.com/photos/someone/2970183120/in/album-1/", None, "flickr:2970183120"),
        ("http://images.cocodataset.org/train2017/000000391895.jpg?size=1", None, "coco:391895"),
        ("https://notflickr.com/2970183120_ed15b2c7e5.jpg", None, None),
        ("https://example.org/photos/a/2970183120", None, None),
        ("https://[/667626_18933d713e.jpg", None, None),  # no address
        ("20230101_120000.jpg", None, None),  # dates, as phones and cameras write them
        ("20230101_120000.jpg", "flickr30k", None),
        ("20230101_120000123_hdr.jpg", None, None),
        ("IMG_20230101_120000.jpg", None, None),
        ("20230101.jpg", None, None),
        ("202301011200.jpg", None, None),
        ("1672531200_photo.jpg", None, None),
        ("391895_dog.jpg", None, None),
        ("test_00012.png", None, None),  # shapes
        ("000000012.jpg", None, None),  # img2dataset
        ("7.jpg", None, None),
        ("photo 667626.jpg", None, None),
    ],
)
def test_the_id_of_a_photo_is_read_from_names_of_known_forms_alone(image, dataset, expected):
    assert photo_id(image, dataset) == expected


def test_photos_named_by_date_stay_in_the_training_split(dataset_of):
    """Three of a phone's photos of one day share what looks like an id."""
    day = [f"20230101_12000{n}.jpg" for n in range(9)]
    dataset = dataset_of(
        "phone",
        train={name: picture(seed) for seed, name in enumerate(day[:6])},
        val={name: picture(seed) for seed, name in enumerate(day[6:8], 6)},
        test={day[8]: picture(8)},
    )
    assert find_leaks(dataset, dataset) == []


def test_splits_that_are_numbered_each_from_one_on_share_no_photos(dataset_of):
    """People's own photos in COCO's form; between two data sets the number of COCO is an id."""
    number = "{:012d}.jpg".format
    dataset = dataset_of(
        "coco",
        train={f"train2017/{number(n)}": picture(n) for n in range(1, 5)},
        val={f"val2017/{number(n)}": picture(50 + n) for n in range(1, 5)},
    )
    assert find_leaks(dataset, dataset) == []
    other = dataset_of("own", val={number(3): picture(99)})
    (leak,) = find_leaks(dataset, other)
    assert (leak.kind, leak.train_image) == ("id", "train2017/000000000003.jpg")


def test_flickr30k_gives_away_what_flickr8k_holds_out(dataset_of):
    """REFERENCE, trap (a); both ways, and whatever the picture looks like."""
    flickr8k = dataset_of(
        "flickr8k",
        train={"1000268201_693b08cb0e.jpg": picture(1)},
        test={"2970183120_ed15b2c7e5.jpg": picture(2)},
    )
    flickr30k = dataset_of(
        "flickr30k",
        train={"2970183120.jpg": picture(3), "4000000004.jpg": picture(4)},
        test={"1000268201.jpg": picture(5)},
    )
    assert find_leaks(flickr30k, flickr8k) == [
        Leak("id", "2970183120.jpg", "2970183120_ed15b2c7e5.jpg", "flickr8k", "test")
    ]
    assert find_leaks(flickr8k, flickr30k) == [
        Leak("id", "1000268201_693b08cb0e.jpg", "1000268201.jpg", "flickr30k", "test")
    ]


def test_drawings_that_differ_are_no_leaks(dataset_of):
    """One frame with other words in it: the same at low frequencies, another picture."""
    train = {f"{n}.jpg": screenshot(n) for n in range(6)}
    test = {"copy.jpg": jpeg(screenshot(2).resize((480, 300)), 60), "other.jpg": screenshot(7)}
    dataset = dataset_of("screens", train=train, test=test)
    assert [(leak.kind, leak.train_image, leak.held_out_image) for leak in find_leaks(dataset, dataset)] == [
        ("look", "2.jpg", "copy.jpg")
    ]


def test_each_sign_finds_its_own_and_the_surest_names_the_pair(dataset_of, tmp_path):
    test = dataset_of(
        "old",
        train={"111111_00000000a0.jpg": picture(1)},
        val={"222222_00000000a0.jpg": picture(2)},
        test={
            name: picture(seed)
            for seed, name in enumerate(["333333_00000000a0.jpg", "c.jpg", "d.jpg", "e.jpg"], 3)
        },
    )
    train = dataset_of(
        "flickr30k",
        train={
            "111111.jpg": picture(1),  # training there too: no leak
            "222222.jpg": picture(20),  # id alone, another picture
            "333333.jpg": image_bytes(tmp_path / "old", "333333_00000000a0.jpg"),  # all three signs
            "x.jpg": image_bytes(tmp_path / "old", "c.jpg"),  # bytes and look
            "y.jpg": jpeg(picture(5).resize((70, 50)), 60),  # look alone
            "z.jpg": ImageOps.mirror(picture(5)),  # the same photo again
            "innocent.jpg": picture(21),
        },
        val={"v.jpg": picture(22)},
        test={"w.jpg": picture(23)},
    )
    leaks = find_leaks(train, [train, test])
    looks = {(leak.train_image, leak.held_out_image): leak.distance for leak in leaks if leak.kind == "look"}
    assert looks.keys() == {("y.jpg", "d.jpg"), ("z.jpg", "d.jpg")}
    assert looks["z.jpg", "d.jpg"] == 0
    assert leaks[:3] == [
        Leak("id", "222222.jpg", "222222_00000000a0.jpg", "old", "val"),
        Leak("id", "333333.jpg", "333333_00000000a0.jpg", "old", "test"),
        Leak("bytes", "x.jpg", "c.jpg", "old", "test"),
    ]
    assert len(leaks) == 5
    assert find_leaks(train, train) == []


def test_an_image_may_be_held_out_twice(dataset_of):
    one = dataset_of("flickr30k", train={"555555.jpg": picture(0)}, test={"a.jpg": picture(1)})
    two = dataset_of(
        "two", val={"555555_00000000b0.jpg": picture(2)}, test={"555555_00000000c0.jpg": picture(3)}
    )
    leaks = find_leaks(one, [one, two, two])
    assert [(leak.held_out_image, leak.split) for leak in leaks] == [
        ("555555_00000000b0.jpg", "val"),
        ("555555_00000000c0.jpg", "test"),
    ] * 2


def test_drawn_images_have_no_bytes_to_compare(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path)
    shapes = load_shapes(train=3, val=1, test=1, size=32)
    assert find_leaks(shapes, shapes) == []


def test_leaks_are_left_out_with_their_captions(dataset_of):
    train = {f"{name}.jpg": picture(seed) for seed, name in enumerate("abcde")}
    dataset = dataset_of("tiny", train=train, test={"t.jpg": picture(9)})
    leaks = [
        Leak("look", "b.jpg", "t.jpg", "tiny", "test", 4),
        Leak("look", "d.jpg", "v.jpg", "other", "val", 4),
        Leak("id", "d.jpg", "t.jpg", "tiny", "test"),
        Leak("look", "a.jpg", "t.jpg", "tiny", "test", 6),
    ]
    clean = without_leaks(dataset, leaks)
    split = clean.splits["train"]
    assert split.images == ("c.jpg", "e.jpg")
    assert split.captions == tuple(
        f"{name}.jpg, caption {m}" for m, name in ((3, "c"), (4, "c"), (7, "e"), (8, "e"))
    )
    assert split.image_of_caption_M.tolist() == [0, 0, 1, 1]
    assert clean.splits["test"] is dataset.splits["test"]
    assert clean.notes == (
        "A note.",
        "Leak guard: left out 3 of 5 training images and 5 captions that are held out in other val, tiny test"
        " (1 by id, 2 by look).",
    )
    assert dataset.splits["train"].images == tuple(train)


def test_data_without_leaks_are_other_data(dataset_of):
    images = {f"{name}.jpg": picture(seed) for seed, name in enumerate("abc")}
    dataset = dataset_of("tiny", train=images, test={"t.jpg": picture(9)})

    def without(*names):
        return without_leaks(dataset, [Leak("id", f"{name}.jpg", "t.jpg", "tiny", "test") for name in names])

    fingerprints = [without(*names).fingerprint for names in ("a", "b", "ab")]
    assert len({dataset.fingerprint, *fingerprints}) == 4
    assert all(len(fingerprint) == 16 for fingerprint in fingerprints)
    assert without("b", "a").fingerprint == fingerprints[2]
    untouched = without()
    assert untouched.identity == dataset.identity
    assert untouched.notes == ("A note.", "Leak guard: no training image is held out.")


def test_guarded_data_leak_no_more(dataset_of, tmp_path):
    test = dataset_of("old", train={"a.jpg": picture(0)}, test={"b.jpg": picture(1), "c.jpg": picture(2)})
    train = dataset_of(
        "new", train={"x.jpg": jpeg(picture(1), 80), "y.jpg": picture(3)}, test={"z.jpg": picture(4)}
    )
    both = [train, test]
    clean = [without_leaks(dataset, find_leaks(dataset, both)) for dataset in both]
    assert clean[0].splits["train"].images == ("y.jpg",)
    assert clean[1].identity == test.identity
    assert all(find_leaks(dataset, clean) == [] for dataset in clean)


# --- errors


def test_what_cannot_be_searched_is_refused(dataset_of):
    good = dataset_of("good", train={"a.jpg": picture(0)}, test={"b.jpg": picture(1)})
    trained = dataset_of("trained", train={"a.jpg": picture(0)})
    tested = dataset_of("tested", test={"a.jpg": picture(0)})
    with pytest.raises(ValueError, match="expected training images in 'tested', found none"):
        find_leaks(tested, good)
    with pytest.raises(ValueError, match="expected images in val or test of 'trained', found none"):
        find_leaks(good, [good, trained])


def test_an_unreadable_image_is_named(dataset_of):
    dataset = dataset_of("tiny", train={"a.jpg": b"no image"}, test={"b.jpg": picture(1)})
    with pytest.raises(ValueError, match=r"1 that are not: a\.jpg"):
        find_leaks(dataset, dataset)


def test_a_training_split_that_is_held_out_whole_is_refused(dataset_of):
    dataset = dataset_of("tiny", train={"a.jpg": picture(0)}, test={"b.jpg": picture(1)})
    with pytest.raises(ValueError, match="all 1 training images of 'tiny' are held out in other val"):
        without_leaks(dataset, [Leak("id", "a.jpg", "c.jpg", "other", "val")])
