"""Encoders by name: shapes, and what is said of names, sizes and poolings that cannot be.

Shapes: B items, D width.
"""

import re

import pytest
import torch
from encoder_samples import CLIP, add_clip, captions, config, write_bert
from torch import nn

from mmlib.config import ParameterError
from mmlib.model import build_image_encoder, build_text_encoder
from mmlib.model.pretrained import PretrainedEncoder

D = 16


def test_the_image_encoder_from_scratch():
    encoder = build_image_encoder(config(image_encoder="vit", image_pooling="encoder"))
    image_BCHW = torch.randn(2, 3, 32, 32)
    out_BD = encoder(image_BCHW)
    assert out_BD.shape == (2, D)
    out_BD.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert (encoder.image_size, encoder.feature_shape) == (32, None)
    assert len(encoder.mean) == len(encoder.std) == 3


@pytest.mark.parametrize("name", ["transformer", "gru", "words"])
def test_text_encoders_from_scratch_read_no_padding(name):
    encoder = build_text_encoder(config(text_encoder=name), 50).eval()
    tokens_BL, length_B = captions()
    out_BD = encoder(tokens_BL, length_B)
    assert out_BD.shape == (4, D)
    assert out_BD.isfinite().all()
    out_BD.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    other_BL = torch.where(torch.arange(8) >= length_B[:, None].clamp(min=1), 7, tokens_BL)
    torch.testing.assert_close(encoder(other_BL, length_B), out_BD)
    torch.testing.assert_close(encoder(tokens_BL[1:, :3], length_B[1:]), out_BD[1:])
    changed_BL = tokens_BL.clone()
    changed_BL[:, 0] = changed_BL[:, 0] % 48 + 2
    assert ((encoder(changed_BL, length_B) - out_BD).abs().amax(1) > 1e-4).all()


def test_the_order_of_words_counts_for_a_gru_and_not_for_a_mean():
    tokens_BL, length_B = torch.tensor([[3, 4, 5], [5, 4, 3]]), torch.tensor([3, 3])
    gru = build_text_encoder(config(text_encoder="gru"), 50).eval()
    words = build_text_encoder(config(text_encoder="words"), 50).eval()
    assert (gru(tokens_BL, length_B)[0] - gru(tokens_BL, length_B)[1]).abs().max() > 1e-3
    torch.testing.assert_close(*words(tokens_BL, length_B))


def test_the_gru_is_a_bidirectional_one_over_packed_sequences():
    encoder = build_text_encoder(config(text_encoder="gru"), 50).eval()
    tokens_BL, length_B = captions()
    length_B = length_B.clamp(min=1)
    packed = nn.GRU(D, D, batch_first=True, bidirectional=True)
    back = {f"{key}_reverse": tensor for key, tensor in encoder.back.state_dict().items()}
    packed.load_state_dict({**encoder.ahead.state_dict(), **back})
    sequence = nn.utils.rnn.pack_padded_sequence(
        encoder.token(tokens_BL), length_B, batch_first=True, enforce_sorted=False
    )
    state_BLE, _ = nn.utils.rnn.pad_packed_sequence(packed(sequence)[0], batch_first=True)
    pooled = [torch.cat([s[:n].mean(0), s[:n].amax(0)]) for s, n in zip(state_BLE, length_B)]
    expected_BD = encoder.project(encoder.norm(torch.stack(pooled)))
    torch.testing.assert_close(encoder(tokens_BL, length_B), expected_BD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_encoder": "resnet18"}, "unknown image_encoder 'resnet18': it has vit, timm:<name>, torchv"),
        ({"image_encoder": "timm:"}, "unknown image_encoder 'timm:'; did you mean 'timm:<name>'?"),
        ({"image_encoder": "timm:test_vitt"}, "unknown timm model 'test_vitt'; did you mean 'test_vit"),
        (
            {"image_encoder": "torchvision:resnet19"},
            "unknown torchvision model 'resnet19'; did you",
        ),
        (
            {"image_encoder": "torchvision:resnet18", "image_weights": "IMAGENET_V1"},
            "unknown weights of torchvision:resnet18 'IMAGENET_V1'; did you mean 'IMAGENET1K_V1'?",
        ),
        (
            {"image_encoder": "timm:test_resnet", "image_weights": "r160_in2k"},
            "unknown weights of timm:test_resnet 'r160_in2k'; did you mean 'r160_in1k'?",
        ),
        (
            {"image_encoder": "open_clip:ViT-B-32", "image_weights": "openia"},
            "unknown weights of open_clip:ViT-B-32 'openia'; did you mean 'openai'?",
        ),
        (
            {"image_encoder": "timm:test_resnet.r160_in1k", "image_weights": "r96"},
            "unknown weights of timm:test_resnet.r160_in1k 'r96': it has r160_in1k",
        ),
        (
            {"image_encoder": "vit", "image_pooling": "attention"},
            "image_pooling 'attention': 'vit' reads its class token, use 'encoder'",
        ),
    ],
)
def test_wrong_image_encoders(changes, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        build_image_encoder(config(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_encoder": "transformers"},
            "unknown text_encoder 'transformers'; did you mean 'tran",
        ),
        ({"text_encoder": "timm:test_vit"}, "unknown text_encoder 'timm:test_vit': "),
        (
            {"text_encoder": "open_clip:ViT-B-33"},
            "unknown open_clip model 'ViT-B-33'; did you mean 'ViT",
        ),
    ],
)
def test_wrong_text_encoders(changes, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        build_text_encoder(config(**changes), 50)


@pytest.mark.parametrize(
    ("name", "size", "made_for"),
    [
        ("torchvision:squeezenet1_1", 8, 224),
        ("torchvision:maxvit_t", 256, 224),
        ("timm:vit_tiny_patch16_224", 64, 224),
        ("timm:test_convnext", 16, 160),
        ("open_clip:tiny-sizes", 48, 32),
    ],
)
def test_an_image_size_that_an_encoder_cannot_take(tmp_path, name, size, made_for):
    add_clip(tmp_path, "tiny-sizes", CLIP)
    message = f"image_size: {name} cannot take {size} pixels; it was made for {made_for}"
    with pytest.raises(ParameterError, match=message):
        build_image_encoder(config(image_encoder=name, image_size=size))


def test_more_tokens_than_positions(tmp_path):
    add_clip(tmp_path, "tiny-positions", CLIP)
    folder = write_bert(tmp_path / "bert")
    for name, positions in (("open_clip:tiny-positions", 10), (f"hf:{folder}", 12)):
        expected = f"max_tokens: {re.escape(name)} has {positions} positions, found {positions + 1}"
        with pytest.raises(ParameterError, match=expected):
            build_text_encoder(config(text_encoder=name, max_tokens=positions + 1), 50)
        assert isinstance(
            build_text_encoder(config(text_encoder=name, max_tokens=positions), 50), PretrainedEncoder
        )


def test_token_ids_that_the_encoder_has_not(tmp_path):
    name = f"hf:{write_bert(tmp_path)}"
    with pytest.raises(ParameterError, match="has 50 token ids, the tokenizer 51: use the encoder's own"):
        build_text_encoder(config(text_encoder=name), 51)
