"""Augmentation against torchvision, and that it depends on seed, epoch and position alone."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from mmlib.config import AugmentConfig
from mmlib.data import augment_draws as draws
from mmlib.data.augment import Augment
from mmlib.data.augment_colour import jitter
from mmlib.data.augment_crop import crop_and_flip, crop_by_grid, crop_natively
from mmlib.data.augment_rand import OPERATIONS, _sources, randaugment
from mmlib.data.pixels import PIXEL_MEAN, PIXEL_STD, constants, normalise
from mmlib.data.pixels import planar as planes

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


def augment(**settings) -> Augment:
    return Augment(AugmentConfig(**settings))


def state(count: int, seed: int = 0, epoch: int = 1) -> np.ndarray:
    return draws.state_of(seed, epoch, np.arange(count))


def assert_close_levels(found: torch.Tensor, expected: torch.Tensor, levels: int = 1, share: float = 0.01):
    """At most `levels` apart, and different at all in at most `share` of the values."""
    assert found.dtype == expected.dtype == torch.uint8
    assert found.shape == expected.shape
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= levels
    assert (apart > 0).float().mean() <= share


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Normalisation


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_normalise_is_what_torchvision_does(count, channels_last):
    image_BHWC = photos(count) if count else torch.zeros(0, SIZE, SIZE, 3, dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = normalise(image_BHWC, mean, std, channels_last)
    expected = functional.normalize(planar(image_BHWC).float() / 255, list(mean), list(std))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


def test_normalise_takes_imagenets_statistics_by_default():
    image_BHWC = photos(2)
    assert torch.equal(normalise(image_BHWC), normalise(image_BHWC, PIXEL_MEAN, PIXEL_STD))
    assert PIXEL_MEAN == (0.485, 0.456, 0.406)
    assert PIXEL_STD == (0.229, 0.224, 0.225)


def test_both_layouts_hold_the_same_values():
    image_BHWC = photos(3)
    assert torch.equal(normalise(image_BHWC), normalise(image_BHWC, channels_last=True))


# A whole batch


@pytest.mark.parametrize("channels_last", [False, True])
def test_nothing_on_is_exactly_normalisation(channels_last):
    image_BHWC, nothing = photos(4), augment()
    assert not nothing.active
    found = nothing(image_BHWC, 0, 1, range(4), channels_last=channels_last)
    assert torch.equal(found, normalise(image_BHWC))
    assert torch.equal(nothing.pixels(image_BHWC, 0, 1, range(4)), image_BHWC)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_a_batch_is_augmented_and_normalised(settings):
    image_BHWC, on = photos(9), augment(**settings)
    before = image_BHWC.clone()
    mean, std = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
    found = on(image_BHWC, 3, 2, np.arange(9), mean, std)
    changed = on.pixels(image_BHWC, 3, 2, np.arange(9))
    assert on.active
    assert found.dtype == torch.float32
    assert found.shape == (9, 3, SIZE, SIZE)
    assert changed.dtype == torch.uint8
    assert torch.equal(found, normalise(changed.contiguous(), mean, std))
    assert not torch.equal(changed, image_BHWC)
    assert torch.equal(image_BHWC, before)  # the store's pixels are never written


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_an_image_does_not_depend_on_its_batch(settings, two_threads, monkeypatch):
    monkeypatch.setattr("mmlib.data.threads.CHUNK_VALUES", 20 * 3 * SIZE**2)
    image_BHWC, on, key_B = photos(70), augment(**settings), np.arange(100, 170)
    whole = on(image_BHWC, 5, 3, key_B)
    halves = [on(image_BHWC[i::2].contiguous(), 5, 3, key_B[i::2]) for i in range(2)]
    assert torch.equal(whole[0::2], halves[0])
    assert torch.equal(whole[1::2], halves[1])
    alone = on(image_BHWC[33:34], 5, 3, key_B[33:34])
    assert torch.equal(whole[33:34], alone)
    torch.set_num_threads(1)
    assert torch.equal(whole, on(image_BHWC, 5, 3, torch.from_numpy(key_B)))


def test_seed_epoch_and_position_each_change_the_picture():
    image_BHWC, on = photos(1), augment(crop_area=0.3)
    pictures = [on(image_BHWC, *given) for given in [(0, 1, [0]), (1, 1, [0]), (0, 2, [0]), (0, 1, [1])]]
    for i, one in enumerate(pictures):
        assert not any(torch.equal(one, other) for other in pictures[i + 1 :])
    assert torch.equal(on(image_BHWC, 0, 1, [0]), pictures[0])


def test_one_augmentation_more_changes_nothing_of_the_others():
    image_BHWC = photos(6)
    crops, both = augment(crop_area=0.3), augment(crop_area=0.3, flip=True)
    a, b = (on.pixels(image_BHWC, 0, 1, range(6)) for on in (crops, both))
    flipped = draws.flips(state(6))
    assert 0 < flipped.sum() < 6
    for i in range(6):
        assert_close_levels(b[i].flip(1) if flipped[i] else b[i], a[i], share=0.2)


def test_a_result_keeps_its_pixels_while_more_batches_come():
    image_BHWC, on = photos(8), augment(flip=True)
    results = [on(image_BHWC, 0, epoch, range(8)) for epoch in range(1, 9)]
    for epoch, found in enumerate(results, 1):
        assert torch.equal(found, on(image_BHWC, 0, epoch, range(8)))


# What is drawn


def test_crops_are_distributed_as_torchvisions():
    box_B4 = draws.boxes(state(4000), 0.2, 60, 60)
    oracle = v2.RandomResizedCrop(60, scale=(0.2, 1.0))
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 60)
    theirs = [oracle.make_params([image]) for _ in range(4000)]
    for column, name in enumerate(("top", "left", "height", "width")):
        expected = np.array([params[name] for params in theirs])
        levels = np.arange(61)
        found_cdf = np.searchsorted(np.sort(box_B4[:, column]), levels, "right") / 4000
        cdf = np.searchsorted(np.sort(expected), levels, "right") / 4000
        assert abs(found_cdf - cdf).max() < 1.95 * math.sqrt(2 / 4000)  # Kolmogorov-Smirnov, p = 0.001


def test_crops_lie_inside_and_keep_to_their_bounds():
    top, left, height, width = draws.boxes(state(3000), 0.25, 64, 64).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    share, ratio = height * width / 64**2, width / height
    assert 0.23 < share.min() < 0.27
    assert share.max() > 0.95
    assert 0.71 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.4


def test_small_crops_have_uniform_areas():
    """Below 3/4 of the area every aspect ratio fits, so no attempt is refused."""
    area_B = draws.boxes(state(4000), 0.25, 512, 512)[:, 2:].prod(1) / 512**2
    small = area_B[area_B < 0.75]
    assert abs(np.quantile(small, [0.25, 0.5, 0.75]) - [0.375, 0.5, 0.625]).max() < 0.02


def test_an_image_that_fits_no_crop_gives_its_central_part():
    assert (draws.boxes(state(5), 0.999, 10, 100) == [0, 43, 10, 13]).all()
    assert (draws.boxes(state(5), 0.999, 100, 10) == [43, 0, 13, 10]).all()


def test_half_of_the_images_are_mirrored():
    assert abs(draws.flips(state(4000)).mean() - 0.5) < 0.03


def test_colour_factors_and_orders():
    factor_B3, order_B3 = draws.colours(state(3000), 0.5)
    assert 0.8 <= factor_B3.min() < 0.805
    assert 1.195 < factor_B3.max() <= 1.2
    assert abs(factor_B3.mean(0) - 1).max() < 0.01
    _, counts = np.unique(order_B3, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 400


def test_operations_are_drawn_alike_often_with_either_sign():
    op_BK, negative_BK = draws.operations(state(2000), 2, len(OPERATIONS))
    assert op_BK.shape == negative_BK.shape == (2000, 2)
    counts = np.bincount(op_BK.ravel(), minlength=14)
    assert len(counts) == 14
    assert counts.min() > 220
    assert abs(negative_BK.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(op_BK.T)[0, 1]) < 0.08


def test_numbers_of_neighbours_are_independent():
    u_BN = draws.uniform(state(2000), 0, 4)
    assert u_BN.min() >= 0
    assert u_BN.max() < 1
    assert abs(np.corrcoef(u_BN.T) - np.eye(4)).max() < 0.08
    assert abs(np.corrcoef(u_BN[:-1, 0], u_BN[1:, 0])[0, 1]) < 0.08
    other = draws.uniform(state(2000, epoch=2), 0, 1)[:, 0]
    assert abs(np.corrcoef(u_BN[:, 0], other)[0, 1]) < 0.08
    assert len({draws.state_of(s, e, np.array([0]))[0] for s in range(30) for e in range(30)}) == 900


def test_splitmix64_gives_its_published_numbers():
    """The first outputs of the reference implementation (Vigna, splitmix64.c) for the seed 1234567."""
    found = draws.uniform(np.array([1234567], dtype=np.uint64), 0, 3)[0]
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert found.tolist() == [(value >> 11) * 2.0**-53 for value in published]


# Every operation against torchvision on single images


def test_crop_and_flip_are_torchvisions():
    image_BHWC = photos(12)
    box_B4, flip_B = draws.boxes(state(12), 0.2, SIZE, SIZE), draws.flips(state(12))
    found = crop_and_flip(planar(image_BHWC), box_B4, flip_B)
    for image, box, flip, one in zip(planar(image_BHWC), box_B4.tolist(), flip_B, found):
        # Both round: theirs after each of two passes, ours once.
        for dtype, share in ((torch.uint8, 0.35), (torch.float64, 0.2)):
            resized = functional.resized_crop(
                image.contiguous().to(dtype), *box, [SIZE, SIZE], antialias=True
            )
            expected = resized.round().to(torch.uint8)
            assert_close_levels(one, functional.horizontal_flip(expected) if flip else expected, share=share)


def test_planes_of_images_in_any_layout_hold_the_same_pixels():
    image_BCHW = planar(photos(5))
    for given in (image_BCHW, image_BCHW.contiguous(), image_BCHW[:, :, ::2, 1:], image_BCHW[:0]):
        found = planes(given)
        assert torch.equal(found, given)
        assert found.stride()[2:] == (given.shape[3], 1) or not len(given)


@pytest.mark.parametrize("height", [SIZE, 30])
def test_the_grid_of_the_gpu_gives_the_same_crops(height):
    image_BCHW = planar(photos(12))[:, :, :height]
    box_B4, flip_B = draws.boxes(state(12), 0.2, height, SIZE), draws.flips(state(12))
    expected = crop_natively(image_BCHW, box_B4, flip_B)
    box_B5 = torch.from_numpy(np.c_[box_B4, flip_B].astype(np.float32))
    assert_close_levels(crop_by_grid(image_BCHW, box_B5), expected, share=0.25)


def test_colour_is_torchvisions():
    image_BCHW = planar(photos(12))
    factor_B3, order_B3 = draws.colours(state(12), 1.0)
    found = jitter(image_BCHW, factor_B3, order_B3)
    kinds = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for image, factors, order, one in zip(image_BCHW, factor_B3.tolist(), order_B3.tolist(), found):
        for kind in order:
            image = kinds[kind](image.contiguous(), factors[kind])
        # A level that rounding moved grows in the steps after it.
        assert_close_levels(one, image, levels=3, share=0.02)


@pytest.mark.parametrize("negative", [0, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_of_randaugment_is_torchvisions(name, negative):
    image_BCHW = planar(photos(3, 50))
    op_B1 = np.full((3, 1), list(OPERATIONS).index(name))
    found = randaugment(image_BCHW, op_B1, np.full((3, 1), negative))
    oracle = v2.RandAugment()
    strengths, signed = oracle._AUGMENTATION_SPACE[name]
    strength = strengths(31, 50, 50)
    strength = 0.0 if strength is None else float(strength[9]) * (-1 if signed and negative else 1)
    for image, one in zip(image_BCHW, found):
        expected = oracle._apply_image_or_video_transform(
            image.contiguous(), name, strength, interpolation=oracle.interpolation, fill=oracle._fill
        )
        moved = name.startswith(("Shear", "Rotate"))  # a pixel may come from either of two that are as near
        assert_close_levels(one, expected, levels=255 if moved else 1, share=0.005)
        assert signed == OPERATIONS[name][1]
        assert torch.equal(expected, image) == (name == "Identity")


def test_operations_are_torchvisions_in_its_order():
    assert list(OPERATIONS) == list(v2.RandAugment._AUGMENTATION_SPACE)


def test_images_of_a_batch_get_their_own_operations_one_after_another():
    image_BCHW = planar(photos(6))
    op_BK, negative_BK = (
        np.array([[1, 5], [13, 1], [5, 5], [1, 5], [0, 0], [6, 8]]),
        np.tile([[0, 1]], (6, 1)),
    )
    found = randaugment(image_BCHW, op_BK, negative_BK)
    for i in range(6):
        one = image_BCHW[i : i + 1]
        for op, negative in zip(op_BK[i], negative_BK[i]):
            one = randaugment(one, np.array([[op]]), np.array([[negative]]))
        assert torch.equal(found[i], one[0])
    assert torch.equal(found[4], image_BCHW[4])


# On a GPU


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_nothing_waits_for_a_gpu(settings, monkeypatch):
    """With tensors that have no values, whatever reads one (`.item()`, a boolean mask) fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    copies = []

    def copied(array, device):
        copies.append(array.nbytes)
        return torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, device=device)

    for module in ("augment_crop", "augment_colour", "augment_rand"):
        monkeypatch.setattr(f"mmlib.data.{module}.to_device", copied)
    constants.cache_clear()
    _sources.cache_clear()
    with FakeTensorMode():
        image_BHWC = torch.empty(64, SIZE, SIZE, 3, dtype=torch.uint8, device="cuda")
        found = augment(**settings)(image_BHWC, 0, 1, range(64))
        assert found.device.type == "cuda"
        assert found.dtype == torch.float32
        assert found.shape == (64, 3, SIZE, SIZE)
    assert 0 < len(copies) <= 10
    assert max(copies) < 8192
    constants.cache_clear()
    _sources.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "+".join(s))
def test_a_gpu_gives_the_same_pictures_without_a_synchronisation(settings):
    image_BHWC, on = photos(64), augment(**settings)
    on_gpu_BHWC = image_BHWC.cuda()
    on(on_gpu_BHWC, 0, 1, range(64))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = on(on_gpu_BHWC, 0, 2, range(64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = on(image_BHWC, 0, 2, range(64))
    near = (found.cpu() - expected).abs() < 3 / 255 / min(PIXEL_STD)
    assert near.float().mean() > 0.98


# Bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"expected pixels as a torch.Tensor, found ndarray; use torch.fr"),
        (torch.zeros(2, 8, 8, 3), r"expected uint8 pixels of shape \(B, H, W, 3\).* found torch.float32 of"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            r"\(B, H, W, 3\).* found torch.uint8 of shape \(2, 3",
        ),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"found torch.uint8 of shape \(8, 8, 3\)"),
    ],
)
def test_pixels_of_another_kind_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        normalise(image)
    with pytest.raises(ValueError, match=message):
        augment(flip=True)(image, 0, 1, range(2))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([0], r"expected one integer key for each of 2 images, .* found int64 of shape \(1,\)"),
        ([[0, 1]], r"found int64 of shape \(1, 2\)"),
        ([0.5, 1.5], r"found float64 of shape \(2,\)"),
        (torch.zeros(2, device="meta"), r"expected keys on the host, found them on meta: keep a copy"),
    ],
)
def test_keys_of_another_kind_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        augment(flip=True)(photos(2), 0, 1, keys)


@pytest.mark.parametrize("settings", [{}, {"flip": True}])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0, 0), (1, 1)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 0, 0), (1, -1, 1)),
        ((0, math.nan, 0), (1, 1, 1)),
        ((0, 0, 0), (1, 1)),
    ],
)
def test_impossible_statistics_are_refused(mean, std, settings):
    with pytest.raises(ValueError, match="expected a mean and a positive deviation of each of 3 channels"):
        augment(**settings)(photos(2), 0, 1, range(2), mean, std)
