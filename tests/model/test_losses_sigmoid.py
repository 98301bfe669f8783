"""The sigmoid loss against open_clip's and against its formula, pair by pair.

Shapes: B pairs, D width.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from mmlib.model.losses import SigmoidLoss

B, D = 10, 16


@pytest.fixture
def pairs():
    return torch.randn(B, D), torch.randn(B, D)


def by_hand(image_BD, text_BD, ids, temperature, bias):
    image_BD, text_BD = (F.normalize(x.double(), dim=-1) for x in (image_BD, text_BD))
    total = 0.0
    for i in range(len(image_BD)):
        for j in range(len(text_BD)):
            z = 1 if ids[i] == ids[j] else -1
            total += math.log1p(math.exp(-z * (float(image_BD[i] @ text_BD[j]) / temperature + bias)))
    return total / len(image_BD)


@pytest.mark.parametrize(("temperature", "bias"), [(0.1, -10.0), (1.0, 0.5)])
def test_it_is_that_of_open_clip(pairs, temperature, bias):
    from open_clip.loss import SigLipLoss

    loss = SigmoidLoss(temperature, bias=bias)
    ours = [x.clone().requires_grad_() for x in pairs]
    theirs = [x.clone().requires_grad_() for x in pairs]
    value = loss(*ours, torch.arange(B))
    scale, shift = torch.tensor(1 / temperature).requires_grad_(), torch.tensor(bias).requires_grad_()
    expected = SigLipLoss()(*(F.normalize(x, dim=-1) for x in theirs), scale, shift)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.bias.grad, shift.grad, rtol=1e-5, atol=1e-6)
    # By t' = log t: the gradient by t times t.
    torch.testing.assert_close(loss.log_scale.grad, scale.grad / temperature, rtol=1e-5, atol=1e-6)


def test_captions_of_one_image_are_positives_with_the_option(pairs):
    ids = torch.tensor([0, 1, 0, 2, 3, 4, 4, 4, 5, 6])
    with_option = SigmoidLoss(0.5, bias=-1.0)(*pairs, ids).item()
    without = SigmoidLoss(0.5, bias=-1.0, identity_positives=False)(*pairs, ids).item()
    assert with_option == pytest.approx(by_hand(*pairs, ids, 0.5, -1.0), rel=1e-6)
    assert without == pytest.approx(by_hand(*pairs, torch.arange(B), 0.5, -1.0), rel=1e-6)


def test_it_starts_as_siglip_does():
    loss = SigmoidLoss()
    assert loss.log_scale.exp().item() == pytest.approx(10)
    assert (loss.temperature, loss.bias.item()) == (pytest.approx(0.1), -10)
    # Unrelated pairs then cost what the positives do: -log σ(-10) each, the negatives next to nothing.
    unrelated = torch.eye(2 * B)
    expected = math.log1p(math.exp(10)) + (B - 1) * math.log1p(math.exp(-10))
    assert loss(unrelated[:B], unrelated[B:], torch.arange(B)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("learned", [True, False])
def test_the_bias_is_always_learned_and_the_temperature_when_asked(pairs, learned):
    loss = SigmoidLoss(0.1, learned=learned)
    optimizer = torch.optim.SGD([p for p in loss.parameters() if p.requires_grad], lr=0.01)
    loss(*pairs, torch.arange(B)).backward()
    optimizer.step()
    assert loss.bias.item() != -10
    assert (loss.temperature != pytest.approx(0.1, rel=1e-6)) is learned
