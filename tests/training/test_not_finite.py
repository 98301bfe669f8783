"""A loss or weights that become NaN or infinite: stopped by name, the last checkpoint from before."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import STEPS, before_step, checkpoint, left_behind, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.training import run_state
from mmlib.training.loop import Learner, read_losses

ALONE = SimpleNamespace(world_size=1)
pytestmark = pytest.mark.usefixtures("tiny_place")


def poison(training) -> None:
    training.model.central_memory.slots_SD.data.fill_(math.nan)


def assert_finite(run: str) -> None:
    for name in ("best", "last"):
        assert all(w.isfinite().all() for w in checkpoint(run, name)["model"].values())


def test_a_loss_that_is_not_a_number_stops_the_run_with_epoch_step_and_lr(monkeypatch):
    whole = tiny_train(run="whole")
    with monkeypatch.context() as patch:
        before_step(patch, STEPS + 2, poison)
        with pytest.raises(
            FloatingPointError,
            match=r"loss became nan in epoch 2 at step 2 \(lr 0\.00505\); the last checkpoint is from before",
        ):
            tiny_train()
    state, reason = run_state("tiny")
    assert state == "failed"
    assert reason.startswith("FloatingPointError: the loss became nan in epoch 2 at step 2")
    assert json.loads((files.RUNS / "tiny" / "status.json").read_text())["epoch"] == 1
    assert_finite("tiny")
    assert checkpoint("tiny")["position"]["epoch"] == 2
    assert len(left_behind("tiny")["history"]) == 1
    with pytest.raises(ValueError, match="'tiny' is not complete but failed"):
        tiny_evaluate("tiny")

    # What failed can be resumed: here the cause is gone.
    resumed = tiny_train()
    assert [row["train_loss"] for row in resumed] == [row["train_loss"] for row in whole]
    assert run_state("tiny") == ("complete", None)


def test_weights_that_a_finite_loss_ruined_are_never_saved(monkeypatch):
    step, calls = Learner.backward, []

    def ruin_at_the_third(training, caption_B):
        loss = step(training, caption_B)
        calls.append(loss)
        if len(calls) == 3:
            training.model.central_memory.slots_SD.data[0, 0] = math.inf
        return loss

    monkeypatch.setattr(Learner, "backward", ruin_at_the_third)
    with pytest.raises(FloatingPointError, match=r"weights became NaN or infinite in epoch 1 at step 3 \(lr"):
        tiny_train(checkpoint_steps=1)
    assert all(loss.isfinite() for loss in calls)
    content = checkpoint("tiny")
    assert content["position"]["step"] == 2
    assert all(w.isfinite().all() for w in content["model"].values())


def test_weights_ruined_in_the_last_step_of_an_epoch_are_found_before_the_validation(monkeypatch):
    step, calls = Learner.backward, []

    def ruin_at_the_last(training, caption_B):
        loss = step(training, caption_B)
        calls.append(loss)
        if len(calls) == 2 * STEPS:
            training.model.central_memory.slots_SD.data[0, 0] = math.nan
        return loss

    monkeypatch.setattr(Learner, "backward", ruin_at_the_last)
    with pytest.raises(FloatingPointError, match="weights became NaN or infinite in epoch 2 at step 4"):
        tiny_train()
    assert_finite("tiny")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_was_not_finite_is_named_with_its_rate(value):
    losses = enumerate([1.0, 2.0, value, math.nan, 3.0], 1)
    unread = [(step, 0.1 * step, 30, torch.tensor(loss)) for step, loss in losses]
    with pytest.raises(FloatingPointError, match=rf"became {value} in epoch 7 at step 3 \(lr 0\.3\)"):
        read_losses(0.0, unread, 7, ALONE)


def test_losses_are_summed_over_pairs():
    unread = [(1, 0.1, 30, torch.tensor(2.0)), (2, 0.1, 5, torch.tensor(4.0))]
    assert read_losses(5.0, unread, 1, ALONE) == 85.0
