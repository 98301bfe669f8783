"""The backgrounds of the shapes set, painted from a name and a variation.

The same on every machine: coordinates, `+ - * /`, square roots, comparisons and 32-bit hashes, one
NumPy operation at a time. No sine or power, whose last bit depends on the C library, and no sums
over arrays, whose order depends on the processor.

Shapes: canvas_SSC (S, S, 3), S the side in pixels, colours in 0..255 as float64; u_1S runs from left
to right and v_S1 from top to bottom, both over 0..1 at pixel centres.
"""

from itertools import pairwise
from random import Random

import numpy as np

from mmlib.data.shapes.scene import between, pick

Colour = tuple[int, int, int]


def paint_backdrop(name: str, variation: int, side: int) -> np.ndarray:
    """The background `name`, as canvas_SSC with S = `side` pixels."""
    centres_S = (np.arange(side) + 0.5) / side
    rng = Random(f"backdrop:{name}:{variation}")
    return _PAINTERS[name](centres_S[None, :], centres_S[:, None], rng)


def cover(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of each pixel that lies inside an edge, from the signed distance to it (negative inside)."""
    return np.minimum(np.maximum(0.5 - distance / pixel, 0.0), 1.0)


def blend(canvas_SSC: np.ndarray, colour, share_SS: np.ndarray) -> np.ndarray:
    """`canvas_SSC` with `colour` laid over it; `share_SS` of 0..1 is how much of it each pixel takes."""
    return canvas_SSC + (np.asarray(colour, dtype=np.float64) - canvas_SSC) * share_SS[..., None]


def wave(x: np.ndarray, period: float) -> np.ndarray:
    """Distance of `x` to the nearest multiple of `period`: a triangle wave."""
    return np.abs(x - np.floor(x / period + 0.5) * period)


def _gradient(u_1S, v_S1, *stops: Colour) -> np.ndarray:
    """Colours from top to bottom, evenly spaced."""
    position_S1 = v_S1 * (len(stops) - 1)
    colour_S1C = np.zeros((*v_S1.shape, 3)) + np.array(stops[0], dtype=np.float64)
    for i, (above, below) in enumerate(pairwise(stops)):
        step = np.array(below, dtype=np.float64) - np.array(above, dtype=np.float64)
        colour_S1C = colour_S1C + step * np.minimum(np.maximum(position_S1 - i, 0.0), 1.0)[..., None]
    return colour_S1C + np.zeros((1, u_1S.shape[1], 1))


def _hashed(rows: np.ndarray, columns: np.ndarray, key: int) -> np.ndarray:
    """A number in 0..1 for each pair of a row and a column, both 1-D integers; (rows, columns)."""
    h = rows.astype(np.uint32)[:, None] * np.uint32(0x9E3779B1) + columns.astype(np.uint32) * np.uint32(
        0x85EBCA77
    )
    h = h ^ np.uint32(key)
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


def _ridges(canvas_SSC, u_1S, v_S1, rng: Random, base: float, height: float, colours: list[Colour]):
    """Layers of rolling hills, the farthest first, the nearest lowest; each paler at its crest."""
    pixel = 1.0 / u_1S.shape[1]
    for layer, colour in enumerate(colours):
        crest_1S = np.zeros_like(u_1S) + base + layer * (0.97 - base) / (len(colours) + 0.6)
        for _ in range(3):
            centre, width = between(rng, -100, 1100) / 1000, between(rng, 120, 300) / 1000
            t = (u_1S - centre) / width
            crest_1S = crest_1S - height * between(rng, 30, 100) / 100 / (1.0 + t * t)
        depth_SS = v_S1 - crest_1S
        light_SS = np.minimum(np.maximum(1.0 - depth_SS / 0.22, 0.0), 1.0) * 0.22
        shade_SSC = blend(np.zeros_like(canvas_SSC) + np.array(colour, float), (255, 255, 235), light_SS)
        canvas_SSC = canvas_SSC + (shade_SSC - canvas_SSC) * cover(-depth_SS, pixel)[..., None]
    return canvas_SSC


def _meadow(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (186, 220, 138), (140, 194, 96), (98, 164, 74))
    blades_SS = _noise(u_1S * 46, v_S1 * 13, between(rng, 0, 2**31))
    canvas_SSC = blend(canvas_SSC, (70, 138, 62), blades_SS * 0.38)
    return blend(canvas_SSC, (255, 252, 226), _specks(u_1S, v_S1, rng, 11, 0.22, 0.011))


def _hills(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (160, 206, 238), (214, 234, 240), (250, 244, 220), (250, 244, 220))
    greens = [(150, 196, 150), (112, 174, 110), (74, 146, 84)]
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.62, 0.16, greens)


def _sea(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (206, 232, 244), (240, 244, 236), (240, 244, 236))
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


def _desert(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (158, 208, 220), (250, 232, 202), (250, 232, 202))
    return _ridges(
        canvas_SSC, u_1S, v_S1, rng, 0.55, 0.13, [(236, 200, 146), (226, 180, 118), (210, 156, 94)]
    )


def _night(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (18, 22, 58), (34, 42, 94), (70, 74, 136))
    for cells, chance, radius in ((16, 0.3, 0.005), (7, 0.3, 0.009)):
        canvas_SSC = blend(canvas_SSC, (255, 250, 220), _specks(u_1S, v_S1, rng, cells, chance, radius))
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.93, 0.08, [(20, 24, 52)])


def _snow(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (168, 188, 212), (206, 218, 232), (222, 230, 240))
    whites = [(206, 220, 236), (220, 231, 243), (234, 241, 249)]
    canvas_SSC = _ridges(canvas_SSC, u_1S, v_S1, rng, 0.6, 0.14, whites)
    return blend(canvas_SSC, (255, 255, 255), _specks(u_1S, v_S1, rng, 9, 0.6, 0.010))


def _sunset(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (104, 78, 150), (206, 108, 146), (250, 162, 110), (255, 214, 140))
    return _ridges(canvas_SSC, u_1S, v_S1, rng, 0.9, 0.12, [(120, 66, 112), (74, 44, 90)])


def _paper(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (252, 248, 236), (246, 240, 224))
    pixel, shift = 1.0 / u_1S.shape[1], between(rng, 0, 99) / 1000
    line_1S, line_S1 = (cover(wave(w + shift, 0.1) - 0.005, pixel) for w in (u_1S, v_S1))
    canvas_SSC = blend(canvas_SSC, (150, 188, 214), (line_1S + line_S1 - line_1S * line_S1) * 0.75)
    return blend(canvas_SSC, (216, 202, 172), _noise(u_1S * 5, v_S1 * 5, between(rng, 0, 2**31)) * 0.18)


def _tablecloth(u_1S, v_S1, rng):
    tint = pick(rng, ((226, 120, 128), (236, 150, 140)))
    canvas_SSC = _gradient(u_1S, v_S1, (255, 252, 248), (250, 244, 240))
    pixel, shift = 1.0 / u_1S.shape[1], between(rng, 0, 199) / 1000
    for w in (u_1S, v_S1):
        band = cover(wave(w + shift, 0.2) - 0.05, pixel)
        canvas_SSC = blend(canvas_SSC, tint, band * 0.42 + np.zeros(canvas_SSC.shape[:2]))
    return canvas_SSC


def _bricks(u_1S, v_S1, rng):
    rows, columns, pixel = 8, 4, 1.0 / u_1S.shape[1]
    row_S1 = np.floor(v_S1 * rows)
    x_SS = u_1S * columns + row_S1 * 0.5 + between(rng, 0, 99) / 100
    tone = _hashed(np.arange(rows), np.arange(columns + rows), between(rng, 0, 2**31))
    canvas_SSC = _gradient(u_1S, v_S1, (206, 134, 112), (188, 114, 96))
    tone_SS = tone[row_S1.astype(np.int64), np.floor(x_SS).astype(np.int64)]
    canvas_SSC = blend(canvas_SSC, (150, 84, 76), tone_SS * 0.5)
    seam_SS = np.minimum(wave(x_SS, 1.0) / columns, wave(v_S1, 1.0 / rows))
    return blend(canvas_SSC, (232, 216, 200), cover(seam_SS - 0.010, pixel))


def _wood(u_1S, v_S1, rng):
    planks, pixel = 4, 1.0 / u_1S.shape[1]
    plank_S = np.floor(v_S1 * planks)
    tone_S1 = _hashed(np.arange(planks), np.arange(1), between(rng, 0, 2**31))[plank_S.astype(np.int64)[:, 0]]
    canvas_SSC = _gradient(u_1S, v_S1, (222, 184, 136), (206, 164, 114))
    grain_SS = _noise(u_1S * 4, v_S1 * 44, between(rng, 0, 2**31))
    canvas_SSC = blend(canvas_SSC, (164, 116, 72), grain_SS * 0.45 + tone_S1 * 0.25)
    seam_S1 = cover(wave(v_S1 + 0.5 / planks, 1.0 / planks) * -1.0 + 0.5 / planks - 0.008, pixel)
    return blend(canvas_SSC, (120, 80, 50), seam_S1 * 0.8 + np.zeros(canvas_SSC.shape[:2]))


def _sky(u_1S, v_S1, rng):
    canvas_SSC = _gradient(u_1S, v_S1, (92, 164, 226), (156, 206, 240), (206, 232, 246))
    key = between(rng, 0, 2**31)
    cloud_SS = np.zeros(canvas_SSC.shape[:2])
    for octave, weight in enumerate((0.55, 0.28, 0.17)):
        cells = 3 * 2**octave
        cloud_SS = cloud_SS + weight * _noise(u_1S * cells, v_S1 * cells * 1.7, key + octave)
    return blend(canvas_SSC, (255, 255, 255), np.minimum(np.maximum((cloud_SS - 0.46) * 4.0, 0.0), 0.92))


_PAINTERS = {
    "meadow": _meadow, "hills": _hills, "sea": _sea, "desert": _desert, "night": _night, "snow": _snow,
    "sunset": _sunset, "paper": _paper, "tablecloth": _tablecloth, "bricks": _bricks, "wood": _wood,
    "sky": _sky,
}  # fmt: skip
