"""The triplet loss against its formula and the code of its paper.

Shapes: B pairs, D width.
"""

import pytest
import torch
from torch.nn import functional as F

from mmlib.model.losses import TripletLoss

B, D = 8, 6
IDS = torch.tensor([0, 1, 0, 2, 3, 4, 4, 4])


@pytest.fixture
def pairs():
    return torch.randn(B, D), torch.randn(B, D)


def by_hand(image_BD, text_BD, ids, margin, of_negatives):
    image_BD, text_BD = (F.normalize(x, dim=-1) for x in (image_BD, text_BD))
    total = 0.0
    for i in range(len(image_BD)):
        negatives = [j for j in range(len(image_BD)) if ids[j] != ids[i]]
        own = image_BD[i] @ text_BD[i]
        to_text = [max(0.0, float(margin + image_BD[i] @ text_BD[j] - own)) for j in negatives]
        to_image = [max(0.0, float(margin + image_BD[j] @ text_BD[i] - own)) for j in negatives]
        total += of_negatives(to_text) + of_negatives(to_image)
    return total / len(image_BD)


def mean(costs):
    return sum(costs) / len(costs)


@pytest.mark.parametrize("identity_positives", [True, False])
@pytest.mark.parametrize(("progress", "of_negatives"), [(0.0, mean), (0.99, mean), (1.0, max), (7.5, max)])
def test_it_is_the_formula_before_and_after_the_warm_up(pairs, identity_positives, progress, of_negatives):
    loss = TripletLoss(0.2, hardest_after_epochs=1.0, identity_positives=identity_positives)
    loss.set_progress(progress)
    ids = IDS if identity_positives else torch.arange(B)
    assert loss(*pairs, IDS).item() == pytest.approx(by_hand(*pairs, ids, 0.2, of_negatives), rel=1e-5)


def test_it_is_the_code_of_vse_plus_plus_over_the_batch_size(pairs):
    """`ContrastiveLoss` with max_violation of the paper's code, which sums over the batch."""
    image_BD, text_BD = (F.normalize(x, dim=-1) for x in pairs)
    scores = image_BD @ text_BD.T
    diagonal = scores.diag().view(B, 1)
    itself = torch.eye(B, dtype=torch.bool)
    cost_s = (0.2 + scores - diagonal.expand_as(scores)).clamp(min=0).masked_fill(itself, 0)
    cost_im = (0.2 + scores - diagonal.t().expand_as(scores)).clamp(min=0).masked_fill(itself, 0)
    expected = cost_s.max(1)[0].sum() + cost_im.max(0)[0].sum()
    loss = TripletLoss(0.2, hardest_after_epochs=0)
    torch.testing.assert_close(loss(*pairs, torch.arange(B)), expected / B)


def test_progress_is_no_state_and_can_go_back(pairs):
    loss = TripletLoss(0.2, hardest_after_epochs=2.0)
    early = loss(*pairs, IDS)
    loss.set_progress(3.0)
    late = loss(*pairs, IDS)
    assert late > early  # the maximum over the mean
    assert loss.state_dict() == {}
    loss.set_progress(1.5)
    assert torch.equal(loss(*pairs, IDS), early)


def test_pairs_beyond_the_margin_cost_nothing_and_move_nothing():
    image_BD = torch.eye(B).requires_grad_()
    loss = TripletLoss(0.2, hardest_after_epochs=0)
    value = loss(image_BD, torch.eye(B), torch.arange(B))
    value.backward()
    assert value.item() == 0
    assert not image_BD.grad.any()


def test_equal_embeddings_cost_the_margin_both_ways():
    loss = TripletLoss(0.2, hardest_after_epochs=0)
    assert loss(torch.ones(B, D), torch.ones(B, D), torch.arange(B)).item() == pytest.approx(0.4)


def test_only_the_hardest_negative_is_pushed():
    image_BD = torch.eye(3, D).requires_grad_()
    text_BD = torch.tensor([[1.0, 0.9, 0.8, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    pushed = {}
    for hardest_after in (0, 1):
        loss = TripletLoss(0.5, hardest_after)
        value = loss(image_BD, text_BD, torch.arange(3), slice(0, 1))
        (gradient_BD,) = torch.autograd.grad(value, image_BD)
        pushed[hardest_after] = gradient_BD[1:].any(1).tolist()
    # Images 1 and 2 are both within the margin of caption 0, and image 1 is nearer.
    assert pushed == {0: [True, False], 1: [True, True]}


@pytest.mark.parametrize("progress", [0.0, 5.0])
def test_a_batch_of_one_image_costs_nothing(pairs, progress):
    loss = TripletLoss()
    loss.set_progress(progress)
    image_BD = pairs[0].requires_grad_()
    value = loss(image_BD, pairs[1], torch.zeros(B))
    value.backward()
    assert value.item() == 0
    assert torch.equal(image_BD.grad, torch.zeros(B, D))
