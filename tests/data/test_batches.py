"""Batches: pairs that belong together, in an order that depends on seed and epoch alone.

Shapes: N images, M captions, B pairs of a batch, L positions.
"""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mmlib.config import AugmentConfig
from mmlib.data import Dataset, Split, build_tokenizer, open_store
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.data.shapes import load_shapes
from mmlib.data.store import Store
from mmlib.training.processes import share

SIZE, L = 16, 20


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Twelve drawn images with their packed pixels."""
    dataset = load_shapes(0, 12, 4, 4, SIZE)
    return dataset, open_store(dataset, SIZE, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(shapes):
    return build_tokenizer("word", shapes[0].splits["train"].captions)


@pytest.fixture
def tensors(shapes, tokenizer):
    def make(split="train", trim=None, max_tokens=L):
        return SplitTensors(*shapes, tokenizer, split, max_tokens, trim, torch.device("cpu"))

    return make


class Plain:
    """Images of one colour each; the colour is in the name."""

    def load(self, name, size=None):
        return Image.new("RGB", (size or SIZE,) * 2, tuple(int(part) for part in name.split("-")))


@pytest.fixture
def uneven(tmp_path):
    """Images with 1, 0, 3 and 2 captions, the captions in no order."""
    names = ("0-0-0", "255-255-255", "255-0-51", "10-20-30")
    captions = ("z", "y one", "x", "y two", "x again", "y three")
    splits = {s: Split(s, names, captions, np.array([0, 2, 3, 2, 3, 2])) for s in ("train", "val", "test")}
    dataset = Dataset("plain", splits, Plain(), "0123456789abcdef")
    store = open_store(dataset, SIZE, cache=tmp_path)
    tokenizer = build_tokenizer("word", captions)
    return SplitTensors(dataset, store, tokenizer, "train", 5, 1, torch.device("cpu"))


# --- what a batch holds


def test_images_are_normalised_by_imagenets_mean_and_deviation(uneven):
    image_BCHW = uneven.image_batch(torch.tensor([0, 1, 2]))
    assert (image_BCHW.shape, image_BCHW.dtype) == ((3, 3, SIZE, SIZE), torch.float32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for row, colour in enumerate([(0, 0, 0), (1, 1, 1), (1, 0, 0.2)]):
        for channel in range(3):
            expected = (colour[channel] - mean[channel]) / std[channel]
            assert image_BCHW[row, channel].unique().tolist() == pytest.approx([expected], rel=1e-5)


def test_images_are_the_drawn_ones_upright(shapes, tensors):
    dataset, _ = shapes
    for split in ("train", "val", "test"):
        image_CHW = tensors(split).image_batch(torch.tensor([3]))[0]
        drawn_HWC = np.asarray(dataset.source.load(dataset.splits[split].images[3], SIZE))
        back_HWC = image_CHW.permute(1, 2, 0) * torch.tensor((0.229, 0.224, 0.225)) + torch.tensor(
            (0.485, 0.456, 0.406)
        )
        assert np.abs(255 * back_HWC.numpy() - drawn_HWC).max() < 0.01


def source_of(data, batch_size, share_of=lambda count: slice(0, count), **augment):
    return PairSource(data, batch_size, "all", 0, AugmentConfig(**augment), share_of)


def test_an_image_and_its_caption_belong_together(uneven):
    order_P = uneven.epoch_order(0, 1, "all")
    (batch,) = source_of(uneven, 6).batches(1, 0)
    image_P = torch.tensor([0, 2, 3, 2, 3, 2])[order_P]
    assert torch.equal(batch.image_id_R, image_P)
    assert torch.equal(batch.image, uneven.image_batch(image_P))
    assert torch.equal(batch.tokens, uneven.tokens_ML[order_P, :2])
    assert torch.equal(batch.length_R, uneven.length_M[order_P])
    assert (batch.rows, batch.size) == (6, 6)


def test_every_pair_of_an_epoch_belongs_together(shapes, tensors, tokenizer):
    data, split = tensors(), shapes[0].splits["train"]
    source = source_of(data, 16)
    order = data.epoch_order(0, 1, "all").split(16)
    batches = list(source.batches(1, 0))
    assert len(batches) == source.steps(1) == len(order)
    for caption_B, batch in zip(order, batches):
        assert batch.image_id_R.tolist() == split.image_of_caption_M[caption_B.numpy()].tolist()
        tokens_BL, length_B = tokenizer.encode([split.captions[m] for m in caption_B], L)
        assert np.array_equal(batch.tokens, tokens_BL)
        assert np.array_equal(batch.length_R, length_B)


AUGMENTED = {"crop_area": 0.5, "flip": True, "colour": 0.5}


def test_batches_from_any_step_on_are_those_of_the_whole_epoch(tensors):
    source = source_of(tensors(), 16, **AUGMENTED)
    whole = list(source.batches(2, 0))
    for start in range(len(whole) + 1):
        rest = list(source.batches(2, start))
        assert len(rest) == len(whole) - start
        for there, here in zip(whole[start:], rest):
            assert torch.equal(there.image, here.image)
            assert torch.equal(there.tokens, here.tokens)


def test_images_that_must_be_copied_to_the_device_are_made_ready_ahead(tensors, monkeypatch):
    made_by = set()

    def note(self, rows):
        made_by.add(threading.current_thread())
        return SplitTensors.pixel_batch(self, rows)

    source = PairSource(tensors(), 7, "all", 3, AugmentConfig())
    plain = list(source.batches(1, 0))
    monkeypatch.setattr(type(source.data), "on_device", False)
    monkeypatch.setattr(source.data, "pixel_batch", partial(note, source.data))
    ahead = list(source.batches(1, 0))
    assert made_by
    assert threading.main_thread() not in made_by
    assert len(ahead) == len(plain)
    for one, other in zip(ahead, plain):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.image_id_R, other.image_id_R)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_every_batch_and_see_the_same_pictures(tensors, count):
    """60 pairs in batches of 14 leave a last one of 4, which some of 7 processes have no row of."""
    data = tensors()
    whole = list(source_of(data, 14, **AUGMENTED).batches(1, 0))
    parts = [
        list(source_of(data, 14, partial(share, rank=rank, processes=count), **AUGMENTED).batches(1, 0))
        for rank in range(count)
    ]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert sum(part.rows for part in shares) == batch.size
        assert all(len(part.image) == max(1, part.rows) and part.size == batch.size for part in shares)
        joined = torch.cat([part.image[: part.rows] for part in shares])
        assert torch.equal(joined, batch.image)
        assert torch.equal(torch.cat([p.image_id_R[: p.rows] for p in shares]), batch.image_id_R)


def test_augmented_pictures_change_from_epoch_to_epoch(tensors):
    source = source_of(tensors(), 60, **AUGMENTED)
    first, again, second = (next(source.batches(epoch, 0)) for epoch in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image[first.image_id_R.argsort()], second.image[second.image_id_R.argsort()])


@pytest.mark.parametrize(("weight", "least", "most"), [(2.0, 2, 2), (0.5, 0, 1), (1.25, 1, 2)])
def test_a_caption_of_some_weight_is_seen_that_often(shapes, tokenizer, weight, least, most):
    dataset, store = shapes
    train = dataset.splits["train"]
    heavy = replace(train, weight_of_caption_M=np.where(train.image_of_caption_M < 6, weight, 1.0))
    weighted = replace(dataset, splits={**dataset.splits, "train": heavy})
    data = SplitTensors(weighted, store, tokenizer, "train", L, None, torch.device("cpu"))
    seen = np.zeros(60)
    for epoch in range(1, 201):
        times = np.bincount(data.epoch_order(0, epoch, "all"), minlength=60)
        assert set(times[:30]) <= set(range(least, most + 1))
        assert set(times[30:]) == {1}
        seen += times
    assert seen[:30].mean() / 200 == pytest.approx(weight, abs=0.02)


def test_features_of_frozen_encoders_take_the_place_of_pixels_and_token_ids(shapes, tokenizer):
    dataset, store = shapes
    image_NVF = np.random.default_rng(0).normal(size=(20, 3, 5)).astype(np.float16)
    text_MF = np.random.default_rng(1).normal(size=(100, 7)).astype(np.float16)
    rows = {"train": np.arange(60), "val": np.arange(60, 80), "test": np.arange(80, 100)}
    data = SplitTensors(
        dataset, store, tokenizer, "train", L, None, torch.device("cpu"),
        image_features=Store(image_NVF, store.splits),
        text_features=Store(text_MF, rows),
    )  # fmt: skip
    assert np.array_equal(data.image_batch(torch.tensor([2, 0])), image_NVF[[2, 0], 0].astype(np.float32))
    assert np.array_equal(data.caption_batch(torch.tensor([9]))[0], text_MF[[9]].astype(np.float32))
    seen = set()
    for epoch in range(1, 30):
        for batch in source_of(data, 16).batches(epoch, 0):
            for image, feature_F in zip(batch.image_id_R.tolist(), batch.image.numpy()):
                views = [v for v in range(3) if np.array_equal(feature_F, image_NVF[image, v])]
                assert len(views) == 1
                seen.add((image, views[0]))
    assert len(seen) == 12 * 3


def test_images_and_captions_of_a_split_are_in_the_splits_order(shapes, tensors, tokenizer):
    dataset, store = shapes
    for name, split in dataset.splits.items():
        data = tensors(name)
        assert (data.images, data.captions) == (len(split.images), len(split.captions))
        image_NCHW = data.image_batch(torch.arange(data.images))
        packed_NHWC = store.array[store.splits[name]]
        pixel_NHWC = image_NCHW.permute(0, 2, 3, 1).numpy() * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)
        assert np.array_equal((255 * pixel_NHWC).round(), packed_NHWC)
        assert np.array_equal(data.tokens_ML, tokenizer.encode(split.captions, L)[0])
        assert np.array_equal(data.image_of_caption_M, split.image_of_caption_M)


def test_trimmed_captions_end_with_the_longest_of_the_batch(tensors):
    trimmed, rounded, whole = tensors(trim=1), tensors(trim=8), tensors(trim=None)
    caption_B = torch.tensor([7, 1, 30])
    tokens_BL, length_B = trimmed.caption_batch(caption_B)
    full_BL, full_length_B = whole.caption_batch(caption_B)
    longest = int(length_B.max())
    assert 1 < longest < L
    assert tokens_BL.shape == (3, longest)
    assert rounded.caption_batch(caption_B)[0].shape[1] == -(-longest // 8) * 8
    assert full_BL.shape == (3, L)
    assert torch.equal(tokens_BL, full_BL[:, :longest])
    assert torch.equal(length_B, full_length_B)
    assert (full_BL[:, longest:] == 0).all()


def test_a_batch_of_empty_captions_keeps_one_position(tmp_path):
    splits = {s: Split(s, ("1-2-3",), ("", ""), np.zeros(2)) for s in ("train", "val", "test")}
    dataset = Dataset("empty", splits, Plain(), "0123456789abcdef")
    store = open_store(dataset, SIZE, cache=tmp_path)
    data = SplitTensors(dataset, store, build_tokenizer("char", ["a"]), "train", L, True, torch.device("cpu"))
    tokens_BL, length_B = data.caption_batch(torch.tensor([0, 1]))
    assert tokens_BL.tolist() == [[0], [0]]
    assert length_B.tolist() == [0, 0]


# --- the order of an epoch


@pytest.mark.parametrize("captions_per_image", ["all", "one"])
def test_the_order_is_a_function_of_seed_and_epoch_alone(tensors, captions_per_image):
    def order(seed, epoch, data):
        return data.epoch_order(seed, epoch, captions_per_image).tolist()

    expected = order(3, 2, tensors())
    torch.manual_seed(99)
    np.random.seed(99)
    again = tensors()
    state = torch.get_rng_state()
    for seed, epoch in [(0, 1), (3, 1), (4, 2), (2**32 - 1, 10_000)]:  # what was asked before does not matter
        assert order(seed, epoch, again) != expected
    assert order(3, 2, again) == expected
    assert torch.equal(torch.get_rng_state(), state)  # and nobody else's random numbers are used


def test_one_covers_every_image_once_with_a_caption_drawn_anew(tensors):
    data, drawn, orders = tensors(), set(), set()
    for epoch in range(1, 30):
        order_P = data.epoch_order(0, epoch, "one")
        image_P = tuple(data.split.image_of_caption_M[order_P.numpy()].tolist())
        assert sorted(image_P) == list(range(12))
        drawn |= set(order_P.tolist())
        orders.add(image_P)
    assert len(drawn) > 55  # of 60: every caption has its turn
    assert len(orders) == 29  # and the images come in another order each time


def test_one_leaves_out_images_without_captions(uneven):
    image_P = uneven.split.image_of_caption_M[uneven.epoch_order(0, 1, "one").numpy()]
    assert sorted(image_P.tolist()) == [0, 2, 3]
