"""Augmentation against torchvision, and that it depends on seed, epoch and place alone."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mmlib.config import AugmentConfig
from mmlib.data.augment import (
    BLOCK,
    NUMBERS,
    OPERATIONS,
    PIXEL_MEAN,
    PIXEL_STD,
    _crop,
    _jitter,
    _randaugment,
    augment,
    crop_boxes,
    normalise,
    random_numbers,
)

SIZE = 48
EVERYTHING = {"crop_area": 0.3, "flip": True, "colour": 1.0, "randaugment": 2}
SETTINGS = [{"crop_area": 0.3}, {"flip": True}, {"colour": 0.7}, {"randaugment": 3}, EVERYTHING]


def photos(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Smooth uint8 pictures (count, size, size, 3) so that a shift or a gain is seen."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    image = image + 0.1 * torch.rand(image.shape, generator=generator)
    return (image.clamp(0, 1) * 220 + 20).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def planar(image_BHWC: torch.Tensor) -> torch.Tensor:
    return image_BHWC.permute(0, 3, 1, 2)


def augmented(image_BHWC, seed, epoch, places, **settings) -> torch.Tensor:
    return augment(image_BHWC, AugmentConfig(**settings), seed, epoch, places)


def assert_close_levels(found: torch.Tensor, expected: torch.Tensor, levels: int, share: float):
    """At most `levels` apart, and different at all in at most `share` of the values."""
    assert found.dtype == expected.dtype == torch.uint8
    assert found.shape == expected.shape
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= levels
    assert (apart > 0).float().mean() <= share


@pytest.mark.parametrize("count", [0, 1, 5])
def test_normalise_is_what_torchvision_does(count):
    image_BHWC = photos(count) if count else torch.zeros(0, SIZE, SIZE, 3, dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = normalise(image_BHWC, mean, std)
    expected = functional.normalize(planar(image_BHWC).float() / 255, list(mean), list(std))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.is_contiguous()
    assert torch.equal(normalise(image_BHWC), normalise(image_BHWC, PIXEL_MEAN, PIXEL_STD))


def test_with_nothing_on_the_images_are_as_they_are():
    image_BHWC = photos(4)
    assert augmented(image_BHWC, 0, 1, range(4)) is image_BHWC


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_a_batch_is_augmented_and_an_image_does_not_depend_on_its_batch(settings):
    image_BHWC = photos(9)
    before = image_BHWC.clone()
    changed = augmented(image_BHWC, 3, 2, np.arange(9), **settings)
    assert changed.shape == (9, SIZE, SIZE, 3)
    assert changed.dtype == torch.uint8
    assert not torch.equal(changed, image_BHWC)
    assert torch.equal(image_BHWC, before)  # the store's pixels are never written
    for rows in (np.arange(4), np.arange(4, 9), np.array([8, 0, 3])):
        assert torch.equal(augmented(image_BHWC[rows], 3, 2, rows, **settings), changed[rows])


def test_seed_epoch_and_place_each_change_the_picture():
    image_BHWC = photos(1).expand(2, -1, -1, -1)
    base = augmented(image_BHWC, 0, 1, [0, 1], **EVERYTHING)
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, augmented(image_BHWC, 1, 1, [0, 1], **EVERYTHING))
    assert not torch.equal(base, augmented(image_BHWC, 0, 2, [0, 1], **EVERYTHING))
    assert torch.equal(base, augmented(image_BHWC, 0, 1, [0, 1], **EVERYTHING))


def test_one_augmentation_more_changes_nothing_of_the_others():
    image_BHWC = photos(8)
    alone = augmented(image_BHWC, 0, 1, np.arange(8), flip=True)
    with_crop = augmented(image_BHWC, 0, 1, np.arange(8), flip=True, crop_area=0.999999)
    mirrored = [not torch.equal(a, b) for a, b in zip(alone, image_BHWC)]
    centre = slice(SIZE // 4, -SIZE // 4)
    for crop, image, flip in zip(with_crop.float(), image_BHWC.float(), mirrored):
        same, other = (image.flip(1), image) if flip else (image, image.flip(1))
        assert (crop - same)[centre, centre].abs().mean() < (crop - other)[centre, centre].abs().mean()


def test_numbers_are_uniform_independent_and_cross_blocks():
    places = np.arange(BLOCK - 500, BLOCK + 500)
    number_BN = random_numbers(0, 1, places)
    assert number_BN.shape == (1000, NUMBERS)
    assert 0 <= number_BN.min() < number_BN.max() < 1
    assert np.abs(number_BN.mean(0) - 0.5).max() < 5 * math.sqrt(1 / 12 / 1000)
    neighbours = np.corrcoef(number_BN[:-1].ravel(), number_BN[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(number_BN.size)
    assert np.array_equal(random_numbers(0, 1, places[::-1]), number_BN[::-1])


def test_crops_lie_inside_and_are_spread_as_torchvisions():
    number_B4 = random_numbers(0, 1, np.arange(4000))[:, :4]
    box_B4 = crop_boxes(number_B4, 0.1, SIZE, SIZE)
    top, left, h, w = box_B4.T
    assert box_B4[:, :2].min() >= 0
    assert box_B4[:, 2:].min() >= 1
    assert max((top + h).max(), (left + w).max()) <= SIZE
    torch.manual_seed(0)
    oracle, image = v2.RandomResizedCrop(SIZE, scale=(0.1, 1)), [photos(1)[0].permute(2, 0, 1)]
    made = [oracle.make_params(image) for _ in range(4000)]
    expected = np.array([[one["height"], one["width"]] for one in made], dtype=float).T
    # Where a side must be cut the two differ: crops that leave room for every ratio are alike.
    small, alike = h * w < 0.5 * SIZE**2, expected.prod(0) < 0.5 * SIZE**2
    for ours, theirs in ((h[small], expected[0][alike]), (w[small], expected[1][alike])):
        error = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert len(np.unique(top[h < SIZE])) > 10
    assert crop_boxes(number_B4, 1e-9, 3, 400)[:, 2:].min() >= 1


def test_crops_and_mirror_images_are_torchvisions():
    image_BCHW = planar(photos(12))
    box_B4 = crop_boxes(random_numbers(0, 1, np.arange(12))[:, :4], 0.2, SIZE, SIZE)
    for image, box, one in zip(image_BCHW, box_B4.tolist(), _crop(image_BCHW, box_B4)):
        expected = functional.resized_crop(image.contiguous(), *box, [SIZE, SIZE], antialias=True)
        assert_close_levels(one, expected, levels=1, share=0.35)
    mirrored = augmented(photos(400, 8), 0, 1, np.arange(400), flip=True)
    same = [torch.equal(a, b) for a, b in zip(mirrored, photos(400, 8))]
    assert 150 < sum(same) < 250
    assert all(s or torch.equal(a, b.flip(1)) for s, a, b in zip(same, mirrored, photos(400, 8)))


def test_colour_is_torchvisions():
    image_BCHW = planar(photos(12))
    factor_B3 = 0.6 + 0.8 * random_numbers(0, 1, np.arange(12))[:, :3]
    found = _jitter(image_BCHW, factor_B3)
    for image, (brightness, contrast, saturation), one in zip(image_BCHW, factor_B3.tolist(), found):
        image = functional.adjust_brightness(image.float() / 255, brightness)
        image = functional.adjust_contrast(image, contrast)
        expected = (functional.adjust_saturation(image, saturation) * 255).to(torch.uint8)
        assert_close_levels(one, expected, levels=1, share=0.01)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(("operation", "name"), list(enumerate(v2.RandAugment._AUGMENTATION_SPACE)))
def test_each_operation_of_randaugment_is_torchvisions(operation, name, negative):
    image_BCHW = planar(photos(3, 50)).contiguous()
    oracle = v2.RandAugment()
    strengths, signed = oracle._AUGMENTATION_SPACE[name]
    strength = strengths(31, 50, 50)
    strength = 0.0 if strength is None else float(strength[9]) * (-1 if signed and negative else 1)
    expected = oracle._apply_image_or_video_transform(
        image_BCHW, name, strength, interpolation=oracle.interpolation, fill=oracle._fill
    )
    assert len(OPERATIONS) == len(v2.RandAugment._AUGMENTATION_SPACE)
    found = OPERATIONS[operation](image_BCHW, -1 if negative else 1)
    assert_close_levels(found, expected, levels=1, share=0.005)  # theirs has strengths in float32
    assert torch.equal(expected, image_BCHW) == (name == "Identity")


def test_images_of_a_batch_get_their_own_operations():
    image_BCHW = planar(photos(20)).contiguous()
    number_B2 = random_numbers(0, 1, np.arange(20))[:, :2]
    found = _randaugment(image_BCHW, number_B2)
    for i in range(20):
        assert torch.equal(found[i : i + 1], _randaugment(image_BCHW[i : i + 1], number_B2[i : i + 1]))
    assert len({(int(a * 14), b < 0.5) for a, b in number_B2}) > 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_a_gpu_gives_the_same_pictures(settings):
    found, expected = (
        augmented(photos(9).to(device), 3, 2, np.arange(9), **settings).cpu().int()
        for device in ("cuda", "cpu")
    )
    assert (found - expected).abs().float().mean() < 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"in a torch.Tensor, .* found uint8 of shape \(2, 8, 8, 3\)"),
        (torch.zeros(2, 8, 8, 3), r"expected uint8 pixels of shape \(B, H, W, 3\).* found torch.float32 of"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\(B, H, W, 3\).* found torch.uint8 of shape \(2, 3"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"found torch.uint8 of shape \(8, 8, 3\)"),
    ],
)
def test_pixels_of_another_kind_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        normalise(image)
