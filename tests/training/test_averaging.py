"""The moving average of the weights against its definition, and through a stopped run."""

import pytest
import torch
from tiny_runs import (
    assert_same,
    before_step,
    checkpoint,
    left_behind,
    press_ctrl_c,
    tiny_evaluate,
    tiny_train,
)
from torch import nn

from mmlib.training.optimisation import average_state, start_average, update_average


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


def test_it_is_the_recurrence_with_its_warm_up():
    model = network()
    average = start_average(model)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25):  # 4/13 is above 0.25
        move(model)
        update_average(average, model, 0.25)
        expected = {
            name: decay * expected[name] + (1 - decay) * p.detach().double()
            for name, p in model.named_parameters()
        }
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-6, atol=1e-6)
    for name, buffer in average.module.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))


def test_a_decay_of_0_is_the_model_itself():
    model = network()
    average = start_average(model)
    move(model)
    update_average(average, model, 0.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(average.module.get_parameter(name), parameter, rtol=1e-6, atol=1e-6)


def test_frozen_weights_stay_and_are_not_kept():
    model = network()
    model[0].requires_grad_(False)
    average = start_average(model)
    move(model)
    update_average(average, model, 0.9)
    assert torch.equal(average.module[0].weight, model[0].weight)
    assert set(average_state(average)["average"]) == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_a_run_validates_the_average_and_goes_on_with_it_to_the_last_bit(tiny_place, monkeypatch):
    tiny_train(run="whole", ema_decay=0.9)
    whole = left_behind("whole")
    with monkeypatch.context() as patch:
        before_step(patch, 6, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(ema_decay=0.9)
    tiny_train(ema_decay=0.9)
    rest = left_behind("tiny")
    assert_same(whole["last"]["average"], rest["last"]["average"])
    assert_same(whole["weights"], rest["weights"])
    assert rest["last"]["average"]["updates"] == 8
    content = checkpoint("tiny", "best")
    assert content["average"]["average"].keys() == content["model"].keys()
    epoch = content["best"]["epoch"]
    assert tiny_evaluate(split="val")[0]["protocols"]["standard"]["rsum"] == pytest.approx(
        rest["history"][epoch - 1]["val"]["rsum"]
    )
