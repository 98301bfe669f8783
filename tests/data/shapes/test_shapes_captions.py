"""Captions of the shapes set against a parser that shares nothing with the code that wrote them."""

import re
from random import Random

import pytest

from mmlib.data.shapes import load_shapes
from mmlib.data.shapes.scene import SHAPES, Scene, Thing, describe

WHERE = {
    "meadow": "green field|grass|meadow|lawn",
    "hills": "hills",
    "sea": "sea|waves|water",
    "desert": "desert|sand|dunes",
    "night": "night|dark|night sky",
    "snow": "snow|snowy day|snowy field|winter",
    "sunset": "sunset|evening sky|dusk",
    "paper": "paper|notebook",
    "tablecloth": "tablecloth|cloth",
    "bricks": "wall|bricks",
    "wood": "table|wood|floor|boards",
    "sky": "a blue sky|the sky|clouds",
}
BETWEEN = r"(?:the |an? |green |sheet of |squared |sand |starry |brick |wooden |pink |picnic )*"
PLACE = rf"(?:in front of|on|in|over|above|among|at) {BETWEEN}(?:{'|'.join(WHERE.values())})"
VIEW = rf"{BETWEEN}(?:{'|'.join(WHERE.values())})"
NUMBERS = {"a": 1, "an": 1, "one": 1, "another": 1, "two": 2, "three": 3, "four": 4}
SIZES = {"small": "small", "little": "small", "tiny": "small", "big": "big", "large": "big"}
TEXTURES = {
    "striped": "striped", "stripy": "striped", "dotted": "dotted", "spotted": "dotted",
    "checked": "checked", "checkered": "checked", "plain": "solid",
}  # fmt: skip
NOUNS = {"moon": "crescent", "raindrop": "drop"}
SIDE = r"(?:to the |on the )?(?P<side>left|right) of"
RELATION = rf"(?:{SIDE}|(?P<other>above|over|below|under|beneath|next to|beside))"
POSITION = r"(?:in|at|on|near) the (?:(top|bottom)? ?(left|right)?(?: corner| side)?|middle|centre)"


def background_of(phrase: str) -> str:
    """The background that a place or view names: the longest keyword at its end decides."""
    found = [
        (len(word), name)
        for name, words in WHERE.items()
        for word in words.split("|")
        if re.search(rf"\b{word}$", phrase)
    ]
    return max(found)[1]


def matches(phrase: str, things: list[Thing]) -> list[Thing]:
    """The things that a noun phrase without its number could mean."""
    *adjectives, noun = phrase.split()
    for word in adjectives:
        if word in SIZES:
            things = [t for t in things if t.size == SIZES[word]]
        elif word in TEXTURES:
            things = [t for t in things if t.texture == TEXTURES[word]]
        else:
            things = [t for t in things if t.colour == word]
    noun = {"crosses": "cross"}.get(noun, noun if noun == "cross" else noun.removesuffix("s"))
    noun = NOUNS.get(noun, noun)
    if noun in SHAPES:
        return [t for t in things if t.shape == noun]
    assert noun in ("shape", "thing", "figure"), f"unknown noun {noun!r}"
    return things


def holds(caption: str, scene: Scene) -> bool:
    """Whether all that the caption says is true of the scene; AssertionError if it can't be parsed."""
    things = list(scene.things)
    rest = caption
    front = re.fullmatch(rf"(?P<place>{PLACE}), (?P<rest>.*)|(?P<view>{VIEW}) with (?P<rest2>.*)", rest)
    back = re.fullmatch(rf"(?P<rest>.*?) (?P<place>{PLACE})", rest)
    if front:
        place, rest = front["place"] or front["view"], front["rest"] or front["rest2"]
    elif back:
        place, rest = back["place"], back["rest"]
    if (front or back) and background_of(place) != scene.background:
        return False

    alone = re.match(r"(a single|a lone|just|there is only) ", rest)
    if alone and len(things) != 1:
        return False
    rest = re.sub(r"^(a single|a lone) ", "a ", rest)
    rest = re.sub(r"^(just|there is only|there is) ", "", rest)

    if found := re.fullmatch(r"(some|colourful) (.*)", rest):
        if found[1] == "colourful":
            return len(things) >= 2 and len({t.colour for t in things}) >= 3
        return len(matches(found[2], things)) >= 2
    if found := re.fullmatch(r"something (\w+)", rest):
        return len(things) == 1 and things[0].colour == found[1]
    if found := re.fullmatch(
        rf"an? (?P<a>.*?)(?: is| sits| floats)? {RELATION} (?:an?|another) (?P<b>.*)", rest
    ):
        word = found["side"] or found["other"]
        pairs = [
            (a, b) for a in matches(found["a"], things) for b in matches(found["b"], things) if a is not b
        ]
        return any(lies(a, word, b) for a, b in pairs)
    if found := re.fullmatch(rf"an? (?P<a>.*?) (?P<where>{POSITION})", rest):
        return any(all(is_at(t, w) for w in found["where"].split()) for t in matches(found["a"], things))

    items = re.split(r", | and ", rest)
    if re.fullmatch(r"another shape|something else|\w+ more shapes", items[-1]):
        assert len(items) == 2
        more = NUMBERS.get(items[1].split()[0], 1)
        return len(things) == more + 1 and bool(matches(items[0].split(" ", 1)[1], things))
    said = 0
    for item in items:
        number, phrase = item.split(" ", 1)
        said += NUMBERS[number]
        if len(matches(phrase, things)) != NUMBERS[number]:
            return False
    return said == len(things)


def lies(a: Thing, word: str, b: Thing) -> bool:
    across, down = b.x - a.x, b.y - a.y
    if word in ("left", "right"):
        return abs(across) > abs(down) and (across > 0) == (word == "left")
    if word in ("above", "over", "below", "under", "beneath"):
        return abs(down) > abs(across) and (down > 0) == (word in ("above", "over"))
    gap = (across**2 + down**2) ** 0.5 - a.radius - b.radius
    return abs(across) >= abs(down) and gap <= 120


def is_at(thing: Thing, word: str) -> bool:
    return {
        "left": thing.x < 400,
        "right": thing.x > 600,
        "top": thing.y < 400,
        "bottom": thing.y > 600,
        "middle": max(abs(thing.x - 500), abs(thing.y - 500)) < 130,
        "centre": max(abs(thing.x - 500), abs(thing.y - 500)) < 130,
    }.get(word, word in ("in", "at", "on", "near", "the", "corner", "side"))


def thing(shape="star", colour="red", size="small", texture="striped", x=200, y=500) -> Thing:
    return Thing(shape, colour, size, texture, x, y, {"small": 105, "medium": 150, "big": 210}[size], 0)


@pytest.fixture(scope="module")
def described():
    """(scene, its five captions) of 400 images."""
    data = load_shapes(train=300, val=50, test=50)
    return [
        (data.source.scenes[name], split.captions[5 * i : 5 * i + 5])
        for split in data.splits.values()
        for i, name in enumerate(split.images)
    ]


def test_every_caption_is_true(described):
    for scene, captions in described:
        for caption in captions:
            assert holds(caption, scene), (caption, scene)


def test_captions_tell_scenes_apart(described):
    """The checker is no yes-man, and a scene's captions together are rarely true of another scene."""
    sample = described[:120]
    confused = sum(
        all(holds(caption, other) for caption in captions)
        for scene, captions in sample
        for other, _ in sample
        if other is not scene
    )
    assert confused <= 1


def test_captions_of_an_image_differ_and_most_name_colour_and_shape(described):
    colours, names = "red|orange|yellow|green|blue|purple|pink|brown|white|black", "|".join((*SHAPES, *NOUNS))
    for _, captions in described:
        assert len(captions) == len(set(captions)) == 5
        assert sum(bool(re.search(rf"\b({colours}) ({names})", caption)) for caption in captions) >= 3


def test_captions_are_plain_short_english(described):
    captions = [caption for _, five in described for caption in five]
    for caption in captions:
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption)
        assert len(caption) <= 76
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|crosss|\b(\w+) \1\b", caption)
    assert sum(20 <= len(caption) <= 75 for caption in captions) > 0.95 * len(captions)
    assert 100 <= len({word for caption in captions for word in caption.replace(",", "").split()}) <= 150


@pytest.mark.parametrize(
    ("caption", "true"),
    [
        ("a small striped red star left of a big blue ring", True),
        ("a stripy red star to the left of a blue ring in the snow", True),
        ("a blue ring left of a red star", False),
        ("a plain red star left of a blue ring", False),
        ("a red star left of a blue ring at night", False),
        ("two shapes in a snowy field", True),
        ("three shapes in a snowy field", False),
        ("a red star", False),  # a list names all things
        ("a red star and something else", True),
        ("a lone red star in the snow", False),
        ("in winter, a red star on the left", True),
        ("in winter, a red star on the right", False),
    ],
)
def test_the_checker_itself(caption, true):
    scene = Scene("snow", 1, (thing(), thing("ring", "blue", "big", "solid", x=700)))
    assert holds(caption, scene) is true


def test_things_that_cannot_be_told_apart_still_get_five_true_captions():
    scene = Scene(
        "wood", 1, tuple(thing("triangle", "yellow", "small", "solid", x=x) for x in (130, 360, 590, 820))
    )
    captions = describe(scene, Random(0))
    assert len(set(captions)) == 5
    assert all(holds(caption, scene) for caption in captions)


def test_a_thing_in_no_clear_position_still_gets_five_captions():
    scene = Scene("sea", 1, (thing(x=370, y=630),))
    for seed in range(20):
        captions = describe(scene, Random(seed))
        assert len(set(captions)) == 5
        assert not re.search("left|right|top|bottom|middle|centre", " ".join(captions))
