"""Look: copies of a picture are found whatever was done to them, other pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from mmlib.data.leaks import MAX_DISTANCE, SIDE, near_duplicates, perceptual_hash


def picture(seed: int) -> Image.Image:
    """Soft coloured blotches with some grain, 120 × 90: as many low frequencies as a photograph has."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 200, (6, 8, 3), dtype=np.uint8)).resize((120, 90), 3)
    return Image.fromarray((np.asarray(soft) + rng.integers(0, 30, (90, 120, 3))).astype(np.uint8))


def screenshot(number: int) -> Image.Image:
    """A window with a bar and a menu, the same for all, and a large number in it."""
    image = Image.new("RGB", (640, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, 640, 40], fill=(40, 44, 52))
    draw.rectangle([0, 40, 120, 400], fill=(225, 228, 235))
    for line in range(8):
        draw.text((10, 60 + 30 * line), f"entry {line}", fill=(60, 60, 60), font_size=16)
    draw.text((240, 150), str(7919 * (number + 1)), fill=(20, 20, 20), font_size=80)
    return image


def disc(colour: str) -> Image.Image:
    image = Image.new("RGB", (480, 360), "white")
    ImageDraw.Draw(image).ellipse([160, 80, 360, 280], fill=colour)
    return image


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def packed(*images):
    return np.stack([np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images])


PICTURES = [picture(seed) for seed in range(40)]
COPIES = {
    "the same": lambda image: image,
    "mirrored": ImageOps.mirror,
    "smaller": lambda image: image.resize((60, 45)),
    "another aspect": lambda image: image.resize((100, 100)),
    "recompressed": lambda image: jpeg(image, 15),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "several": lambda image: ImageOps.mirror(jpeg(image.resize((80, 60)).convert("L").convert("RGB"), 40)),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found_and_nothing_else(change):
    held_out = packed(*(COPIES[change](image) for image in PICTURES[10:20]))
    found = near_duplicates(packed(*PICTURES), held_out)
    assert sorted(map(tuple, found[:, :2].tolist())) == [(10 + row, row) for row in range(10)]
    assert (found[:, 2] <= MAX_DISTANCE).all()
    assert (np.diff(found[:, 2]) >= 0).all()
    if change in ("the same", "mirrored"):
        assert not found[:, 2].any()


def test_different_pictures_are_far_apart():
    bits = perceptual_hash(packed(*PICTURES))
    distance = np.bitwise_count(bits[:, None] ^ bits)[np.triu_indices(len(bits), 1)]
    assert distance.min() > MAX_DISTANCE
    assert 28 < distance.mean() < 36  # 32 of 64 for hashes that know nothing of each other


def test_the_hash_is_that_of_a_loop_over_the_definition():
    image_HWC = packed(PICTURES[0])[0]
    grey = image_HWC @ [0.299, 0.587, 0.114]
    angle = np.pi / SIDE * (np.arange(SIDE) + 0.5)
    waves = [
        [(grey * np.outer(np.cos(angle * row), np.cos(angle * column))).sum() for column in range(1, 9)]
        for row in range(1, 9)
    ]
    expected = "".join("1" if wave > np.median(waves) else "0" for wave in np.ravel(waves))
    (found,) = perceptual_hash(image_HWC[None])
    assert "".join(f"{byte:08b}" for byte in found.tobytes()) == expected


def test_one_hash_is_not_enough():
    """Same signs of the low frequencies, other pixels: what the correlation is for."""
    strong = packed(PICTURES[0])
    checks = np.where(np.indices((SIDE, SIDE)).sum(0) % 2, 60, -60)[..., None]
    faint = np.clip(strong * 0.2 + 100 + checks, 0, 255).astype(np.uint8)
    assert np.bitwise_count(perceptual_hash(strong) ^ perceptual_hash(faint))[0] <= MAX_DISTANCE
    assert near_duplicates(strong, faint).shape == (0, 3)


@pytest.mark.parametrize(
    "drawings",
    [[screenshot(n) for n in range(6)], [disc(c) for c in ("red", "blue", "green", "black", "orange")]],
    ids=["screenshots", "discs"],
)
def test_of_flat_pictures_the_pixels_decide(drawings):
    """The hash calls most of these the same; smaller, mirrored and recompressed copies are found."""
    bits = perceptual_hash(packed(*drawings))
    distance = np.bitwise_count(bits[:, None] ^ bits)[np.triu_indices(len(bits), 1)]
    assert np.median(distance) <= MAX_DISTANCE
    same = [(row, row) for row in range(len(drawings))]
    for copies in (
        drawings,
        [ImageOps.mirror(image) for image in drawings],
        [jpeg(image.resize((image.width // 2, image.height // 2)), 60) for image in drawings],
    ):
        found = near_duplicates(packed(*drawings), packed(*copies))
        assert sorted(map(tuple, found[:, :2].tolist())) == same


def test_a_common_frame_is_not_the_picture():
    """One window, other pages: a large part that correlates alone."""
    rng = np.random.default_rng(0)

    def page():
        shades = rng.integers(120, 255, (20, 24, 1), dtype=np.uint8).repeat(3, 2)
        return np.pad(shades, ((8, 4), (6, 2), (0, 0)))

    frames = np.stack([page() for _ in range(40)])
    bits = perceptual_hash(frames)
    assert np.median(np.bitwise_count(bits[:, None] ^ bits)) <= 2 * MAX_DISTANCE
    assert near_duplicates(frames, frames)[:, :2].tolist() == [[row, row] for row in range(40)]


def test_pictures_of_one_colour_have_no_look():
    plain = np.stack([np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in ((9, 90, 200), (50, 50, 50))])
    assert len(near_duplicates(plain, plain)) == 0


def test_pairs_are_the_same_however_many_distances_are_held(monkeypatch):
    train, held_out = packed(*PICTURES), packed(*map(ImageOps.mirror, PICTURES[5:9]), PICTURES[5])
    whole = near_duplicates(train, held_out)
    assert whole.tolist() == [[5, 0, 0], [5, 4, 0], [6, 1, 0], [7, 2, 0], [8, 3, 0]]
    monkeypatch.setattr("mmlib.data.leaks.PAIRS", 1)
    monkeypatch.setattr("mmlib.data.leaks.COPIES", 1)
    assert np.array_equal(near_duplicates(train, held_out), whole)


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"shape \(R, 32, 32, 3\), found \(2, 64, 64, 3\)"):
        perceptual_hash(np.zeros((2, 64, 64, 3), np.uint8))


def test_planted_pairs_among_many_are_found_and_no_others():
    rng = np.random.default_rng(0)

    def blocks(images):
        return rng.integers(0, 256, (images, 8, 8, 1), dtype=np.uint8).repeat(3, 3).repeat(4, 1).repeat(4, 2)

    train, held_out, planted = blocks(2000), blocks(100), rng.choice(2000, 20, replace=False)
    held_out[:20] = train[planted]
    found = near_duplicates(train, held_out)[:, :2]
    assert sorted(map(tuple, found.tolist())) == sorted(zip(planted.tolist(), range(20)))
