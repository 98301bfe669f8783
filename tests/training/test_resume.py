"""A run that is interrupted and goes on equals one that never stopped, to the last bit."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from tiny_runs import (
    ADAMW_ONE,
    RECIPES,
    SGD_ALL,
    STEPS,
    assert_same,
    before_step,
    checkpoint,
    left_behind,
    press_ctrl_c,
    tiny_continue,
    tiny_train,
)

from mmlib import files
from mmlib.training import loop, run_state

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """Gives what a run leaves behind if nothing interrupts it; each is trained once."""

    @cache
    def whole(**changes) -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "RUNS", tmp_path_factory.mktemp("never-stopped"))
            tiny_train(**changes)
            return left_behind("tiny")

    return whole


@pytest.mark.parametrize(
    ("step", "recipe"),
    [(2, SGD_ALL), (STEPS, ADAMW_ONE), (STEPS + 1, SGD_ALL), (2 * STEPS, ADAMW_ONE)],
    ids=["inside an epoch", "at an epoch's end", "at an epoch's start", "at the very end"],
)
def test_a_run_that_was_asked_to_stop_goes_on_bit_for_bit(step, recipe, never_stopped, monkeypatch):
    whole = never_stopped(**recipe)
    with monkeypatch.context() as patch:
        before_step(patch, step, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**recipe)
    assert run_state("tiny")[0] == "interrupted"
    stopped_at = checkpoint("tiny")["position"]
    assert (stopped_at["epoch"], stopped_at["step"]) == ((step - 1) // STEPS + 1, (step - 1) % STEPS + 1)

    lines = []
    tiny_train(**recipe, log=lines.append)
    assert any("goes on in epoch" in line for line in lines)
    assert_same(whole, left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)


def test_a_stop_asked_for_in_the_validation_comes_at_the_next_step(never_stopped, monkeypatch):
    recipe = SGD_ALL
    whole = never_stopped(**recipe)
    rank_split = loop.rank_split

    def interrupted(*arguments):
        press_ctrl_c()
        return rank_split(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "rank_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**recipe)
    assert len(left_behind("tiny")["history"]) == 1
    tiny_train(**recipe)
    assert_same(whole, left_behind("tiny"))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_stopped_at_every_step_ends_as_one_never_stopped(recipe, never_stopped, monkeypatch):
    whole = never_stopped(**recipe)
    for _ in range(2 * STEPS):
        with monkeypatch.context() as patch:
            before_step(patch, 1, press_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                tiny_train(**recipe)
    tiny_train(**recipe)
    assert_same(whole, left_behind("tiny"))


@pytest.mark.parametrize(("seconds", "stopped"), [(0, False), (3600, False), (3600, True)])
def test_how_often_a_checkpoint_is_written_changes_nothing(seconds, stopped, never_stopped, monkeypatch):
    """At every step; or at the end alone, or a stop, the best weights kept in memory until then."""
    recipe = {"checkpoint_seconds": seconds, "checkpoint_steps": 0}
    whole = deepcopy(never_stopped())
    if stopped:
        with monkeypatch.context() as patch:
            before_step(patch, STEPS + 2, press_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                tiny_train(**recipe)
        assert checkpoint("tiny", "best")["position"]["epoch"] == 2
    tiny_train(**recipe)
    rest = left_behind("tiny")
    for content in (*whole.values(), *rest.values()):
        if isinstance(content, dict):
            del content["config"]["checkpoint_seconds"], content["config"]["checkpoint_steps"]
    assert_same(whole, rest)


def test_an_epoch_that_is_short_writes_no_checkpoint(monkeypatch):
    seen = []
    before_step(monkeypatch, STEPS + 2, lambda _: seen.extend(sorted(files.RUNS.joinpath("tiny").iterdir())))
    tiny_train(checkpoint_seconds=3600, checkpoint_steps=0)
    names = {path.name for path in seen}
    assert "history.jsonl" in names
    assert not names & {"last.pt", "best.pt", "model.safetensors"}
    assert checkpoint("tiny")["position"]["epoch"] == 3


def test_a_learned_temperature_is_resumed_too(never_stopped, monkeypatch):
    learned = {"learn_temperature": True}
    whole = never_stopped(**learned)
    assert whole["history"][-1]["temperature"] != pytest.approx(0.07)
    with monkeypatch.context() as patch:
        before_step(patch, 3, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**learned)
    tiny_train(**learned)
    assert_same(whole, left_behind("tiny"))


def test_a_continued_run_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    tiny_train(epochs=1)
    tiny_continue()
    whole = left_behind("child")
    (files.RUNS / "child").rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_step(patch, STEPS + 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_continue()
    tiny_continue()
    assert_same(whole, left_behind("child"))
    assert run_state("child") == ("complete", None)


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    def twice(_):
        press_ctrl_c()
        press_ctrl_c()

    before_step(monkeypatch, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        tiny_train()
    assert run_state("tiny")[0] == "interrupted"
    assert not (files.RUNS / "tiny" / "last.pt").exists()  # nobody waited for it


def test_the_seed_decides_the_run_and_nothing_that_was_drawn_before(never_stopped):
    whole = never_stopped()
    torch.rand(7)
    tiny_train()
    assert_same(whole, left_behind("tiny"))
    tiny_train(run="other", seed=1, epochs=1)
    other = left_behind("other")
    assert other["history"][0]["train_loss"] != whole["history"][0]["train_loss"]
