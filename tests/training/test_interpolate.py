"""Weights between two models (WiSE-FT)."""

import pytest
import torch
from torch import nn

from mmlib.training.evaluation import interpolate_weights


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def weights():
    return {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3), "count": torch.tensor(2)}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_is_the_weighted_mean(share):
    start, end = weights(), weights()
    found = interpolate_weights(start, end, share)
    for name in ("layer.weight", "layer.bias"):
        expected = (1 - share) * start[name].double() + share * end[name].double()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0, 1])
def test_both_ends_are_exact(share):
    start, end = weights(), weights()
    found = interpolate_weights(start, end, share)
    for name in ("layer.weight", "layer.bias"):
        assert torch.equal(found[name], (end if share else start)[name])


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_what_cannot_be_mixed_is_as_in_the_trained_model(share):
    start, end = weights(), weights()
    start |= {"gone": torch.ones(2), "position": torch.ones(1, 5, 4), "count": torch.tensor(9)}
    end |= {"fusion": torch.randn(2, 2), "position": torch.randn(1, 8, 4)}
    found = interpolate_weights(start, end, share)
    assert list(found) == list(end)
    for name in ("fusion", "position", "count"):
        assert torch.equal(found[name], end[name])
    assert found["count"].dtype == torch.int64


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_dtypes_are_those_of_the_trained_model_and_the_mean_is_wide(share):
    start = {"w": torch.randn(50).half()}
    end = {"w": torch.randn(50).bfloat16()}
    found = interpolate_weights(start, end, share)["w"]
    expected = ((1 - share) * start["w"].float() + share * end["w"].float()).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_neither_side_is_changed_or_shared(share):
    start, end = weights(), weights()
    before = [{name: t.clone() for name, t in side.items()} for side in (start, end)]
    for tensor in interpolate_weights(start, end, share).values():
        tensor.zero_()
    for side, kept in zip((start, end), before):
        assert all(torch.equal(side[name], kept[name]) for name in side)


def test_it_loads_into_the_model():
    start, end = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    end.weight.data.fill_(3.0)
    end(torch.randn(4, 3))
    found = interpolate_weights(start.state_dict(), end.state_dict(), 0.5)
    start.load_state_dict(found)
    assert torch.equal(start.weight, torch.full((3,), 2.0))
    assert start.num_batches_tracked.item() == 1
