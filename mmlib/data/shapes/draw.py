"""Draws a scene of the shapes set at any size: the same scene, the same bytes on every machine.

Every shape is a signed distance (negative inside), built from half-planes and circles; edges are
smoothed by that distance, and by averaging `SUPERSAMPLE`² integers to a pixel. Only operations that
IEEE 754 rounds exactly are used, one at a time (see `mmlib.data.shapes.backdrop`).

Shapes: x_HW and y_HW are a thing's own coordinates, its radius being 1, y down.
"""

import numpy as np
from PIL import Image

from mmlib.data.shapes.backdrop import blend, cover, paint_backdrop, wave
from mmlib.data.shapes.scene import Scene, Thing

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
    canvas_SSC = paint_backdrop(scene.background, scene.variation, side)
    for thing in scene.things:
        _draw_thing(canvas_SSC, thing)
    fine_SSC = np.floor(np.minimum(np.maximum(canvas_SSC, 0.0), 255.0) + 0.5).astype(np.uint16)
    total = sum(
        fine_SSC[i::SUPERSAMPLE, j::SUPERSAMPLE] for i in range(SUPERSAMPLE) for j in range(SUPERSAMPLE)
    )
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
        share = _TEXTURES[thing.texture](
            (dx * cos + dy * sin) * radius, (dy * cos - dx * sin) * radius, 1 / side
        )
        body = blend(body, accent, share)
    light = np.minimum(np.maximum(0.5 - 0.35 * (dx + dy), 0.0), 1.0)  # from the top left
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
