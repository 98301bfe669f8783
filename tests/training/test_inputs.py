"""Features of frozen encoders over data sets: the encoder's own, by view and split, under the right key.

Shapes: N images, V views, F feature channels, P positions.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config

from mmlib.data import load_dataset, open_store
from mmlib.data.augment import augment, normalise
from mmlib.data.tokenizers import build_tokenizer
from mmlib.model import build_image_encoder, build_text_encoder
from mmlib.training import inputs
from mmlib.training.inputs import open_features, open_text_features

TRAIN, VAL, TEST, SIZE = 6, 3, 2, 32


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """One thread, random numbers that a test's neighbours cannot change, several batches."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(inputs, "BATCH", 4)


def settings(**changes):
    defaults = {
        "image_encoder": "timm:test_resnet", "image_weights": "none", "image_pooling": "encoder",
        "image_size": SIZE, "latent_dim": 8, "num_heads": 2, "num_layers": 1, "mlp_ratio": 2, "dropout": 0.5,
        "text_encoder": "words", "text_weights": "none", "max_tokens": 12, "padding_mask": True,
    }  # fmt: skip
    return SimpleNamespace(**defaults | changes)


def frozen(**changes):
    encoder = build_image_encoder(settings(**changes))
    encoder.set_tune("none")
    return encoder


def config(views=1, **changes):
    augmented = {"feature_views": views, "flip": True, "crop_area": 0.5} if views > 1 else {}
    sizes = {"shapes_train": TRAIN, "shapes_val": VAL, "shapes_test": TEST, "image_size": SIZE}
    frozen = {"image_encoder": "timm:test_resnet", "image_weights": "none", "image_tune": "none"}
    return tiny_config(**frozen | sizes | augmented | changes)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(config())


@pytest.fixture
def store(dataset, tmp_path):
    return open_store(dataset, SIZE, cache=tmp_path)


@pytest.mark.parametrize("pooling", ["encoder", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_features_are_the_encoders_of_each_packed_image(store, tmp_path, pooling, training):
    encoder = frozen(image_pooling=pooling).train(training)
    assert encoder.mean == (0.5, 0.5, 0.5)
    features = open_features(encoder, store, config(), cache=tmp_path)
    assert features.array.shape == (11, 1, *encoder.feature_shape)
    assert encoder.training == encoder.head.training == training
    pixels_NCHW = torch.from_numpy(np.array(store.array)).permute(0, 3, 1, 2) / 255
    expected = encoder.features((pixels_NCHW - 0.5) / 0.5)
    torch.testing.assert_close(torch.tensor(features.array[:, 0]).float(), expected, atol=2e-3, rtol=2e-3)
    for split in ("train", "val", "test"):
        assert np.array_equal(features.splits[split], store.splits[split])


def test_views_are_augmented_in_the_training_split_alone(store, tmp_path):
    encoder, settings = frozen(), config(views=3)
    features = open_features(encoder, store, settings, cache=tmp_path)
    assert features.array.shape == (11, 3, 96)
    train, rest = store.splits["train"], np.concatenate([store.splits["val"], store.splits["test"]])
    pixels_NHWC = torch.from_numpy(np.array(store.array))
    for view in (1, 2):
        assert np.array_equal(features.array[rest, view], features.array[rest, 0])
        seen_NHWC = augment(pixels_NHWC, settings, settings.seed, view, range(11))
        seen = normalise(seen_NHWC, encoder.mean, encoder.std)
        found = torch.from_numpy(features.array[train, view]).float()
        torch.testing.assert_close(found, encoder.features(seen)[train], atol=2e-3, rtol=2e-3)
    assert np.abs(features.array[train, 1] - features.array[train, 0]).max(1).min() > 1e-3


def test_an_interruption_changes_nothing(store, tmp_path, monkeypatch):
    encoder, calls = frozen(), []

    def interrupted(pixels_BHWC, config, seed, view, rows):
        calls.append((view, rows.start))
        if calls == [(1, 0), (2, 0), (1, 4)]:
            raise KeyboardInterrupt
        return augment(pixels_BHWC, config, seed, view, rows)

    whole = open_features(encoder, store, config(views=3), cache=tmp_path / "whole")
    monkeypatch.setattr(inputs, "augment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_features(encoder, store, config(views=3), cache=tmp_path / "parts")
    again = open_features(encoder, store, config(views=3), cache=tmp_path / "parts")
    assert calls[3:] == [(1, 4), (2, 4)]  # rows 8 to 10 are held out
    assert np.array_equal(again.array, whole.array)


def test_each_thing_that_features_depend_on_has_a_store_of_its_own(dataset, store, tmp_path):
    encoder, other = frozen(), frozen()
    cropped = open_store(dataset, SIZE, "crop", cache=tmp_path)
    of = [
        (encoder, store, config()),
        (other, store, config()),
        (encoder, cropped, config()),
        (encoder, store, config(views=2)),
        (encoder, store, config(views=3)),
        (encoder, store, config(views=2, colour=0.4)),
        (encoder, store, config(views=2, seed=1)),
    ]
    made = [open_features(*parts, cache=tmp_path) for parts in of]
    assert len({features.path for features in made}) == len(made)

    def refuse(*_):
        raise AssertionError("computed again")

    encoder.features = other.features = refuse
    assert [open_features(*parts, cache=tmp_path).path for parts in of] == [f.path for f in made]


def text_encoder(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=200, **sizes)).save_pretrained(tmp_path / "bert")
    encoder = build_text_encoder(
        settings(text_encoder=f"hf:{tmp_path / 'bert'}", text_weights="default"), 200
    )
    encoder.set_tune("none")
    return encoder


def test_features_of_captions_split_after_split(dataset, tmp_path):
    encoder = text_encoder(tmp_path)
    tokenizer = build_tokenizer("word", dataset.splits["train"].captions)
    features = open_text_features(encoder, dataset, tokenizer, 12, cache=tmp_path)
    for split in dataset.splits.values():
        tokens_ML, length_M = map(torch.from_numpy, tokenizer.encode(split.captions, 12))
        found_MF = torch.from_numpy(features.array[features.splits[split.name]]).float()
        expected_MF = encoder.eval().features(tokens_ML, length_M)
        assert found_MF.shape == (len(split.captions), 16)
        torch.testing.assert_close(found_MF, expected_MF, atol=2e-3, rtol=2e-3)
    shorter = open_text_features(encoder, dataset, tokenizer, 5, cache=tmp_path)
    other = build_tokenizer("char", dataset.splits["train"].captions)
    letters = open_text_features(encoder, dataset, other, 12, cache=tmp_path)
    assert len({features.path, shorter.path, letters.path}) == 3


def test_features_of_captions_are_computed_once(dataset, tmp_path):
    encoder = text_encoder(tmp_path)
    tokenizer = build_tokenizer("word", dataset.splits["train"].captions)
    arguments = (encoder, dataset, tokenizer, 12)
    first = open_text_features(*arguments, cache=tmp_path)

    def refuse(*_):
        raise AssertionError("computed again")

    encoder.features = refuse
    assert np.array_equal(open_text_features(*arguments, cache=tmp_path).array, first.array)
