"""Describes a scene of the shapes set in five ways, as five people would: some exactly, some in general.

Every word of a caption is true of the scene. Lower-case letters, spaces and commas only, 76
characters at most, so that a text encoder of 77 positions reads the whole of it.
"""

from collections import Counter
from random import Random

from mmlib.data.shapes.scene import Scene, Thing, pick

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
_TRIES = 30  # captions of one kind drawn before another kind is taken


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
            caption = (kind if tries < _TRIES else _whole)(scene, rng)
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
