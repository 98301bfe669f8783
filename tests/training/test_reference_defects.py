"""REFERENCE §3: what was wrong with the reference's training, each defect by its number.

The others are tested where they belong: 1, 2 and 6 in metrics, 7 in data, 8 and 9 in model.
"""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.precision import Precision
from tiny_runs import (
    STEPS,
    assert_same,
    before_step,
    checkpoint,
    press_ctrl_c,
    tiny_continue,
    tiny_train,
)

from mmlib.training import loop, read_history
from mmlib.training.checkpoint import rng_state, set_rng_state

pytestmark = pytest.mark.usefixtures("tiny_place")


def validate_as(monkeypatch, **values_of_epoch):
    """Gives the validation metrics of the coming epochs, for example `rsum=[1.0, 2.0]`."""
    summarise, upcoming = loop.summarise, {name: iter(values) for name, values in values_of_epoch.items()}
    monkeypatch.setattr(
        loop, "summarise", lambda ranks: summarise(ranks) | {n: next(v) for n, v in upcoming.items()}
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("optimizer_state", ["keep", "reset"])
def test_3_3_a_lower_learning_rate_takes_effect_at_the_first_step(optimizer, optimizer_state, monkeypatch):
    tiny_train(optimizer=optimizer, lr=0.01, epochs=1)
    rates = before_step(monkeypatch, 0, None)
    history = tiny_continue(lr=0.0005, epochs=1, optimizer_state=optimizer_state)
    assert rates == [[0.0005, 0.0005]] * STEPS  # both groups of weights, every step
    assert [row["lr"] for row in history] == [0.01, 0.0005]


def test_3_3_settings_of_the_optimizer_take_effect_although_its_state_is_kept(monkeypatch):
    tiny_train(optimizer="sgd", momentum=0.9, weight_decay=0.0, epochs=1)
    there = checkpoint("tiny", "best")["optimizer"]
    seen = []
    before_step(monkeypatch, 1, lambda training: seen.append(deepcopy(training.optimizer.state_dict())))
    tiny_continue(momentum=0.5, weight_decay=0.1, epochs=1)
    assert [group["momentum"] for group in seen[0]["param_groups"]] == [0.5, 0.5]
    assert [group["weight_decay"] for group in seen[0]["param_groups"]] == [0.1, 0.0]
    assert there["state"]
    assert_same(there["state"], seen[0]["state"])


def test_3_3_a_reset_optimizer_starts_empty(monkeypatch):
    tiny_train(epochs=1)
    seen = []
    before_step(
        monkeypatch, 1, lambda training: seen.append(training.optimizer.state_dict()["state"] or "empty")
    )
    tiny_continue(epochs=1, optimizer_state="reset")
    assert seen == ["empty"]


def test_3_4_epochs_are_numbered_on_from_the_best_of_the_parent(monkeypatch):
    validate_as(monkeypatch, rsum=[1.0, 2.0, 0.5, 0.1, 0.2])
    parent = tiny_train(epochs=3)
    lines = []
    history = tiny_continue(epochs=2, log=lines.append)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["phase"] for row in history] == [1, 1, 2, 2]
    assert [row["run"] for row in history] == ["tiny", "tiny", "child", "child"]
    assert history[:2] == parent[:2]
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 3/4", "epoch 4/4"]
    # The best of a phase is chosen within it: 0.2 is below the parent's 2.0.
    assert checkpoint("child", "best")["best"] == {"epoch": 4, "value": 0.2}


def test_3_4_a_grandchild_keeps_the_whole_lineage(monkeypatch):
    validate_as(monkeypatch, rsum=[1.0, 2.0, 3.0, 4.0, 5.0])
    tiny_train(epochs=2)
    tiny_continue(epochs=2)
    history = tiny_continue(run="grandchild", parent="child", epochs=1)
    assert [(row["epoch"], row["phase"]) for row in history] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)]


def test_3_4_continuing_from_the_last_checkpoint_keeps_every_epoch(monkeypatch):
    validate_as(monkeypatch, rsum=[3.0, 2.0, 1.0])
    tiny_train(epochs=2)
    history = tiny_continue(epochs=1, parent_checkpoint="last")
    assert [row["epoch"] for row in history] == [1, 2, 3]


def test_3_5_a_checkpoint_holds_all_that_the_next_step_depends_on(monkeypatch):
    before_step(monkeypatch, 2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        tiny_train()
    content = checkpoint("tiny")
    assert content.keys() >= {"model", "loss", "optimizer", "precision", "rng", "position", "best", "config"}
    assert content["rng"].keys() == {"torch", "cuda", "numpy", "python"}
    assert (content["position"]["epoch"], content["position"]["step"]) == (1, 2)
    assert len(content["optimizer"]["state"]) > 0
    assert content["tokenizer"]["vocabulary"][:2] == ["<pad>", "<unk>"]


def test_3_5_every_random_generator_goes_on_where_it_was():
    state = rng_state()
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)
    set_rng_state(state)
    assert drawn == (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1))


def test_3_5_the_gradient_scaler_is_saved_and_restored(monkeypatch):
    restored = []
    monkeypatch.setattr(Precision, "state_dict", lambda self: {"scale": 1024.0, "_growth_tracker": 7})
    monkeypatch.setattr(Precision, "load_state_dict", lambda self, state: restored.append(state))
    with monkeypatch.context() as patch:
        before_step(patch, 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train()
    tiny_train()
    assert restored == [{"scale": 1024.0, "_growth_tracker": 7}]


@pytest.mark.parametrize(("select_by", "epoch"), [("rsum", 1), ("mean_r1", 3), ("last", 3)])
def test_3_10_the_best_epoch_is_chosen_by_the_named_metric(select_by, epoch, monkeypatch):
    validate_as(monkeypatch, rsum=[3.0, 2.0, 1.0], mean_r1=[0.1, 0.2, 0.3])
    tiny_train(epochs=3, select_by=select_by)
    best = checkpoint("tiny", "best")
    assert best["best"]["epoch"] == epoch
    assert best["position"]["epoch"] == epoch + 1  # the next one


def test_3_10_of_equal_epochs_the_first_is_the_best(monkeypatch):
    validate_as(monkeypatch, rsum=[2.0, 2.0])
    tiny_train(epochs=2)
    assert checkpoint("tiny", "best")["best"]["epoch"] == 1


def test_3_1_and_3_2_validation_is_under_the_standard_protocol_with_intervals():
    tiny_train(epochs=1)
    val = read_history("tiny")[0]["val"]
    assert (val["protocol"], val["split"], val["ceiling"]) == ("standard", "val", None)
    assert (val["i2t"]["n"], val["i2t"]["gallery"]) == (8, 40)
    assert (val["t2i"]["n"], val["t2i"]["gallery"]) == (40, 8)
    for direction in ("i2t", "t2i"):
        r1 = val[direction]["r1"]
        assert 0 <= r1["low"] <= r1["value"] <= r1["high"] <= 1
