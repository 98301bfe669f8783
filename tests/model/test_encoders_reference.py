"""The two encoders against REFERENCE §1, written out, and the padding mask (REFERENCE §3.9).

Shapes: B items, L tokens, P patches, D width.
"""

import pytest
import torch
from encoder_samples import config
from torch import nn
from torch.nn import functional as F

from mmlib.model.encoders import ImageEncoder, TextEncoder

VOCABULARY, L, D = 11, 12, 16


def text_encoder(padding_mask, dropout=0.0):
    sizes = config(num_layers=2, dropout=dropout, padding_mask=padding_mask)
    return TextEncoder(sizes, VOCABULARY).eval()


def post_norm_layer(layer, x_BLD):
    """Attention, residual, LayerNorm; feed-forward with GELU, residual, LayerNorm."""
    attended_BLD, _ = nn.MultiheadAttention.forward(layer.self_attn, x_BLD, x_BLD, x_BLD)
    x_BLD = layer.norm1(x_BLD + attended_BLD)
    return layer.norm2(x_BLD + layer.linear2(F.gelu(layer.linear1(x_BLD))))


def test_the_image_encoder_is_the_vit_of_the_reference():
    encoder = ImageEncoder(config(image_size=16, num_layers=2, dropout=0.0)).eval()
    image_BCHW = torch.randn(3, 3, 16, 16)
    kernel_DK, rows = encoder.patch.weight.flatten(1), []
    for top in (0, 8):
        for left in (0, 8):
            patch_BK = image_BCHW[:, :, top : top + 8, left : left + 8].flatten(1)
            rows.append(patch_BK @ kernel_DK.T + encoder.patch.bias)
    x_BPD = torch.stack([encoder.class_token_11D[0].expand(3, D), *rows], dim=1) + encoder.position_1PD
    for layer in encoder.layers.layers:
        x_BPD = post_norm_layer(layer, x_BPD)
    torch.testing.assert_close(encoder(image_BCHW), encoder.norm(x_BPD[:, 0]), atol=1e-5, rtol=1e-5)


def test_the_text_encoder_without_mask_is_that_of_the_reference():
    encoder, tokens_BL = text_encoder(padding_mask=False), torch.randint(0, VOCABULARY, (3, L))
    x_BLD = encoder.token.weight[tokens_BL] + encoder.position_LD
    for layer in encoder.layers.layers:
        x_BLD = post_norm_layer(layer, x_BLD)
    expected_BD = encoder.project(encoder.norm(x_BLD.mean(1)))
    found_BD = encoder(tokens_BL, torch.tensor([1, 5, L]))
    torch.testing.assert_close(found_BD, expected_BD, atol=1e-5, rtol=1e-5)


def test_with_the_mask_a_caption_is_read_as_if_there_were_no_padding(batch):
    _, tokens_BL, length_B = batch
    encoder = text_encoder(padding_mask=True)
    unmasked = text_encoder(padding_mask=False)
    unmasked.load_state_dict(encoder.state_dict())
    found_BD = encoder(tokens_BL, length_B)
    for b, length in enumerate(length_B.tolist()):
        alone_1D = unmasked(tokens_BL[b : b + 1, :length], length_B[b : b + 1])
        torch.testing.assert_close(found_BD[b : b + 1], alone_1D, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_with_the_mask_content_and_length_of_padding_change_nothing(batch, training):
    _, tokens_BL, length_B = batch
    encoder = text_encoder(padding_mask=True).train(training)
    other_BL = torch.where(torch.arange(L) < length_B[:, None], tokens_BL, 7)
    expected_BD = encoder(tokens_BL, length_B)
    torch.testing.assert_close(encoder(other_BL, length_B), expected_BD)
    trimmed_BD = encoder(tokens_BL[1:, :5], length_B[1:])
    torch.testing.assert_close(trimmed_BD, expected_BD[1:], atol=1e-6, rtol=1e-5)


def test_without_the_mask_content_and_length_of_padding_change_the_embedding(batch):
    _, tokens_BL, length_B = batch
    encoder = text_encoder(padding_mask=False)
    other_BL = torch.where(torch.arange(L) < length_B[:, None], tokens_BL, 7)
    embedding_BD = encoder(tokens_BL, length_B)
    changed_B = (encoder(other_BL, length_B) - embedding_BD).abs().amax(1)
    assert changed_B[0] == 0  # a full caption has no padding
    assert (changed_B[1:] > 1e-3).all()
    assert ((encoder(tokens_BL[1:, :5], length_B[1:]) - embedding_BD[1:]).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("padding_mask", [True, False])
def test_an_empty_caption_has_a_finite_embedding_and_gradient(padding_mask):
    encoder = text_encoder(padding_mask).train()
    tokens_BL, length_B = torch.zeros(2, L, dtype=torch.long), torch.tensor([0, 3])
    tokens_BL[1, :3] = 4
    encoder(tokens_BL, length_B).square().sum().backward()
    assert encoder(tokens_BL, length_B).isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
