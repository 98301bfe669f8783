"""The moving average of the weights against its definition, and what applying it leaves."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from mmlib.training.optimisation import WeightAverage


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def move(model) -> None:
    """What a step and a forward change: weights, running statistics, the counter of batches."""
    model(torch.randn(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def snapshot(model) -> dict:
    return copy.deepcopy(model.state_dict())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_the_recurrence_with_its_warm_up():
    model = network()
    average = WeightAverage(model, 0.25)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25):  # 4/13 is above 0.25
        move(model)
        average.update(model)
        expected = {
            name: decay * expected[name] + (1 - decay) * p.detach().double()
            for name, p in model.named_parameters()
        }
    for name, value in expected.items():
        torch.testing.assert_close(average.average[name].double(), value, rtol=1e-6, atol=1e-6)


def test_a_decay_of_0_is_the_model_itself():
    model = network()
    average = WeightAverage(model, 0.0)
    move(model)
    average.update(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(average.average[name], parameter.detach(), rtol=1e-6, atol=1e-6)


def test_applied_is_the_average_and_afterwards_all_is_back_to_the_last_bit():
    model = network()
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        move(model)
        average.update(model)
    with torch.no_grad():
        model[0].bias[0], model[0].bias[1] = -0.0, float("nan")
    before = {name: tensor.numpy().tobytes() for name, tensor in snapshot(model).items()}
    places = [p.data_ptr() for p in model.parameters()]
    with average.applied(model) as applied:
        assert applied is model
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, average.average[name])
            assert parameter.numpy(force=True).tobytes() != before[name]
        assert [p.data_ptr() for p in model.parameters()] == places
        for name, buffer in model.named_buffers():  # those of the model
            assert buffer.numpy().tobytes() == before[name]
    assert {name: t.numpy().tobytes() for name, t in model.state_dict().items()} == before
    assert [p.data_ptr() for p in model.parameters()] == places


def test_what_is_done_to_the_model_inside_does_not_reach_the_average():
    model = network()
    average = WeightAverage(model, 0.9)
    move(model)
    before = snapshot(model)
    kept = copy.deepcopy(average.state_dict())
    with contextlib.suppress(KeyError), average.applied(model):
        nn.init.zeros_(model[0].weight)
        raise KeyError
    assert same(snapshot(model), before)
    assert same(average.state_dict()["average"], kept["average"])


def test_frozen_weights_are_not_averaged():
    model = network()
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert set(average.average) == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_a_run_that_goes_on_has_the_same_average_to_the_last_bit(tmp_path):
    def steps(model, average, seed, count):
        torch.manual_seed(seed)
        for _ in range(count):
            move(model)
            average.update(model)

    torch.manual_seed(0)
    model = network()
    average = WeightAverage(model, 0.99)
    steps(model, average, 1, 4)
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "x.pt")
    steps(model, average, 2, 4)

    stored = torch.load(tmp_path / "x.pt", weights_only=True)
    other = network()
    other.load_state_dict(stored["model"])
    resumed = WeightAverage(other, 0.99)
    resumed.load_state_dict(stored["average"])
    steps(other, resumed, 2, 4)
    assert resumed.updates == average.updates == 8
    assert same(resumed.average, average.average)


def test_loading_copies():
    model = network()
    average, other = WeightAverage(model, 0.5), WeightAverage(model, 0.5)
    other.load_state_dict(average.state_dict())
    move(model)
    other.update(model)
    assert not torch.equal(other.average["0.weight"], average.average["0.weight"])


def test_a_state_of_other_weights_is_refused():
    average = WeightAverage(network(), 0.9)
    state = average.state_dict()
    state["average"]["0.weight"] = torch.zeros(5, 5)
    state["average"]["other"] = state["average"].pop("0.bias")
    message = r"0\.weight is \(5, 5\), expected \(4, 3\); 0\.bias is missing, .*; other is .* none"
    with pytest.raises(ValueError, match=message):
        average.load_state_dict(state)
