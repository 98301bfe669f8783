"""Several data sets that train together: what is joined, what is held out, what identifies it."""

import pickle
import re

import numpy as np
import pytest
from test_lookalikes import picture

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data.dataset import Dataset, ImageFolder, Split
from mmlib.data.leaks import Leak, guarded, without_leaks
from mmlib.data.mixture import mix, parse_addition
from mmlib.data.store import open_store


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a data set: seeds of pictures by name by split, two captions of each image."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")

    def make(name, redistributable=False, **splits):
        built = {}
        for split, images in splits.items():
            for image, seed in images.items():
                (tmp_path / name / image).parent.mkdir(parents=True, exist_ok=True)
                picture(seed).save(tmp_path / name / image, "JPEG")
            texts = [f"{name} {image} {number}" for image in images for number in range(2)]
            built[split] = Split(split, tuple(images), texts, np.repeat(range(len(images)), 2))
        source = ImageFolder(tmp_path / name)
        return Dataset(
            name, built, source, f"fingerprint of {name}", (f"A note of {name}.",), redistributable
        )

    return make


@pytest.fixture
def old(made):
    return made(
        "flickr8k",
        train={"111111_00000000aa.jpg": 1, "222222_00000000aa.jpg": 2},
        val={"333333_00000000aa.jpg": 3},
        test={"444444_00000000aa.jpg": 4},
    )


@pytest.fixture
def new(made):
    return made(
        "flickr30k",
        train={"333333.jpg": 3, "555555.jpg": 5, "444444.jpg": 4, "222222.jpg": 2, "666666.jpg": 6},
        val={"111111.jpg": 1},
        test={"777777.jpg": 7},
    )


@pytest.fixture
def other(made):
    return made("coco", train={"train2014/COCO_train2014_000000000009.jpg": 9}, val={"val2014/a.jpg": 10})


def test_training_splits_are_joined_and_cleaned_of_what_any_set_holds_out(old, new, other):
    mixed = mix(old, [(new, 0.5), (other, 2)])
    train = mixed.splits["train"]
    assert train.images == (
        "flickr8k/222222_00000000aa.jpg",  # 111111 is in Flickr30k's val
        "flickr30k/555555.jpg", "flickr30k/222222.jpg", "flickr30k/666666.jpg",
        "coco/train2014/COCO_train2014_000000000009.jpg",
    )  # fmt: skip
    owners = [train.images[n].replace("/", " ", 1) for n in train.image_of_caption_M]
    assert train.captions == tuple(f"{owner} {m % 2}" for m, owner in enumerate(owners))
    assert train.weight_of_caption_M.tolist() == [1.0] * 2 + [0.5] * 6 + [2.0] * 2
    assert train.weight_of_caption_M.dtype == np.float64


def test_val_test_and_name_are_those_of_the_first(old, new):
    mixed = mix(old, [(new, 1)])
    assert mixed.name == "flickr8k"
    assert list(mixed.splits) == ["train", "val", "test"]
    assert mixed.splits["val"] is old.splits["val"]
    assert mixed.splits["test"] is old.splits["test"]
    reversed_ = mix(new, [(old, 1)])
    assert (reversed_.name, reversed_.splits["test"]) == ("flickr30k", new.splits["test"])


def test_images_are_read_from_their_own_set(old, new, other):
    mixed = mix(old, [(new, 1), (other, 1)])
    source = pickle.loads(pickle.dumps(mixed.source))
    expected = {
        "flickr8k/222222_00000000aa.jpg": (old, "222222_00000000aa.jpg"),
        "flickr30k/666666.jpg": (new, "666666.jpg"),
        "coco/train2014/COCO_train2014_000000000009.jpg": (
            other, "train2014/COCO_train2014_000000000009.jpg"
        ),
        "333333_00000000aa.jpg": (old, "333333_00000000aa.jpg"),
    }  # fmt: skip
    for name, (dataset, image) in expected.items():
        assert source.load(name).tobytes() == dataset.source.load(image).tobytes()
    with pytest.raises(OSError, match=r"none\.jpg"):
        source.load("flickr30k/none.jpg")
    # The first set's own folders are no names of sets.
    first = mix(other, [(old, 1)])
    assert first.source.load("val2014/a.jpg").tobytes() == other.source.load("val2014/a.jpg").tobytes()


def test_the_store_packs_a_mixture(old, new):
    mixed = mix(old, [(new, 1)])
    store = open_store(mixed, 16)
    assert store.array.shape == (6, 16, 16, 3)  # four that train, two held out
    alone = open_store(new, 16)
    row = mixed.images(packed=True).index("flickr30k/666666.jpg")
    assert np.array_equal(store.array[row], alone.array[new.images(packed=True).index("666666.jpg")])


def test_the_fingerprint_counts_all_parts_and_weights(old, new, other):
    made = [
        mix(old, [(new, 1)]), mix(old, [(new, 0.5)]), mix(old, [(other, 1)]), mix(new, [(old, 1)]),
        mix(old, [(new, 1), (other, 1)]), mix(old, [(other, 1), (new, 1)]), mix(old, []),
        mix(old, [(new, 1)], leaks="keep"),
    ]  # fmt: skip
    assert len({dataset.fingerprint for dataset in made}) == len(made)
    assert mix(old, [(new, 1.0)]).fingerprint == made[0].fingerprint


def test_what_is_held_out_keeps_its_fingerprint_whatever_is_trained_on(old, new, other):
    for more in ([(new, 1)], [(new, 0.5), (other, 1)]):
        assert mix(old, more).identity["held_out_fingerprint"] == old.fingerprint
    cleaned = guarded(old, [old, new], "exclude")  # loses a training image
    assert cleaned.fingerprint != old.fingerprint
    assert cleaned.identity["held_out_fingerprint"] == old.fingerprint
    assert mix(cleaned, [(other, 1)]).identity["held_out_fingerprint"] == old.fingerprint
    assert "held_out_fingerprint" not in mix(old, []).identity


def test_notes_say_what_is_trained_on_and_what_was_left_out(old, new):
    assert mix(old, [(new, 0.5)]).notes == (
        "Trained on several sets: flickr8k 1 image, 2 captions, 1 times an epoch; flickr30k 3 images, 6"
        " captions, 0.5 times an epoch.  Val and test are those of flickr8k.",
        "A note of flickr8k.",
        "Leak guard: left out 1 of 2 training images and 2 captions that are held out in flickr30k val"
        " (1 by id).",
        "flickr30k: A note of flickr30k.",
        "flickr30k: Leak guard: left out 2 of 5 training images and 4 captions that are held out in flickr8k"
        " test, flickr8k val (2 by id).",
    )


def test_leaks_are_kept_if_asked_for(old, new):
    mixed = mix(old, [(new, 1)], leaks="keep")
    assert len(mixed.splits["train"].images) == 7
    assert (
        "flickr30k: Leak guard: 2 training images are held out too and were kept, as asked (leaks='keep')."
        in mixed.notes
    )


def test_without_additions_a_set_stays_as_it_is(old):
    alone = mix(old, [])
    assert (alone.splits, alone.fingerprint, alone.source) == (old.splits, old.fingerprint, old.source)
    assert alone.notes == ("A note of flickr8k.", "Leak guard: no training image is held out.")


def test_a_mixture_may_be_passed_on_only_if_all_its_sets_may(made):
    parts = [
        made(name, free, train={f"{name}.jpg": seed}, val={f"v{name}.jpg": seed + 1})
        for name, free, seed in (("a", True, 11), ("b", True, 13), ("c", False, 15))
    ]
    assert mix(parts[0], [(parts[1], 1)]).redistributable
    assert not mix(parts[0], [(parts[2], 1)]).redistributable


def test_a_set_twice_is_refused(old, new):
    for additions in ([(old, 1)], [(new, 1), (old, 1)]):
        with pytest.raises(
            ParameterError, match=r"every data set once, found flickr8k 2 times \(the data set"
        ):
            mix(old, additions)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(old, new, weight):
    with pytest.raises(ValueError, match="split 'train': expected positive weights, found"):
        mix(old, [(new, weight)])


def test_weights_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"weight_of_caption_M to have shape \(1,\), found \(2,\)"):
        Split("train", ("a.jpg",), ("text",), [0], [1.0, 1.0])


def test_the_leak_guard_keeps_weights(made):
    dataset = made("flickr8k", train={"a.jpg": 1, "b.jpg": 2}, val={"c.jpg": 3})
    weighted = Split("train", ("a.jpg", "b.jpg"), ("x", "y", "z"), [0, 1, 1], [1, 2, 3])
    dataset.splits["train"] = weighted
    clean = without_leaks(dataset, [Leak("id", "a.jpg", "c.jpg", "flickr8k", "val")])
    assert clean.splits["train"].weight_of_caption_M.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flickr30k", ("flickr30k", None, 1.0)),
        ("flickr30k@0.5", ("flickr30k", None, 0.5)),
        ("coco:data/my coco", ("coco", "data/my coco", 1.0)),
        ("flickr8k:/a:b/c@d@2", ("flickr8k", "/a:b/c@d", 2.0)),
    ],
)
def test_an_addition_is_read(text, expected):
    assert parse_addition(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "shapes", "", "flickr30k:", "flickr30k:@2", "flickr30k@", "flickr30k@half", "flickr30k@0",
        "flickr30k@-1", "flickr30k@nan", "flickr30k@inf",
    ],
)  # fmt: skip
def test_an_addition_that_means_nothing_is_refused(text):
    expected = r"also_train_on: expected name\[:folder\]\[@weight\], as flickr30k@0.5, .* weight above 0, .*"
    with pytest.raises(ParameterError, match=f"{expected} found {re.escape(repr(text))}"):
        parse_addition(text)
