"""What a picture of the shapes set shows, before it is drawn, things on a background, and its captions.

A scene holds only words and integers, so it is the same on every machine, whatever size it is drawn
at. Lengths are thousandths of the picture's side, x to the right and y down, both from the top left.
Chance comes from `random.Random(text).random()` alone: its stream is the one that Python promises to
keep, which it does not for `choice` or `shuffle`, nor NumPy for its generators.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "ring",
    "crescent", "hexagon", "cross", "drop", "diamond", "flower",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
TEXTURES = ("solid", "striped", "dotted", "checked")
RADII = {"small": 105, "medium": 150, "big": 210}  # thousandths; a small thing is 13 px wide at 64 px

# Colours that a background would swallow, or that a viewer could not name on it.
BACKGROUNDS = {
    "meadow": ("green",),
    "hills": ("green",),
    "sea": ("blue",),
    "desert": ("orange", "yellow", "brown"),
    "night": ("black", "blue", "purple", "brown"),
    "snow": ("white",),
    "sunset": ("orange", "pink", "purple"),
    "paper": ("white",),
    "tablecloth": ("white", "pink"),
    "bricks": ("red", "brown", "orange"),
    "wood": ("brown", "orange"),
    "sky": ("white", "blue"),
}

_COUNT_WEIGHTS = (3, 6, 6, 5)  # of 1, 2, 3 and 4 things, in twentieths
_REPEAT = 0.2  # chance that a thing takes its colour from an earlier one, and that it takes its shape
_PLAIN = 0.4  # chance of no texture
_MARGIN = 25  # thousandths kept free between things and along the border
_TRIES = 60  # places tried for a thing before the whole scene is drawn anew


@dataclass(frozen=True)
class Thing:
    """One object of a scene; lengths in thousandths of the picture's side."""

    shape: str  # of SHAPES
    colour: str  # of COLOURS
    size: str  # of RADII
    texture: str  # of TEXTURES
    x: int  # of the centre
    y: int
    radius: int  # of the circle around it; within 4 % of RADII[size]
    turn: int  # clockwise, as thousandths of the tangent of half the angle


@dataclass(frozen=True)
class Scene:
    """A background and the 1 to 4 things on it, in no particular order."""

    background: str  # of BACKGROUNDS
    variation: int  # which of its countless variations
    things: tuple[Thing, ...]

    @property
    def attributes(self) -> tuple:
        """What captions can tell apart whatever the places: background and things, as a hashable value."""
        return self.background, tuple(sorted((t.shape, t.colour, t.size, t.texture) for t in self.things))


def pick(rng: Random, options: Sequence) -> Any:
    """One of `options`, all equally likely."""
    return options[int(rng.random() * len(options))]


def between(rng: Random, low: int, high: int) -> int:
    """An integer of `low`..`high`, both included, all equally likely."""
    return low + int(rng.random() * (high - low + 1))


def sample_scene(rng: Random) -> Scene:
    """A scene by chance: things apart from each other, wholly inside, in colours that stand out."""
    background = pick(rng, tuple(BACKGROUNDS))
    variation = between(rng, 0, 999_999)
    count = pick(rng, [n for n, weight in enumerate(_COUNT_WEIGHTS, 1) for _ in range(weight)])
    things: list[Thing | None] = []
    while len(things) < count:
        things.append(_sample_thing(rng, background, things))
        if things[-1] is None:  # found no room: the whole scene is drawn anew
            things.clear()
    return Scene(background, variation, tuple(things))


def _sample_thing(rng: Random, background: str, others: list[Thing]) -> Thing | None:
    """A thing that fits beside `others`, or None if it found no room."""
    colours = [c for c in COLOURS if c not in BACKGROUNDS[background]]
    colour = pick(rng, others).colour if others and rng.random() < _REPEAT else pick(rng, colours)
    shape = pick(rng, others).shape if others and rng.random() < _REPEAT else pick(rng, SHAPES)
    texture = "solid" if rng.random() < _PLAIN else pick(rng, TEXTURES[1:])
    size = pick(rng, tuple(RADII))
    radius = RADII[size] * between(rng, 96, 104) // 100
    # A moon may lie at up to 60 degrees; the rest lean by 15 at most, or a square reads as a diamond.
    turn = between(rng, -577, 577) if shape == "crescent" else between(rng, -130, 130)
    edge = radius + _MARGIN
    for _ in range(_TRIES):
        x, y = between(rng, edge, 1000 - edge), between(rng, edge, 1000 - edge)
        if all(
            (x - other.x) ** 2 + (y - other.y) ** 2 >= (radius + other.radius + _MARGIN) ** 2
            for other in others
        ):
            return Thing(shape, colour, size, texture, x, y, radius, turn)
    return None


# Five captions of a scene, as five people would give them: some exactly, some in general. Every word is true
# of the scene. Lower-case letters, spaces and commas only: a text encoder of 77 positions reads all of it.
CAPTIONS_PER_IMAGE = 5
MAX_LENGTH = 76  # characters

_COUNTS = {2: "two", 3: "three", 4: "four"}
_SIZES = {"small": ("small", "small", "little", "tiny"), "big": ("big", "big", "large")}
_TEXTURES = {
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered"),
    "solid": ("plain",),
}
_NOUNS = {"crescent": ("crescent", "moon"), "drop": ("drop", "raindrop")}
_OTHERS = ("another shape", "something else")
_ANY = ("shape", "shape", "thing", "figure")
# Where a thing is: what follows it, and what a picture of it is called.
_PLACES = {
    "meadow": ("on a green field", "in the grass", "on the grass", "in a meadow", "on a lawn"),
    "hills": ("over green hills", "above the hills", "in front of green hills", "in the hills"),
    "sea": ("over the sea", "above the waves", "on the water", "in the sea"),
    "desert": ("in the desert", "on the sand", "over sand dunes", "in front of sand dunes"),
    "night": ("in the night sky", "at night", "in the dark", "on a starry night"),
    "snow": ("in the snow", "on a snowy day", "in a snowy field", "in winter"),
    "sunset": ("at sunset", "in the evening sky", "in front of a sunset", "at dusk"),
    "paper": ("on paper", "on squared paper", "on a sheet of paper", "in a notebook"),
    "tablecloth": ("on a tablecloth", "on a pink tablecloth", "on a picnic cloth", "on a cloth"),
    "bricks": ("on a brick wall", "in front of a brick wall", "on the bricks", "on a wall"),
    "wood": ("on a wooden table", "on wood", "on a wooden floor", "on the boards"),
    "sky": ("in the sky", "in a blue sky", "among the clouds", "in the clouds"),
}
_VIEWS = {
    "meadow": "a green field", "hills": "green hills", "sea": "the sea", "desert": "a desert",
    "night": "a night sky", "snow": "a snowy field", "sunset": "a sunset", "paper": "a sheet of paper",
    "tablecloth": "a tablecloth", "bricks": "a brick wall", "wood": "a wooden table", "sky": "a blue sky",
}  # fmt: skip
_RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "under", "beneath"),
    "beside": ("next to", "beside"),
}
_CLEAR = 120  # thousandths that one distance must exceed the other by before a direction is named
_CLOSE = 110  # thousandths of gap up to which two things are beside each other
_NEAR = 340  # thousandths from a border within which a thing's centre is "at" it
_CENTRAL = 110  # thousandths from the centre within which a thing is "in the middle"
_WORDINGS = 30  # captions of one kind drawn before another kind is taken


def describe(scene: Scene, rng: Random) -> tuple[str, ...]:
    """Five different captions of `scene`, in no particular order.

    At least three name colour and shape of a thing; one or two are general.
    """
    if len(scene.things) == 1:
        kinds = [_whole, _positioned, _whole, pick(rng, (_whole, _positioned)), _general]
    else:
        some = pick(rng, (_whole, _listed, _positioned))
        last = pick(rng, (_related, _positioned, _listed, _general))
        kinds = [_related, _listed, some, _general, last]
    captions: list[str] = []
    while kinds:
        kind = kinds.pop(int(rng.random() * len(kinds)))
        tries, caption = 0, None
        while caption is None or len(caption) > MAX_LENGTH or caption in captions:
            # Some scenes allow no caption of that kind, or none that is short enough and not yet taken.
            caption = (kind if tries < _WORDINGS else _whole)(scene, rng)
            tries += 1
        captions.append(caption)
    return tuple(captions)


def _whole(scene: Scene, rng: Random) -> str:
    """One thing with most that is to say of it: "a lone striped pink heart in the desert"."""
    words = _words(pick(rng, scene.things), rng, 0.85)
    rest = len(scene.things) - 1
    if rest:
        others = pick(rng, _OTHERS) if rest == 1 else f"{_COUNTS[rest]} more shapes"
        return _maybe_placed(f"{_counted(words, 1)} and {others}", scene, rng, 0.7)
    opening = pick(rng, ("", "", "", "a single ", "just ", "a lone ", "there is only "))
    phrase = opening + (words if opening.startswith("a ") else _counted(words, 1))
    if not opening and rng.random() < 0.3:
        return f"{_VIEWS[scene.background]} with {phrase}"
    return f"{phrase} {pick(rng, _PLACES[scene.background])}"


def _related(scene: Scene, rng: Random) -> str | None:
    """Two things and how they lie to each other: "a small striped red star left of a big blue ring"."""
    a, b = pick(rng, scene.things), pick(rng, scene.things)
    relations = _relations(a, b)
    if a == b or not relations:
        return None
    relation = pick(rng, _RELATIONS[pick(rng, relations)])
    first, second = _counted(_words(a, rng, 0.5), 1), _counted(_words(b, rng, 0.5), 1)
    if first == second:
        second = "another" + second[second.index(" ") :]
    verb = pick(rng, ("", "", "", "is ", "sits ", "floats "))
    opening = "there is " if not verb and rng.random() < 0.2 else ""
    return _maybe_placed(f"{opening}{first} {verb}{relation} {second}", scene, rng, 0.4)


def _listed(scene: Scene, rng: Random) -> str:
    """All things by colour and shape, like ones together: "two red stars and a blue ring in the snow"."""
    order = list(scene.things)
    things = [order.pop(int(rng.random() * len(order))) for _ in scene.things]
    groups = Counter(f"{t.colour} {t.shape}" for t in things)
    if len(groups) == len(things):  # told apart already, so a size or pattern may be added to any
        groups = Counter(_words(t, rng, pick(rng, (0.0, 0.0, 0.4))) for t in things)
    phrase = _and([_counted(words, n) for words, n in groups.items()])
    if rng.random() < 0.25:
        return f"{_VIEWS[scene.background]} with {phrase}"
    return _maybe_placed(phrase, scene, rng, 0.75)


def _positioned(scene: Scene, rng: Random) -> str | None:
    """A thing and where in the picture it is: "a yellow drop in the top left corner"."""
    thing = pick(rng, scene.things)
    positions = _positions(thing)
    if not positions:
        return None
    phrase = f"{_counted(_words(thing, rng, 0.5), 1)} {pick(rng, positions)}"
    form = rng.random()
    if form < 0.35:
        return f"{pick(rng, _PLACES[scene.background])}, {phrase}"
    if form < 0.6:
        return f"{_VIEWS[scene.background]} with {phrase}"
    return f"there is {phrase}" if form < 0.75 else phrase


def _general(scene: Scene, rng: Random) -> str:
    """What one sees at a glance: "two things on a green field"."""
    things, noun = scene.things, pick(rng, _ANY)
    colours, shapes, sizes, textures = (
        Counter(getattr(t, field) for t in things) for field in ("colour", "shape", "size", "texture")
    )
    if len(things) == 1:
        thing = things[0]
        phrases = [f"one {noun}", f"something {thing.colour}", _counted(thing.shape, 1)]
        if thing.size in _SIZES:
            phrases.append(_counted(f"{pick(rng, _SIZES[thing.size])} {thing.colour} {noun}", 1))
        return f"{pick(rng, phrases)} {pick(rng, _PLACES[scene.background])}"
    many = _COUNTS[len(things)]
    phrases = [f"{many} {noun}s", f"some {noun}s"]
    if len(colours) >= 3:
        phrases.append(f"colourful {noun}s")
    if len(colours) == 1:
        phrases += [f"{many} {things[0].colour} {noun}s"] * 3
    if len(shapes) == 1:
        phrases += [f"{many} {_plural(things[0].shape)}"] * 3
    if len(sizes) == 1 and things[0].size in _SIZES:
        phrases += [f"{many} {pick(rng, _SIZES[things[0].size])} {noun}s"] * 2
    if len(textures) == 1 and things[0].texture != "solid":
        phrases += [f"{many} {pick(rng, _TEXTURES[things[0].texture])} {noun}s"] * 2
    if len(colours) >= 2 and len(things) <= 3:
        phrases += [_and([_counted(f"{colour} {noun}", n) for colour, n in colours.items()])] * 2
    if len(shapes) >= 2:
        phrases += [_and([_counted(shape, n) for shape, n in shapes.items()])] * 2
    return f"{pick(rng, phrases)} {pick(rng, _PLACES[scene.background])}"


def _words(thing: Thing, rng: Random, detail: float) -> str:
    """Colour and shape; with chance `detail` each, size and texture, unless they are nothing special."""
    words = []
    if thing.size in _SIZES and rng.random() < detail:
        words.append(pick(rng, _SIZES[thing.size]))
    if rng.random() < (detail if thing.texture != "solid" else detail / 6):
        words.append(pick(rng, _TEXTURES[thing.texture]))
    return " ".join([*words, thing.colour, pick(rng, _NOUNS.get(thing.shape, (thing.shape,)))])


def _relations(a: Thing, b: Thing) -> list[str]:
    """How `a` lies to `b`, as keys of _RELATIONS: only what no viewer would dispute."""
    dx, dy = b.x - a.x, b.y - a.y
    relations = []
    if abs(dx) >= abs(dy) + _CLEAR:
        relations.append("left" if dx > 0 else "right")
    if abs(dy) >= abs(dx) + _CLEAR:
        relations.append("above" if dy > 0 else "below")
    reach = a.radius + b.radius + _CLOSE
    if abs(dx) >= abs(dy) and dx * dx + dy * dy <= reach * reach:
        relations.append("beside")
    return relations


def _positions(thing: Thing) -> list[str]:
    """Where in the picture `thing` is, as far as it is clear."""
    side = "left" if thing.x < _NEAR else "right" if thing.x > 1000 - _NEAR else None
    level = "top" if thing.y < _NEAR else "bottom" if thing.y > 1000 - _NEAR else None
    if side and level:
        return [f"in the {level} {side} corner", f"at the {level} {side}"]
    if side:
        return [f"on the {side}", f"on the {side} side"]
    if level:
        return [f"at the {level}", f"near the {level}"]
    central = all(abs(c - 500) <= _CENTRAL for c in (thing.x, thing.y))
    return ["in the middle", "in the centre"] if central else []


def _maybe_placed(caption: str, scene: Scene, rng: Random, chance: float) -> str:
    return f"{caption} {pick(rng, _PLACES[scene.background])}" if rng.random() < chance else caption


def _counted(words: str, n: int) -> str:
    if n > 1:
        return f"{_COUNTS[n]} {_plural(words)}"
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plural(words: str) -> str:
    return words + ("es" if words.endswith("s") else "s")


def _and(phrases: list[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
