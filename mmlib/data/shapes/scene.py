"""What a picture of the shapes set shows, before it is drawn or described: things on a background.

A scene holds only words and integers, so it is the same on every machine, whatever size it is drawn
at. Lengths are thousandths of the picture's side, x to the right and y down, both from the top left.
Chance comes from `random.Random(text).random()` alone: its stream is the one that Python promises to
keep, which it does not for `choice` or `shuffle`, nor NumPy for its generators.
"""

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
