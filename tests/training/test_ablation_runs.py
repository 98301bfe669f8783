"""Ablations end to end: trained once, evaluated once, resumed, failures kept."""

import os

import numpy as np
import pytest
import torch
from faults.forked import ended, settle
from tiny_grids import CLAIM, tiny_grid, write_base
from tiny_runs import before_step, left_behind, press_ctrl_c, quiet

from mmlib.config import ParameterError
from mmlib.data import load_dataset
from mmlib.data.augment import normalise
from mmlib.files import InUse
from mmlib.model import DualEncoder, MemoryNetwork
from mmlib.reporting import ablation_checks, ablation_table, ablation_verdicts
from mmlib.training import (
    evaluation,
    read_ablation,
    read_history,
    read_result,
    run_folder,
    run_grid,
    run_state,
    start,
)
from mmlib.training.loop import Learner
from mmlib.training.runs import open_run

pytestmark = pytest.mark.usefixtures("tiny_place")

TUNE = {"no-memory": {"lr": [1e-6, 0.01]}}
DIVERGING = {"optimizer": "sgd", "lr": 1e30, "clip_norm": 0.0, "epochs": 2}


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path)


@pytest.fixture
def work(monkeypatch):
    """What is done, in order: runs that are trained or evaluated."""
    done = []
    train, evaluate = start.train, evaluation.evaluate

    def counted_train(config, *more, **named):
        done.append(f"train {config.run}")
        return train(config, *more, **named)

    def counted_evaluate(config):
        done.append(f"{config.split} {config.runs[0]}")
        return evaluate(config)

    monkeypatch.setattr(start, "train", counted_train)
    monkeypatch.setattr(evaluation, "evaluate", counted_evaluate)
    return done


def test_runs_are_trained_and_evaluated_once_and_then_only_shown(base, work):
    lines = []
    config = tiny_grid(base, seeds=[0, 1], claims=[CLAIM])
    record = run_grid(config, lines.append)
    finals = ["grid.memory.s0", "grid.memory.s1", "grid.no-memory.s0", "grid.no-memory.s1"]
    assert work == [f"{what} {run}" for run in finals for what in ("train", "val")]
    assert [line.split(":")[0] for line in lines] == [f"{n}/4  {run}" for n, run in enumerate(finals, 1)]
    assert run_state("grid") == ("complete", None)
    assert run_grid(config, quiet) == record == read_ablation("grid")
    assert len(work) == 8
    assert run_state("grid") == ("complete", None)
    arm = record["arms"][0]
    assert [run["run"] for run in arm["runs"]] == finals[:2]
    assert arm["metrics"]["i2t_r1"]["values"] == [
        read_result(run)["protocols"]["standard"]["i2t"]["r1"]["value"] for run in finals[:2]
    ]
    assert arm["interval"] == "seeds and queries"
    assert record["claims"][0]["seeds"] == [0, 1]
    assert record["scope"]["split"] == "val"


def test_an_ensemble_ranks_by_the_mean_similarity_of_its_arms(base):
    claim = {"claim": "together they are better", "arm": "both", "over": "memory"}
    config = tiny_grid(base, ensembles={"both": ["memory", "no-memory"]}, seeds=[0, 1], claims=[claim])
    record = run_grid(config, quiet)
    assert run_grid(config, quiet) == record == read_ablation("grid")
    (both,) = record["ensembles"]
    assert (both["of"], both["seeds"], both["interval"]) == (
        ["memory", "no-memory"],
        [0, 1],
        "seeds and queries",
    )
    for seed in (0, 1):
        similarity = 0
        for arm in both["of"]:
            parts = evaluation.load_run(f"grid.{arm}.s{seed}", "best", torch.device("cpu"))
            dataset = load_dataset(parts.config)
            split, size = dataset.split("val"), parts.config.image_size
            pixels = np.stack([np.asarray(dataset.source.load(name, size)) for name in split.images])
            tokens, length = map(torch.from_numpy, parts.tokenizer.encode(split.captions, 24))
            with torch.no_grad():
                image = parts.model.embed_images(normalise(torch.from_numpy(pixels)))
                text = parts.model.embed_captions(tokens, length)
            similarity = similarity + torch.cosine_similarity(image[:, None], text[None], dim=-1)
        first = similarity.argmax(0).numpy()
        expected = (first == split.image_of_caption_M).mean()
        assert both["metrics"]["t2i_r1"]["values"][seed] == pytest.approx(expected)
    assert record["claims"][0]["seeds"] == [0, 1]
    row = ablation_table(record).frame.iloc[-2]
    assert (row["arm"], row["seeds"]) == ("both", "0, 1")
    assert row["what differs"] == "the embeddings of memory and no-memory, joined"
    ablation_checks(record)


def test_an_ensemble_has_no_row_of_a_seed_of_which_an_arm_failed(base):
    config = tiny_grid(
        base,
        arms={"memory": {}, "lost": DIVERGING},
        ensembles={"both": ["memory", "lost"]},
        claims=[{"claim": "together", "arm": "both", "over": "memory"}],
    )
    record = run_grid(config, quiet)
    assert record["ensembles"][0]["metrics"] == {}
    assert record["claims"][0]["verdict"] == "not judged"
    said = ablation_table(record).frame["direction"].iloc[-1]
    assert said == "failed: with no seed have all of its arms ended well"
    assert "grid.lost.s0: FloatingPointError" in ablation_verdicts(record).sentences[0]


def test_what_is_tuned_is_chosen_on_validation_and_only_the_chosen_sees_the_test_split(base, work):
    record = run_grid(tiny_grid(base, tune=TUNE, seeds=[0, 1], split="test"), quiet)
    tried = record["arms"][1]["tried"]
    better = max(tried, key=lambda run: run["validation"])
    assert [run["chosen"] for run in tried] == [run is better for run in tried]
    assert record["arms"][1]["tuned"] == better["tuned"]
    value = better["tuned"]["lr"]
    loser = next(run["run"] for run in tried if run is not better)
    assert [run["run"] for run in record["arms"][1]["runs"]] == [
        f"grid.no-memory.s{seed}.lr{value}" for seed in (0, 1)
    ]
    assert f"test {loser}" not in work
    assert not (run_folder(loser) / "results.json").exists()
    assert not run_folder(loser.replace("s0", "s1")).exists()  # other seeds get the chosen value alone
    assert record["arms"][0]["tried"] == []


def test_of_equally_good_values_the_first_is_chosen(base):
    # No gradient is as large, so that both runs are the same.
    record = run_grid(tiny_grid(base, arms={"a": {}}, tune={"clip_norm": [2e9, 1e9]}), quiet)
    assert record["arms"][0]["tuned"] == {"clip_norm": 2e9}


def test_another_split_is_evaluated_without_training_again(base, work):
    run_grid(tiny_grid(base), quiet)
    work.clear()
    run_grid(tiny_grid(base, split="test"), quiet)
    assert work == ["test grid.memory.s0", "test grid.no-memory.s0"]


def test_a_diverging_run_is_a_row_and_not_the_end(base, work):
    lines = []
    arms = {"wild": DIVERGING, "tame": {}}
    claims = [{"claim": "wild wins", "arm": "wild", "over": "tame"}]
    record = run_grid(tiny_grid(base, arms=arms, claims=claims), lines.append)
    (wild,) = record["arms"][0]["runs"]
    assert wild["state"] == "failed"
    assert "FloatingPointError: the " in wild["reason"]
    assert "1/2  grid.wild.s0: failed, FloatingPointError" in lines[0]
    assert record["arms"][1]["runs"][0]["state"] == "complete"
    assert record["claims"][0]["verdict"] == "not judged"
    assert run_state("grid")[0] == "complete"
    run_grid(tiny_grid(base, arms=arms, claims=claims), quiet)
    assert work.count("train grid.wild.s0") == 1


def test_a_run_that_collapses_is_named_is_not_evaluated_and_carries_no_claim(base, work, monkeypatch):
    def one_point(self, image, write=False):
        return embed(self, image, write) * 1e-6 + 1

    embed = DualEncoder.embed_images
    monkeypatch.setattr(MemoryNetwork, "embed_images", one_point)
    lines = []
    claims = [{"claim": "the memory helps", "arm": "memory", "over": "no-memory"}]
    record = run_grid(tiny_grid(base, changes={"epochs": 2}, claims=claims), lines.append)
    (gone,) = record["arms"][0]["runs"]
    assert gone["state"] == "collapsed"
    assert gone["reason"].startswith("the image embeddings have collapsed to one point (spread 0.000)")
    assert lines[0].startswith("1/2  grid.memory.s0: collapsed, the image embeddings")
    assert "test grid.memory.s0" not in work
    assert record["claims"][0]["verdict"] == "not judged"
    table = ablation_table(record).frame
    assert table["direction"][0].startswith("collapsed: the image embeddings")
    assert "Collapsed: grid.memory.s0" in ablation_checks(record).caption
    assert run_grid(tiny_grid(base, changes={"epochs": 2}, claims=claims), quiet) == record


def test_a_value_that_diverges_is_not_chosen_and_an_arm_whose_values_all_do_has_no_final_run(base):
    wild = {key: value for key, value in DIVERGING.items() if key != "lr"}
    tune = {"lr": [1e30, 1e-4]}
    record = run_grid(tiny_grid(base, arms={"a": wild}, tune=tune), quiet)
    assert record["arms"][0]["tuned"] == {"lr": 1e-4}
    record = run_grid(tiny_grid(base, run="gone", arms={"a": wild}, tune={"lr": [1e30, 2e30]}), quiet)
    assert record["arms"][0]["runs"] == []
    assert record["scope"] is None


def test_an_interrupted_grid_goes_on_to_the_same_end(base, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, 6, press_ctrl_c)  # in the second run
        with pytest.raises(KeyboardInterrupt):
            run_grid(tiny_grid(base), quiet)
    assert run_state("grid") == ("interrupted", "stopped on request; the same call goes on")
    assert run_state("grid.no-memory.s0")[0] == "interrupted"
    run_grid(tiny_grid(base), quiet)
    run_grid(tiny_grid(base, run="whole"), quiet)
    for arm in ("memory", "no-memory"):
        there, here = (left_behind(f"{name}.{arm}.s0") for name in ("grid", "whole"))
        assert here["weights"] == there["weights"]
        assert [row["train_loss"] for row in here["history"]] == [r["train_loss"] for r in there["history"]]


def test_an_error_that_is_no_result_ends_the_grid_and_is_tried_again(base, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "backward", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            run_grid(tiny_grid(base), quiet)
    assert run_state("grid") == ("failed", "RuntimeError: out of memory")
    assert len(run_grid(tiny_grid(base), quiet)["arms"]) == 2


def test_runs_with_other_parameters_are_named_before_anything_is_trained(base, work):
    run_grid(tiny_grid(base), quiet)
    work.clear()
    with pytest.raises(FileExistsError) as caught:
        run_grid(tiny_grid(base, changes={"lr": 0.5}), quiet)
    assert "grid.memory.s0: lr: 0.01 there, 0.5 here" in str(caught.value)
    assert "grid.no-memory.s0: lr: 0.01 there, 0.5 here" in str(caught.value)
    assert "overwrite=True" in str(caught.value)
    assert work == []
    run_grid(tiny_grid(base, changes={"lr": 0.5}, overwrite=True), quiet)
    assert read_history("grid.memory.s0")[0]["lr"] == 0.5


def test_torchrun_is_refused(base, monkeypatch):
    monkeypatch.setattr("mmlib.training.processes.process_count", lambda: 2)
    with pytest.raises(ParameterError, match="start the command without torchrun"):
        run_grid(tiny_grid(base), quiet)


def test_an_ablation_that_another_process_runs_is_refused(base, work):
    with open_run("grid"), pytest.raises(InUse, match="run 'grid'"):
        run_grid(tiny_grid(base), quiet)
    assert work == []
    with open_run("grid.memory.s0") as folder:  # which it has trained already
        folder.write_json("results.json", {})
    with open_run("grid"), pytest.raises(InUse, match="run 'grid'"):
        run_grid(tiny_grid(base, overwrite=True), quiet)
    assert (run_folder("grid.memory.s0") / "results.json").exists()


def test_what_a_killed_process_leaves_is_finished_by_the_next(base, tiny_place, tiny_cache):
    config = tiny_grid(base, arms={"a": {}})
    assert ended(_die_in_a_step, tiny_place, tiny_cache, config) == -9
    assert run_state("grid")[0] == "killed"
    assert run_state("grid.a.s0")[0] == "killed"
    assert run_grid(config, quiet)["arms"][0]["runs"][0]["state"] == "complete"


def _die_in_a_step(runs, cache, config):
    settle(runs, cache)
    Learner.backward = lambda *_: os.kill(os.getpid(), 9) or torch.zeros(())
    run_grid(config, quiet)
