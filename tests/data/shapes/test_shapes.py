import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest

from mmlib.data.shapes import load_shapes
from mmlib.data.shapes.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, TEXTURES

# Change these only together with RENDERER_VERSION: runs and reports refer to the set by its bytes.
PIXELS = {
    "train": "eb35ad7ed651ebc397108e5a737e0632a9b5b92aae7bcbd703cf37aa761a1c49",
    "val": "60375965bd91f94eec1d65d59c4d412905e9e236d33c877e8065d7af4b86994c",
    "test": "39d5dda886cea2ff8a3dbb34041c9cc06163869333832a4562eeeaa4d383184c",
}
CAPTIONS = "6575fb64c9d763f61c0abd67b69d41e4bba16b60a3e0396fa38aaae013d11f1c"
FINGERPRINT = "a4bd19236f889f8c"


@pytest.fixture(scope="module")
def shapes():
    return load_shapes()


@pytest.fixture(scope="module")
def scenes(shapes):
    return list(shapes.source.scenes.values())


def test_the_set_has_the_promised_form(shapes):
    assert shapes.name == "shapes"
    assert [(s.name, len(s.images), len(s.captions)) for s in shapes.splits.values()] == [
        ("train", 2000, 10_000),
        ("val", 250, 1250),
        ("test", 250, 1250),
    ]
    assert shapes.splits["train"].images[17] == "train_00017.png"
    assert shapes.splits["val"].image_of_caption_M[:11].tolist() == [0] * 5 + [1] * 5 + [2]
    assert shapes.redistributable
    assert len(shapes.notes) == 1
    assert "no download" in shapes.notes[0]


def test_pixels_are_the_same_on_every_machine(shapes):
    for split, expected in PIXELS.items():
        pictures = [shapes.source.load(name) for name in shapes.splits[split].images[:12]]
        assert {(p.mode, p.size) for p in pictures} == {("RGB", (64, 64))}
        assert hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest() == expected, split


def test_captions_are_the_same_on_every_machine(shapes):
    captions = "\n".join(caption for split in shapes.splits.values() for caption in split.captions)
    assert hashlib.sha256(captions.encode()).hexdigest() == CAPTIONS
    assert shapes.fingerprint == FINGERPRINT


def test_no_two_scenes_are_alike_in_any_split(scenes):
    attributes = [
        (s.background, frozenset(Counter((t.shape, t.colour, t.size, t.texture) for t in s.things).items()))
        for s in scenes
    ]
    assert len(set(attributes)) == len(scenes) == 2500


def test_scenes_use_all_there_is(scenes):
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {len(s.things) for s in scenes} == {1, 2, 3, 4}
    for field, values in (("shape", SHAPES), ("colour", COLOURS), ("size", RADII), ("texture", TEXTURES)):
        assert {getattr(t, field) for s in scenes for t in s.things} == set(values)


def test_things_lie_inside_and_apart_in_colours_that_show(scenes):
    for scene in scenes:
        for i, a in enumerate(scene.things):
            assert a.colour not in BACKGROUNDS[scene.background]
            assert a.radius <= min(a.x, a.y, 1000 - a.x, 1000 - a.y)
            for b in scene.things[i + 1 :]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_val_and_test_do_not_depend_on_how_large_train_is(shapes):
    few = load_shapes(train=3)
    for split in ("val", "test"):
        assert few.splits[split].captions == shapes.splits[split].captions
        assert [few.source.scenes[n] for n in few.splits[split].images] == [
            shapes.source.scenes[n] for n in shapes.splits[split].images
        ]


def test_the_fingerprint_follows_seed_counts_and_size():
    base = {"seed": 0, "train": 3, "val": 2, "test": 2, "size": 64}
    changes = ({}, {"seed": 1}, {"train": 4}, {"val": 3}, {"test": 3}, {"size": 32})
    fingerprints = [load_shapes(**(base | change)).fingerprint for change in changes]
    assert len(set(fingerprints)) == len(changes)
    assert load_shapes(**base).fingerprint == fingerprints[0]
    assert all(len(f) == 16 and int(f, 16) >= 0 for f in fingerprints)


def test_the_source_draws_at_any_size_and_survives_pickling():
    data = load_shapes(train=2, val=1, test=1, size=32)
    source = pickle.loads(pickle.dumps(data.source))
    for name in data.images():
        assert source.load(name).size == (32, 32)
        assert source.load(name).tobytes() == data.source.load(name).tobytes()
        assert source.load(name, 80).size == (80, 80)


def test_an_unknown_image_is_named():
    source = load_shapes(train=1, val=1, test=1).source
    with pytest.raises(
        FileNotFoundError, match=r"no image 'cat.png'; expected one of its 3 names, such as 'train_"
    ):
        source.load("cat.png")
