"""Batches: pairs that belong together, in an order that depends on seed and epoch alone.

Shapes: N images, M captions, B pairs of a batch, L positions.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from mmlib.data import Dataset, Split, build_tokenizer, open_store
from mmlib.data.batches import SplitTensors
from mmlib.data.shapes import load_shapes

SIZE, L = 16, 20


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Twelve drawn images with their packed pixels."""
    dataset = load_shapes(0, 12, 4, 4, SIZE)
    return dataset, open_store(dataset, SIZE, workers=1, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(shapes):
    return build_tokenizer("word", shapes[0].splits["train"].captions)


@pytest.fixture
def tensors(shapes, tokenizer):
    def make(split="train", trim=False, max_tokens=L):
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
    store = open_store(dataset, SIZE, workers=1, cache=tmp_path)
    tokenizer = build_tokenizer("word", captions)
    return SplitTensors(dataset, store, tokenizer, "train", 5, True, torch.device("cpu"))


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


def test_an_image_and_its_caption_belong_together(uneven):
    batch = uneven.pairs(torch.tensor([5, 0, 2, 1]))
    assert batch.image_id_B.tolist() == [2, 0, 3, 2]
    assert torch.equal(batch.image_BCHW, uneven.image_batch(torch.tensor([2, 0, 3, 2])))
    tokens_ML, length_M = uneven.tokens_ML, uneven.length_M
    assert torch.equal(batch.tokens_BL, tokens_ML[[5, 0, 2, 1], :2])
    assert batch.length_B.tolist() == length_M[[5, 0, 2, 1]].tolist() == [2, 1, 1, 2]


def test_every_pair_of_an_epoch_belongs_together(shapes, tensors, tokenizer):
    data, split = tensors(), shapes[0].splits["train"]
    for caption_B in data.epoch_order(0, 1, "all").split(16):
        batch = data.pairs(caption_B)
        assert batch.image_id_B.tolist() == split.image_of_caption_M[caption_B.numpy()].tolist()
        tokens_BL, length_B = tokenizer.encode([split.captions[m] for m in caption_B], L)
        assert np.array_equal(batch.tokens_BL, tokens_BL)
        assert np.array_equal(batch.length_B, length_B)


def test_images_and_captions_of_a_split_are_in_the_splits_order(shapes, tensors, tokenizer):
    dataset, store = shapes
    for name, split in dataset.splits.items():
        data = tensors(name)
        assert (data.images, data.captions) == (len(split.images), len(split.captions))
        image_NCHW = data.image_batch(torch.arange(data.images))
        packed_NHWC = store.images[[store.index[image] for image in split.images]]
        pixel_NHWC = image_NCHW.permute(0, 2, 3, 1).numpy() * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)
        assert np.array_equal((255 * pixel_NHWC).round(), packed_NHWC)
        assert np.array_equal(data.tokens_ML, tokenizer.encode(split.captions, L)[0])
        assert np.array_equal(data.image_of_caption_M, split.image_of_caption_M)


def test_trimmed_captions_end_with_the_longest_of_the_batch(tensors):
    trimmed, whole = tensors(trim=True), tensors(trim=False)
    caption_B = torch.tensor([7, 1, 30])
    tokens_BL, length_B = trimmed.caption_batch(caption_B)
    full_BL, full_length_B = whole.caption_batch(caption_B)
    longest = int(length_B.max())
    assert 1 < longest < L
    assert tokens_BL.shape == (3, longest)
    assert full_BL.shape == (3, L)
    assert torch.equal(tokens_BL, full_BL[:, :longest])
    assert torch.equal(length_B, full_length_B)
    assert (full_BL[:, longest:] == 0).all()


def test_a_batch_of_empty_captions_keeps_one_position(tmp_path):
    splits = {s: Split(s, ("1-2-3",), ("", ""), np.zeros(2)) for s in ("train", "val", "test")}
    dataset = Dataset("empty", splits, Plain(), "0123456789abcdef")
    store = open_store(dataset, SIZE, workers=1, cache=tmp_path)
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


def test_all_covers_every_caption_once(tensors):
    data = tensors()
    for epoch in (1, 2):
        assert sorted(data.epoch_order(0, epoch, "all").tolist()) == list(range(60))


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
