import numpy as np
import pytest

from mmlib.data.shapes.draw import PALETTE, draw
from mmlib.data.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing


def picture(size=64, background="paper", variation=7, **changes) -> np.ndarray:
    """A big blue circle in the middle, or what `changes` makes of it, as an int array."""
    values = {
        "shape": "circle",
        "colour": "blue",
        "size": "big",
        "texture": "solid",
        "x": 500,
        "y": 500,
    } | changes
    scene = Scene(background, variation, (Thing(**values, radius=210, turn=0),))
    return np.asarray(draw(scene, size)).astype(int)


def test_a_thing_has_its_colour_and_place():
    for colour in COLOURS:
        for shape in ("circle", "square", "heart"):
            x, y = (int(c * 64) for c in (0.3, 0.7))
            found = picture(shape=shape, colour=colour, x=300, y=700)[y, x]
            distance = {name: np.abs(np.array(rgb) - found).sum() for name, (rgb, _) in PALETTE.items()}
            assert min(distance, key=distance.get) == colour


def test_shapes_and_textures_look_different():
    pictures = [picture(shape=shape) for shape in SHAPES] + [picture(texture=t) for t in TEXTURES[1:]]
    for i, one in enumerate(pictures):
        for other in pictures[i + 1 :]:
            assert (np.abs(one - other).max(axis=-1) > 40).sum() > 30


def test_colours_of_things_stand_out_from_their_background():
    for background, excluded in BACKGROUNDS.items():
        for colour in set(COLOURS) - set(excluded):
            with_thing = picture(background=background, colour=colour)
            without = np.asarray(draw(Scene(background, 7, ()), 64)).astype(int)
            middle = np.s_[26:38, 26:38]
            assert np.abs(with_thing - without)[middle].sum(axis=-1).mean() > 60, (background, colour)


def test_edges_are_smooth():
    row = picture(shape="circle", colour="black")[:, :, 0]
    middles = ((row > 60) & (row < 200)).sum()
    assert middles > 20  # pixels that are neither the black disc nor the pale paper


def test_one_scene_at_two_sizes_is_the_same_picture():
    for background in BACKGROUNDS:
        small, large = picture(40, background, shape="star"), picture(160, background, shape="star")
        shrunk = large.reshape(40, 4, 40, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - shrunk).mean() < 8, background


def test_variations_of_a_background_differ():
    for background in BACKGROUNDS:
        assert (
            picture(background=background, variation=1) != picture(background=background, variation=2)
        ).any()


def test_a_thing_at_the_border_is_drawn_there():
    changed = picture(x=235, y=765) != np.asarray(draw(Scene("paper", 7, ()), 64))
    assert changed[35:63, 1:29].any(axis=-1).sum() > 400
    assert not changed[:30].any()
    assert not changed[:, 36:].any()


def test_a_size_too_small_is_refused():
    with pytest.raises(ValueError, match="needs size >= 16 pixels, found 15"):
        picture(15)
