"""Continued runs: where they start, what they take over, and what stops them."""

import json
import shutil
from copy import deepcopy

import pytest
from tiny_runs import (
    TINY,
    assert_same,
    before_step,
    checkpoint,
    left_behind,
    press_ctrl_c,
    tiny_continue,
    tiny_train,
)

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data import shapes
from mmlib.files import read_json
from mmlib.training import run_state, start, stored_config

COMMAND = "python -m mmlib train params/x/01_train.yaml"

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture
def recipe(monkeypatch):
    """Says how the parent is trained, as a file of params/ does; returns the parameters to change."""
    parameters = dict(TINY)
    monkeypatch.setattr(start, "training_of", lambda run: (parameters, COMMAND) if run == "tiny" else None)
    return parameters


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_cache):
    """A complete run of one epoch, to copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", tiny_cache)
        patch.setattr(files, "RUNS", tmp_path_factory.mktemp("trained"))
        tiny_train(epochs=1)
        return files.RUNS / "tiny"


@pytest.fixture
def parent(trained, tiny_place):
    """The run `tiny`, complete after one epoch."""
    return shutil.copytree(trained, tiny_place / "tiny")


def test_it_starts_with_the_weights_and_the_tokenizer_of_the_parent(monkeypatch, parent):
    there, seen = checkpoint("tiny", "best"), []
    before_step(monkeypatch, 1, lambda t: seen.append(deepcopy((t.model.state_dict(), t.tokenizer.state))))
    tiny_continue(epochs=1)
    assert_same(there["model"], dict(seen[0][0]))
    assert there["tokenizer"] == seen[0][1]
    assert read_json(files.RUNS / "child" / "tokenizer.json") == there["tokenizer"]


def test_its_folder_says_where_it_comes_from(parent):
    tiny_continue(epochs=1, batch_size=60)
    parent = read_json(files.RUNS / "child" / "environment.json")["parent"]
    assert parent == {"run": "tiny", "checkpoint": "best", "epoch": 1, "optimizer_state": "keep"}
    config = stored_config("child")
    assert (config.run, config.lr, config.batch_size, config.latent_dim) == ("child", 0.005, 60, 16)


def test_a_missing_parent_of_embedded_data_is_trained_first(recipe):
    lines = []
    history = tiny_continue(epochs=1, log=lines.append)
    assert lines[0] == "the parent run 'tiny' is missing; its data are embedded, so it is trained first"
    assert run_state("tiny")[0] == run_state("child")[0] == "complete"
    assert history[-1]["phase"] == 2


def test_a_missing_parent_of_real_data_names_the_command_that_trains_it(recipe):
    recipe["dataset"] = "flickr8k"
    with pytest.raises(FileNotFoundError, match="parent run 'tiny' is missing; train it first:") as caught:
        tiny_continue()
    assert str(caught.value).endswith(f":\n  {COMMAND}")
    assert not (files.RUNS / "child").exists()


def test_a_parent_that_nothing_describes_is_an_error_that_names_the_runs_there(recipe):
    tiny_train(epochs=1, run="another")
    with pytest.raises(FileNotFoundError, match=r"no run 'nobody' in .*the runs there are: another"):
        tiny_continue(parent="nobody")


def test_a_run_is_not_its_own_parent(parent):
    with pytest.raises(ParameterError, match="run and parent are both 'tiny'"):
        tiny_continue(run="tiny")


def test_a_parent_that_is_not_complete(monkeypatch, recipe):
    with monkeypatch.context() as patch:
        before_step(patch, 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train()
    with monkeypatch.context() as patch:
        patch.setattr(start, "training_of", lambda run: None)
        with pytest.raises(ValueError, match="'tiny' is not complete but interrupted"):
            tiny_continue(epochs=1)
    # Its recipe is at hand, so it is finished first.
    tiny_continue(epochs=1)
    assert run_state("tiny")[0] == "complete"


def test_a_parent_of_real_data_that_is_not_complete_is_left_to_the_person(monkeypatch, recipe):
    with monkeypatch.context() as patch:
        before_step(patch, 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train()
    path = files.RUNS / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "flickr8k"}))
    with pytest.raises(ValueError, match="'tiny' is not complete but interrupted"):
        tiny_continue(epochs=1)


def test_another_optimizer_cannot_keep_the_state_of_the_parents():
    tiny_train(epochs=1, optimizer="sgd")
    with pytest.raises(
        ParameterError, match=r"'tiny' has 'sgd', asked for 'adamw'; use optimizer_state='reset'"
    ):
        tiny_continue(epochs=1, optimizer="adamw")
    assert not (files.RUNS / "child").exists()
    tiny_continue(epochs=1, optimizer="adamw", optimizer_state="reset")


def test_another_architecture_names_both_values(parent):
    with pytest.raises(ParameterError, match="latent_dim: the parent 'tiny' has 16, asked for 32"):
        tiny_continue(latent_dim=32)


def test_data_that_are_not_the_parents_are_refused_with_both_fingerprints(monkeypatch, parent):
    there = read_json(files.RUNS / "tiny" / "environment.json")["data"]["fingerprint"]
    monkeypatch.setattr(shapes, "RENDERER_VERSION", 99)
    with pytest.raises(
        ValueError, match=rf"'tiny' was trained on other data: .* {there} there, shapes with \w{{16}}"
    ):
        tiny_continue(epochs=1)
    assert not (files.RUNS / "child").exists()


def test_a_complete_child_is_refused_or_shown(recipe):
    history = tiny_continue(epochs=1)
    with pytest.raises(FileExistsError, match="'child' exists and is complete"):
        tiny_continue(epochs=1)
    assert tiny_continue(epochs=1, if_complete="show") == history


def test_a_child_of_another_parent_is_refused(recipe):
    tiny_continue(epochs=1)
    with pytest.raises(
        FileExistsError, match=r"with other parameters: parent: .*'best'.* there, .*'last'.* here"
    ):
        tiny_continue(epochs=1, parent_checkpoint="last")


def test_a_temperature_that_is_newly_learned_starts_at_the_one_asked_for(monkeypatch, parent):
    seen = []
    before_step(monkeypatch, 1, lambda training: seen.append(training.loss.temperature))
    history = tiny_continue(epochs=1, learn_temperature=True, temperature=0.05)
    assert seen == [pytest.approx(0.05)]
    assert history[-1]["temperature"] != pytest.approx(0.05, rel=1e-6)


def test_a_learned_temperature_goes_on_where_the_parent_left_it(monkeypatch):
    parent = tiny_train(epochs=1, learn_temperature=True)
    seen = []
    before_step(monkeypatch, 1, lambda training: seen.append(training.loss.temperature))
    tiny_continue(epochs=1)
    assert seen == [parent[-1]["temperature"]]
    # And one that is no longer learned is a parameter again, with the rest of the state kept.
    tiny_continue(run="fixed", epochs=1, learn_temperature=False, temperature=0.1)
    assert left_behind("fixed")["history"][-1]["temperature"] == pytest.approx(0.1)
