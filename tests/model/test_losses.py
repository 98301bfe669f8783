"""Symmetric InfoNCE against its definition, pair by pair in float64.

Shapes: B pairs, D width.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from mmlib.model import InfoNCE

B, D = 6, 16


@pytest.fixture
def pairs():
    return torch.randn(B, D), torch.randn(B, D)


def by_hand(image_BD, text_BD, temperature, positives):
    """Mean over queries of both directions, and positives of each, of -log(e^p / (e^p + sum of e^n))."""
    image_BD, text_BD = image_BD.double(), text_BD.double()

    def sim(i, t):
        return float(image_BD[i] @ text_BD[t] / (image_BD[i].norm() * text_BD[t].norm())) / temperature

    total = 0.0
    for q in range(len(image_BD)):
        negatives = [n for n in range(len(image_BD)) if n not in positives[q]]
        for p in positives[q]:
            to_text = sum(math.exp(sim(q, n)) for n in [p, *negatives])
            to_image = sum(math.exp(sim(n, q)) for n in [p, *negatives])
            cost = math.log(to_text) - sim(q, p) + math.log(to_image) - sim(p, q)
            total += cost / len(positives[q])
    return total / (2 * len(image_BD))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("identity_positives", [False, True])
def test_it_is_the_double_loop(pairs, temperature, identity_positives):
    loss = InfoNCE(temperature, identity_positives=identity_positives)
    expected = by_hand(*pairs, temperature, positives=[[q] for q in range(B)])
    assert loss(*pairs, torch.arange(B)).item() == pytest.approx(expected, rel=1e-5)


def test_captions_of_one_image_are_no_negatives_with_the_option(pairs):
    """REFERENCE §3.8."""
    image_id_B = torch.tensor([4, 9, 4, 1, 9, 4])
    positives = [[0, 2, 5], [1, 4], [0, 2, 5], [3], [1, 4], [0, 2, 5]]
    with_option = InfoNCE(0.07, identity_positives=True)(*pairs, image_id_B).item()
    without = InfoNCE(0.07, identity_positives=False)(*pairs, image_id_B).item()
    assert with_option == pytest.approx(by_hand(*pairs, 0.07, positives), rel=1e-5)
    assert without == pytest.approx(by_hand(*pairs, 0.07, [[q] for q in range(B)]), rel=1e-5)
    assert with_option != pytest.approx(without, rel=0.01)


def test_perfect_captions_of_one_image_cost_nothing_with_the_option():
    """REFERENCE §3.8: without it, two right captions of one image cost ln 2, and are pushed apart."""
    embedding_BD, image_id_B = torch.eye(2, D)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    cost = {
        option: InfoNCE(0.01, identity_positives=option)(embedding_BD, embedding_BD, image_id_B).item()
        for option in (True, False)
    }
    assert cost[True] == pytest.approx(0, abs=1e-6)
    assert cost[False] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(("option", "sign"), [(True, 1), (False, -1)])
def test_an_image_pulls_another_caption_of_it_with_the_option_and_pushes_it_without(option, sign):
    """REFERENCE §3.8, as a gradient; the two views of the image differ, as dropout makes them."""
    image_BD, text_BD = torch.eye(3, D), torch.eye(3, D).requires_grad_()
    loss = InfoNCE(1.0, identity_positives=option)
    loss(image_BD, text_BD, torch.tensor([0, 0, 1])).backward()
    pull = -text_BD.grad[1, 0].item()  # of the second caption towards the first view of its image
    assert sign * pull > 0.01


def test_a_batch_of_one_image_costs_nothing_and_moves_nothing_with_the_option(pairs):
    image_BD = pairs[0].requires_grad_()
    loss = InfoNCE()(image_BD, pairs[1], torch.zeros(B, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(image_BD.grad, torch.zeros(B, D))


@pytest.mark.parametrize("identity_positives", [False, True])
def test_unrelated_pairs_cost_the_logarithm_of_the_batch(identity_positives):
    image_BD, text_BD = torch.eye(2 * B)[:B], torch.eye(2 * B)[B:]
    loss = InfoNCE(0.07, identity_positives=identity_positives)
    assert loss(image_BD, text_BD, torch.arange(B)).item() == pytest.approx(math.log(B), rel=1e-6)


def test_perfect_pairs_cost_what_the_temperature_leaves():
    loss = InfoNCE(0.07)(torch.eye(B), torch.eye(B), torch.arange(B)).item()
    assert loss == pytest.approx(math.log1p((B - 1) * math.exp(-1 / 0.07)), abs=1e-6)


def test_norms_and_the_order_of_pairs_do_not_matter(pairs):
    image_BD, text_BD = pairs
    loss, ids, order = InfoNCE(), torch.tensor([0, 1, 0, 2, 3, 4]), torch.randperm(B)
    expected = loss(image_BD, text_BD, ids)
    torch.testing.assert_close(loss(100 * image_BD, 0.01 * text_BD, ids), expected)
    torch.testing.assert_close(loss(image_BD[order], text_BD[order], ids[order]), expected)
    torch.testing.assert_close(loss(text_BD, image_BD, ids), expected)  # symmetric


@pytest.mark.parametrize("identity_positives", [False, True])
def test_it_is_computed_in_float32_whatever_it_gets(pairs, identity_positives):
    loss = InfoNCE(0.07, identity_positives=identity_positives)
    image_BD, text_BD = (x.bfloat16() for x in pairs)
    expected = loss(image_BD.float(), text_BD.float(), torch.arange(B))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(image_BD, text_BD, torch.arange(B))
        from_float32 = loss(image_BD.float(), text_BD.float(), torch.arange(B))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(from_float32, expected)


# --- label smoothing


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothing_without_identity_positives_is_that_of_pytorch(pairs, smoothing):
    loss = InfoNCE(0.5, identity_positives=False, label_smoothing=smoothing)
    image_BD, text_BD = (F.normalize(x, dim=-1) for x in pairs)
    sim_BB = image_BD @ text_BD.T / 0.5
    expected = sum(
        F.cross_entropy(sim, torch.arange(B), label_smoothing=smoothing) / 2 for sim in (sim_BB, sim_BB.T)
    )
    torch.testing.assert_close(loss(*pairs, torch.arange(B)), expected, rtol=1e-5, atol=1e-6)


def test_smoothing_with_identity_positives_smooths_the_softmax_of_each_positive(pairs):
    """Over itself and its negatives: the other positives have no part in it."""
    ids, smoothing, total = torch.tensor([4, 9, 4, 1, 9, 4]), 0.3, 0.0
    image_BD, text_BD = (F.normalize(x, dim=-1) for x in pairs)
    sim_BB = image_BD @ text_BD.T / 0.5
    for sim in (sim_BB, sim_BB.T):
        for q in range(B):
            positives = (ids == ids[q]).nonzero()[:, 0]
            for p in positives:
                row = torch.cat([sim[q, p, None], sim[q][ids != ids[q]]])
                cost = F.cross_entropy(row, torch.tensor(0), label_smoothing=smoothing)
                total += cost / len(positives) / (2 * B)
    loss = InfoNCE(0.5, label_smoothing=smoothing)
    torch.testing.assert_close(loss(*pairs, ids), total, rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_image_costs_nothing_with_smoothing(pairs):
    loss = InfoNCE(label_smoothing=0.2)
    assert loss(*pairs, torch.zeros(B)).item() == pytest.approx(0, abs=1e-6)


# --- temperature


def test_a_fixed_temperature_is_no_trainable_weight_and_has_no_clamp(pairs):
    loss = InfoNCE(0.005)
    assert [p for p in loss.parameters() if p.requires_grad] == []
    assert loss.temperature == pytest.approx(0.005, rel=1e-6)
    expected = by_hand(*pairs, 0.005, positives=[[q] for q in range(B)])
    assert loss(*pairs, torch.arange(B)).item() == pytest.approx(expected, rel=1e-4)


def test_a_learned_temperature_starts_as_asked_and_moves(pairs):
    loss = InfoNCE(0.07, learned=True)
    assert loss.temperature == pytest.approx(0.07, rel=1e-6)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(*pairs, torch.arange(B)).backward()
    optimizer.step()
    # Random pairs: a higher temperature costs less.
    assert loss.temperature > 0.071


def test_a_learned_temperature_stops_at_its_clamp_and_finds_the_way_back(pairs):
    loss = InfoNCE(0.07, learned=True)
    with torch.no_grad():
        loss.log_scale.fill_(10.0)  # an optimizer's step far beyond 100
    assert loss.temperature == pytest.approx(0.01)
    value = loss(*pairs, torch.arange(B))
    expected = by_hand(*pairs, 0.01, positives=[[q] for q in range(B)])
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value.backward()
    assert loss.log_scale.item() == pytest.approx(math.log(100))
    assert (
        loss.log_scale.grad.item() > 0
    )  # random pairs want it lower; a clamp without gradient would hold it
