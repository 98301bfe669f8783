"""Draws a scene of the shapes set at any size: the same scene, the same bytes on every machine.

Every shape is a signed distance (negative inside), built from half-planes and circles; edges are
smoothed by that distance, and by averaging `SUPERSAMPLE`² integers to a pixel.  Backgrounds are painted
from a name and a variation.

The same on every machine: coordinates, `+ - * /`, square roots, comparisons and 32-bit hashes, one
NumPy operation at a time. No sine or power, whose last bit depends on the C library, and no sums
over arrays, whose order depends on the processor.

Shapes: canvas_SSC (S, S, 3), S the side in pixels, colours in 0..255 as float64; u_1S runs from left
to right and v_S1 from top to bottom, both over 0..1 at pixel centres.  x and y are a thing's own
coordinates, its radius being 1, y down.
"""

from itertools import pairwise
from random import Random

import numpy as np
from PIL import Image

from mmlib.data.shapes.scene import Scene, Thing, between, pick

RENDERER_VERSION = 2  # raise it with every change of what a scene looks like
SUPERSAMPLE = 2
MIN_SIZE = 16  # pixels; below it a small thing has no shape left

# Colour of a thing, and of the pattern on it.
PALETTE = {
    "red": ((214, 40, 44), (255, 206, 196)),
    "orange": ((246, 130, 20), (255, 228, 178)),
    "yellow": ((255, 214, 40), (190, 132, 8)),
    "green": ((36, 148, 66), (196, 240, 186)),
    "blue": ((34, 88, 204), (190, 220, 255)),
    "purple": ((126, 52, 176), (230, 200, 250)),
    "pink": ((255, 132, 186), (255, 236, 244)),
    "brown": ((118, 68, 36), (222, 184, 146)),
    "white": ((252, 252, 250), (150, 164, 184)),
    "black": ((34, 34, 40), (176, 180, 190)),
}

_S3 = 0.8660254037844386  # sine of 60 degrees
_D = 0.7071067811865476  # sine of 45 degrees
_FIVE = (  # directions of a five-pointed star, the first one up
    (0.0, -1.0),
    (0.9510565162951535, -0.3090169943749474),
    (0.5877852522924731, 0.8090169943749475),
    (-0.5877852522924731, 0.8090169943749475),
    (-0.9510565162951535, -0.3090169943749474),
)


def draw(scene: Scene, size: int) -> Image.Image:
    """`scene` as an RGB picture of `size` × `size` pixels.

    Raises:
        ValueError: `size` is below 16 pixels.
    """
    if size < MIN_SIZE:
        raise ValueError(
            f"a picture of shapes needs size >= {MIN_SIZE} pixels, found {size}; ask for a larger"
        )
    side = size * SUPERSAMPLE
    centres_S = (np.arange(side) + 0.5) / side
    u_1S, v_S1 = centres_S[None, :], centres_S[:, None]
    paint, *stops = _BACKDROPS[scene.background]
    rng = Random(f"backdrop:{scene.background}:{scene.variation}")
    canvas_SSC = paint(_gradient(u_1S, v_S1, *stops), u_1S, v_S1, rng)
    for thing in scene.things:
        _draw_thing(canvas_SSC, thing)
    fine_SSC = np.floor(np.clip(canvas_SSC, 0.0, 255.0) + 0.5).astype(np.uint16)
    total = fine_SSC.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE, 3).sum((1, 3), dtype=np.uint16)
    count = SUPERSAMPLE * SUPERSAMPLE
    return Image.fromarray(((total + count // 2) // count).astype(np.uint8))


def _draw_thing(canvas_SSC: np.ndarray, thing: Thing) -> None:
    """Lays one thing and its shadow over the canvas, in place."""
    side = canvas_SSC.shape[0]
    x0, y0, radius = thing.x / 1000, thing.y / 1000, thing.radius / 1000
    reach = radius * 1.2 + 0.05  # the shape and its shadow
    left, right = max(int((x0 - reach) * side), 0), min(int((x0 + reach) * side) + 1, side)
    top, bottom = max(int((y0 - reach) * side), 0), min(int((y0 + reach) * side) + 1, side)
    patch = canvas_SSC[top:bottom, left:right]
    dx = ((np.arange(left, right) + 0.5) / side - x0)[None, :] / radius
    dy = ((np.arange(top, bottom) + 0.5) / side - y0)[:, None] / radius
    half = thing.turn / 1000
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)

    def distance(shift_x: float, shift_y: float) -> np.ndarray:
        x, y = dx - shift_x / radius, dy - shift_y / radius
        return _SHAPES[thing.shape](x * cos + y * sin, y * cos - x * sin) * radius

    shadow = cover(distance(0.012, 0.022), 0.06)
    patch = blend(patch, (24, 24, 48), shadow * shadow * 0.42)

    edge = distance(0.0, 0.0)
    colour, accent = PALETTE[thing.colour]
    body = np.zeros_like(patch) + np.array(colour, dtype=np.float64)
    if thing.texture != "solid":
        x, y = (dx * cos + dy * sin) * radius, (dy * cos - dx * sin) * radius
        body = blend(body, accent, _TEXTURES[thing.texture](x, y, 1 / side))
    light = np.clip(0.5 - 0.35 * (dx + dy), 0.0, 1.0)  # from the top left
    body = blend(body, (255, 255, 255), light * light * 0.16)
    rim = np.array(colour, dtype=np.float64) * (0.72 if thing.colour == "white" else 0.58)
    body = blend(body, rim, cover(-edge - 0.012, 1 / side) * 0.85)
    canvas_SSC[top:bottom, left:right] = blend(patch, body, cover(edge, 1 / side))


def _length(x, y):
    return np.sqrt(x * x + y * y)


def _circle(x, y):
    return _length(x, y) - 0.92


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _triangle(x, y):
    y = y - 0.18
    return np.maximum(y, np.abs(x) * _S3 - y * 0.5) - 0.54


def _star(x, y):
    # Inside a pentagram one lies beyond at most one of its five lines: the second largest distance counts.
    first = second = np.full(np.broadcast(x, y).shape, -np.inf)
    for nx, ny in _FIVE:
        line = x * nx + (y - 0.06) * ny - 0.36
        first, second = np.maximum(first, line), np.maximum(second, np.minimum(first, line))
    return second


def _heart(x, y):
    x, y, s = np.abs(x), y - 0.06, 0.82  # a square on its corner, and a circle on each upper side
    return np.minimum((x + np.abs(y) - s) * _D, _length(x - s / 2, y + s / 2) - s * _D)


def _ring(x, y):
    return np.abs(_length(x, y) - 0.68) - 0.27


def _crescent(x, y):
    return np.maximum(_length(x - 0.12, y) - 0.98, 0.8 - _length(x - 0.6, y))


def _hexagon(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(x * _S3 + y * 0.5, y) - 0.84


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.9, y - 0.34), np.maximum(x - 0.34, y - 0.9))


def _drop(x, y):
    # The circle around (0, 0.36) and its two tangents from (0, -1.04); 0.64 / 1.4 is their slope's sine.
    sin, cos = 0.64 / 1.4, 0.8893932809299074
    cone = np.maximum(np.abs(x) * cos - (y + 1.04) * sin, y - (0.36 - 0.64 * sin))
    return np.minimum(_length(x, y - 0.36) - 0.64, cone)


def _diamond(x, y):
    return np.abs(x) * 0.8319 + np.abs(y) * 0.5549 - 0.5549  # two thirds as wide as high


def _flower(x, y):
    petals = np.minimum.reduce([_length(x - 0.56 * nx, y - 0.56 * ny) - 0.4 for nx, ny in _FIVE])
    return np.maximum(np.minimum(petals, _length(x, y) - 0.5), 0.22 - _length(x, y))


def _striped(x, y, pixel):
    return cover(wave((x + y) * _D, 0.084) - 0.019, pixel)


def _dotted(x, y, pixel):
    rows = _length(wave(x, 0.11), wave(y, 0.11))
    staggered = _length(wave(x + 0.055, 0.11), wave(y + 0.055, 0.11))
    return cover(np.minimum(rows, staggered) - 0.022, pixel)


def _checked(x, y, pixel):
    across, down = (cover(wave(w + 0.03, 0.12) - 0.03, pixel) for w in (x, y))
    return across + down - 2.0 * across * down


_SHAPES = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart,
    "ring": _ring, "crescent": _crescent, "hexagon": _hexagon, "cross": _cross, "drop": _drop,
    "diamond": _diamond, "flower": _flower,
}  # fmt: skip
_TEXTURES = {"striped": _striped, "dotted": _dotted, "checked": _checked}


def cover(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of each pixel that lies inside an edge, from the signed distance to it (negative inside)."""
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def blend(canvas_SSC: np.ndarray, colour, share_SS: np.ndarray) -> np.ndarray:
    """`canvas_SSC` with `colour` laid over it; `share_SS` of 0..1 is how much of it each pixel takes."""
    return canvas_SSC + (np.asarray(colour, dtype=np.float64) - canvas_SSC) * share_SS[..., None]


def wave(x: np.ndarray, period: float) -> np.ndarray:
    """Distance of `x` to the nearest multiple of `period`: a triangle wave."""
    return np.abs(x - np.floor(x / period + 0.5) * period)


def _gradient(u_1S, v_S1, *stops: tuple) -> np.ndarray:
    """Colours from top to bottom, evenly spaced."""
    position_S1 = v_S1 * (len(stops) - 1)
    colour_S1C = np.zeros((*v_S1.shape, 3)) + np.array(stops[0], dtype=np.float64)
    for i, (above, below) in enumerate(pairwise(stops)):
        step = np.array(below, dtype=np.float64) - np.array(above, dtype=np.float64)
        colour_S1C = colour_S1C + step * np.clip(position_S1 - i, 0.0, 1.0)[..., None]
    return colour_S1C + np.zeros((1, u_1S.shape[1], 1))


def _hashed(rows: np.ndarray, columns: np.ndarray, key: int) -> np.ndarray:
    """A number in 0..1 for each pair of a row and a column, both 1-D integers; (rows, columns)."""
    h = rows.astype(np.uint32)[:, None] * np.uint32(0x9E3779B1)
    h = (h + columns.astype(np.uint32) * np.uint32(0x85EBCA77)) ^ np.uint32(key)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # lowbias32 by Chris Wellons
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return (h ^ (h >> np.uint32(16))) / 4294967296.0


def _noise(x: np.ndarray, y: np.ndarray, key: int) -> np.ndarray:
    """Smooth value noise in 0..1; `x` and `y` in lattice cells, given as a row and a column."""
    x, y = x[0], y[:, 0]
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, (y - y0)[:, None]
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    column, row = x0.astype(np.int64), y0.astype(np.int64)
    lattice = _hashed(np.arange(row[-1] + 2), np.arange(column[-1] + 2), key)
    top, bottom = lattice[row], lattice[row + 1]
    top = top[:, column] + (top[:, column + 1] - top[:, column]) * fx
    bottom = bottom[:, column] + (bottom[:, column + 1] - bottom[:, column]) * fx
    return top + (bottom - top) * fy


def _specks(u_1S, v_S1, rng: Random, cells: int, chance: float, radius: float) -> np.ndarray:
    """Little round specks, at most one in each of cells × cells; share of each pixel covered."""
    key = between(rng, 0, 2**31)
    x, y = u_1S[0] * cells, v_S1[:, 0] * cells
    column, row = x.astype(np.int64), y.astype(np.int64)
    every = np.arange(cells)

    def at(salt: int) -> np.ndarray:
        return _hashed(every, every, key + salt)[row][:, column]

    dx = (x - column) - (0.25 + 0.5 * at(1))
    dy = (y - row)[:, None] - (0.25 + 0.5 * at(2))
    spread = radius * cells * (0.6 + 0.8 * at(3))
    return cover(np.sqrt(dx * dx + dy * dy) - spread, cells / len(x)) * (at(4) < chance)


def _ridges(canvas_SSC, u_1S, v_S1, rng: Random, base: float, height: float, colours: list[tuple]):
    """Layers of rolling hills, the farthest first, the nearest lowest; each paler at its crest."""
    pixel = 1.0 / u_1S.shape[1]
    for layer, colour in enumerate(colours):
        crest_1S = np.zeros_like(u_1S) + base + layer * (0.97 - base) / (len(colours) + 0.6)
        for _ in range(3):
            centre, width = between(rng, -100, 1100) / 1000, between(rng, 120, 300) / 1000
            t = (u_1S - centre) / width
            crest_1S = crest_1S - height * between(rng, 30, 100) / 100 / (1.0 + t * t)
        depth_SS = v_S1 - crest_1S
        light_SS = np.clip(1.0 - depth_SS / 0.22, 0.0, 1.0) * 0.22
        shade_SSC = blend(np.zeros_like(canvas_SSC) + np.array(colour, float), (255, 255, 235), light_SS)
        canvas_SSC = canvas_SSC + (shade_SSC - canvas_SSC) * cover(-depth_SS, pixel)[..., None]
    return canvas_SSC


def _meadow(canvas_SSC, u_1S, v_S1, rng):
    blades_SS = _noise(u_1S * 46, v_S1 * 13, between(rng, 0, 2**31))
    canvas_SSC = blend(canvas_SSC, (70, 138, 62), blades_SS * 0.38)
    return blend(canvas_SSC, (255, 252, 226), _specks(u_1S, v_S1, rng, 11, 0.22, 0.011))


def _hills(canvas_SSC, u_1S, v_S1, rng):
    greens = [(150, 196, 150), (112, 174, 110), (74, 146, 84)]
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.62, 0.16, greens)


def _sea(canvas_SSC, u_1S, v_S1, rng):
    pixel = 1.0 / u_1S.shape[1]
    for layer in range(6):
        t = u_1S / 0.17 + between(rng, 0, 999) / 1000
        t = t - np.floor(t)
        depth_SS = v_S1 - (0.34 + layer * 0.12) + 0.16 * t * (1.0 - t)  # scalloped arcs
        deep = layer / 5
        colour = (112 - 74 * deep, 188 - 74 * deep, 214 - 40 * deep)
        canvas_SSC = blend(canvas_SSC, (232, 246, 248), cover(-depth_SS - 0.011, pixel))
        canvas_SSC = blend(canvas_SSC, colour, cover(-depth_SS, pixel))
    return canvas_SSC


def _desert(canvas_SSC, u_1S, v_S1, rng):
    sands = [(236, 200, 146), (226, 180, 118), (210, 156, 94)]
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.55, 0.13, sands)


def _night(canvas_SSC, u_1S, v_S1, rng):
    for cells, chance, radius in ((16, 0.3, 0.005), (7, 0.3, 0.009)):
        canvas_SSC = blend(canvas_SSC, (255, 250, 220), _specks(u_1S, v_S1, rng, cells, chance, radius))
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.93, 0.08, [(20, 24, 52)])


def _snow(canvas_SSC, u_1S, v_S1, rng):
    whites = [(206, 220, 236), (220, 231, 243), (234, 241, 249)]
    canvas_SSC = _ridges(canvas_SSC, u_1S, v_S1, rng, 0.6, 0.14, whites)
    return blend(canvas_SSC, (255, 255, 255), _specks(u_1S, v_S1, rng, 9, 0.6, 0.010))


def _sunset(canvas_SSC, u_1S, v_S1, rng):
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.9, 0.12, [(120, 66, 112), (74, 44, 90)])


def _paper(canvas_SSC, u_1S, v_S1, rng):
    pixel, shift = 1.0 / u_1S.shape[1], between(rng, 0, 99) / 1000
    line_1S, line_S1 = (cover(wave(w + shift, 0.1) - 0.005, pixel) for w in (u_1S, v_S1))
    canvas_SSC = blend(canvas_SSC, (150, 188, 214), (line_1S + line_S1 - line_1S * line_S1) * 0.75)
    return blend(canvas_SSC, (216, 202, 172), _noise(u_1S * 5, v_S1 * 5, between(rng, 0, 2**31)) * 0.18)


def _tablecloth(canvas_SSC, u_1S, v_S1, rng):
    tint = pick(rng, ((226, 120, 128), (236, 150, 140)))
    pixel, shift = 1.0 / u_1S.shape[1], between(rng, 0, 199) / 1000
    for w in (u_1S, v_S1):
        band = cover(wave(w + shift, 0.2) - 0.05, pixel)
        canvas_SSC = blend(canvas_SSC, tint, band * 0.42 + np.zeros(canvas_SSC.shape[:2]))
    return canvas_SSC


def _bricks(canvas_SSC, u_1S, v_S1, rng):
    rows, columns, pixel = 8, 4, 1.0 / u_1S.shape[1]
    row_S1 = np.floor(v_S1 * rows)
    x_SS = u_1S * columns + row_S1 * 0.5 + between(rng, 0, 99) / 100
    tone = _hashed(np.arange(rows), np.arange(columns + rows), between(rng, 0, 2**31))
    tone_SS = tone[row_S1.astype(np.int64), np.floor(x_SS).astype(np.int64)]
    canvas_SSC = blend(canvas_SSC, (150, 84, 76), tone_SS * 0.5)
    seam_SS = np.minimum(wave(x_SS, 1.0) / columns, wave(v_S1, 1.0 / rows))
    return blend(canvas_SSC, (232, 216, 200), cover(seam_SS - 0.010, pixel))


def _wood(canvas_SSC, u_1S, v_S1, rng):
    planks, pixel = 4, 1.0 / u_1S.shape[1]
    plank_S = np.floor(v_S1 * planks)
    tone_S1 = _hashed(np.arange(planks), np.arange(1), between(rng, 0, 2**31))[plank_S.astype(np.int64)[:, 0]]
    grain_SS = _noise(u_1S * 4, v_S1 * 44, between(rng, 0, 2**31))
    canvas_SSC = blend(canvas_SSC, (164, 116, 72), grain_SS * 0.45 + tone_S1 * 0.25)
    seam_S1 = cover(wave(v_S1 + 0.5 / planks, 1.0 / planks) * -1.0 + 0.5 / planks - 0.008, pixel)
    return blend(canvas_SSC, (120, 80, 50), seam_S1 * 0.8 + np.zeros(canvas_SSC.shape[:2]))


def _sky(canvas_SSC, u_1S, v_S1, rng):
    key = between(rng, 0, 2**31)
    cloud_SS = np.zeros(canvas_SSC.shape[:2])
    for octave, weight in enumerate((0.55, 0.28, 0.17)):
        cells = 3 * 2**octave
        cloud_SS = cloud_SS + weight * _noise(u_1S * cells, v_S1 * cells * 1.7, key + octave)
    return blend(canvas_SSC, (255, 255, 255), np.clip((cloud_SS - 0.46) * 4.0, 0.0, 0.92))


_BACKDROPS = {  # what paints each, over a gradient of these colours from top to bottom
    "meadow": (_meadow, (186, 220, 138), (140, 194, 96), (98, 164, 74)),
    "hills": (_hills, (160, 206, 238), (214, 234, 240), (250, 244, 220), (250, 244, 220)),
    "sea": (_sea, (206, 232, 244), (240, 244, 236), (240, 244, 236)),
    "desert": (_desert, (158, 208, 220), (250, 232, 202), (250, 232, 202)),
    "night": (_night, (18, 22, 58), (34, 42, 94), (70, 74, 136)),
    "snow": (_snow, (168, 188, 212), (206, 218, 232), (222, 230, 240)),
    "sunset": (_sunset, (104, 78, 150), (206, 108, 146), (250, 162, 110), (255, 214, 140)),
    "paper": (_paper, (252, 248, 236), (246, 240, 224)),
    "tablecloth": (_tablecloth, (255, 252, 248), (250, 244, 240)),
    "bricks": (_bricks, (206, 134, 112), (188, 114, 96)),
    "wood": (_wood, (222, 184, 136), (206, 164, 114)),
    "sky": (_sky, (92, 164, 226), (156, 206, 240), (206, 232, 246)),
}
