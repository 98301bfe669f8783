"""What an ablation plans, and that everything wrong with it is said before a run starts."""

import pytest
from tiny_grids import CLAIM, tiny_grid, write_base

from mmlib import files
from mmlib.config import AblationConfig, ParameterError, build, read_yaml
from mmlib.training import plan_grid


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path)


def names(base, **changes) -> list[str]:
    return [run.name for run in plan_grid(tiny_grid(base, **changes))]


def refusal(base, **changes) -> str:
    with pytest.raises(ParameterError) as caught:
        plan_grid(tiny_grid(base, **changes))
    return str(caught.value)


def test_every_arm_is_planned_with_every_seed_and_its_own_parameters(base):
    planned = plan_grid(tiny_grid(base, seeds=[3, 5], changes={"lr": "2e-3"}))
    assert [run.name for run in planned] == [
        "grid.memory.s3", "grid.memory.s5", "grid.no-memory.s3", "grid.no-memory.s5",
    ]  # fmt: skip
    assert [run.config.seed for run in planned] == [3, 5, 3, 5]
    assert [run.config.memory for run in planned] == ["published", "published", "none", "none"]
    assert {(r.config.lr, r.config.device) for r in planned} == {(0.002, "cpu")}
    assert planned[0].config.latent_dim == 16  # of the base
    assert planned[2].differs == {"memory": "none"}


def test_the_grid_is_crossed_with_the_arms_and_names_come_from_values(base):
    grid = {"padding_mask": [True, False], "lr": ["1e-3"]}
    assert names(base, grid=grid) == [
        "grid.memory-padding_masktrue-lr0.001.s0", "grid.memory-padding_maskfalse-lr0.001.s0",
        "grid.no-memory-padding_masktrue-lr0.001.s0", "grid.no-memory-padding_maskfalse-lr0.001.s0",
    ]  # fmt: skip
    planned = plan_grid(tiny_grid(base, arms={}, grid={"memory": ["none", "cosine"]}))
    assert [run.arm for run in planned] == ["memorynone", "memorycosine"]
    assert planned[0].differs == {"memory": "none"}


def test_tuned_values_of_all_arms_and_of_one(base):
    tune = {"lr": [0.1, 0.2], "no-memory": {"lr": [0.3], "dropout": [0.0, 0.5]}}
    assert names(base, tune=tune, seeds=[0, 1]) == [
        "grid.memory.s0.lr0.1", "grid.memory.s0.lr0.2", "grid.memory.s1.lr0.1", "grid.memory.s1.lr0.2",
        "grid.no-memory.s0.lr0.3.dropout0.0", "grid.no-memory.s0.lr0.3.dropout0.5",
        "grid.no-memory.s1.lr0.3.dropout0.0", "grid.no-memory.s1.lr0.3.dropout0.5",
    ]  # fmt: skip


def test_what_is_tuned_for_an_arm_holds_for_what_the_grid_makes_of_it_and_no_other(base):
    arms = {"memory": {}, "memory-off": {"memory": "none"}}
    planned = plan_grid(
        tiny_grid(base, arms=arms, grid={"num_layers": [1, 2]}, tune={"memory": {"lr": [0.1, 0.2]}})
    )
    assert {run.arm: bool(run.tuned) for run in planned} == {
        "memory-num_layers1": True, "memory-num_layers2": True,
        "memory-off-num_layers1": False, "memory-off-num_layers2": False,
    }  # fmt: skip


def test_weights_are_given_to_all_arms_beside_the_file(base):
    changes = {"image_encoder": "timm:x", "image_weights": "default"}
    planned = plan_grid(tiny_grid(base, changes=changes, image_weights="w.safetensors"))
    assert {run.config.image_weights for run in planned} == {"w.safetensors"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"changes": {"memory_slotz": 1}}, "changes: unknown parameter 'memory_slotz'; did you mean 'mem"),
        ({"arms": {"a": {"lrr": 1}}}, "arm 'a': unknown parameter 'lrr'; did you mean 'lr'?"),
        ({"grid": {"epoch": [1]}}, "grid: unknown parameter 'epoch'; did you mean 'epochs'?"),
        ({"tune": {"memory": {"lrr": [1]}}}, "tune of 'memory': unknown parameter 'lrr'"),
        ({"arms": {"a": {"seed": 3}}}, "arm 'a': seed is set by the ablation's own parameter seeds"),
        ({"tune": {"memry": {"lr": [1]}}}, "tune: there is no arm 'memry'; there are: memory, no-memory"),
        ({"tune": {"lr": []}}, "tune: expected values of lr, found an empty list"),
        ({"grid": {"lr": [0.1, 0.1]}}, "two runs would be called 'grid.memory-lr0.1.s0': a seed,"),
        ({"seeds": [1, 1]}, "two runs would be called 'grid.memory.s1': a seed, arm or value is th"),
        ({"arms": {}}, "arms: expected one or more of them, or a grid, found neither"),
        ({"arms": {"a/b": {}}}, "arm 'a/b': run: expected a name of letters, digits"),
        ({"grid": {"memory": ["none"]}}, "arm 'no-memory': memory is in the grid too"),
        ({"arms": {"a": {"lr": 0.1}}, "tune": {"lr": [0.1]}}, "arm 'a': lr is tuned too"),
        ({"arms": {"a": {}, "b": {"memory_slots": 4}}}, "arm 'b' equals arm 'a'"),
        ({"arms": {"a": {}, "b": {"memory_slots": 1}}}, "arm 'b': memory_slots: input should be"),
        ({"arms": {"a": {"lr": "fast"}}}, "arm 'a': lr: expected a number, found 'fast' (str)"),
        ({"tune": {"lr": [0.1, -1.0]}}, "arm 'memory', lr -1.0: lr: input should be greater than 0"),
        ({"arms": {"a": {}, "b": {"shapes_val": 9}}}, "arm 'b': shapes_val is 9 and 8 in 'a'; arms"),
        ({"arms": {"a": {}, "b": {"bpe_vocabulary": 999}}}, "arm 'b': bpe_vocabulary is read by tokenizer"),
        ({"tune": {"no-memory": {"feedback_steps": [0, 1]}}}, "arm 'no-memory': feedback_steps is read by"),
        ({"grid": {"tokenizer": ["char", "bpe"], "bpe_vocabulary": [999]}}, "arm 'memory-tokenizerchar-bpe"),
        ({"changes": {"momentum": 0.8}}, "changes: momentum is read by optimizer 'sgd', 'rmsprop'; this r"),
        ({"data_root": "x"}, "  data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; t"),
        ({"image_weights": "default"}, "  image_weights is read by image_encoder <library>:<name>; this r"),
        ({"claims": [CLAIM | {"arm": "memroy"}]}, "claim 1: arm: there is no arm 'memroy'; there are: m"),
        ({"claims": [CLAIM | {"over": "x"}]}, "claim 1: over: there is no arm 'x'; there are: memory, no"),
        ({"claims": [CLAIM | {"over": "memory"}]}, "claim 1: expected two arms to compare, found 'mem"),
        ({"ensembles": {"e": ["memory", "x"]}}, "ensemble 'e': there is no arm 'x'; there are: memory, n"),
        ({"ensembles": {"e": ["memory"]}}, "ensemble 'e': expected two or more different arms, found ['m"),
        ({"ensembles": {"memory": ["memory", "no-memory"]}}, "ensemble 'memory': there is an arm of this"),
        ({"claims": [{"claim": "x"}]}, "claim 1: expected claim (a sentence), arm and over"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(base, changes, expected):
    message = refusal(base, **changes)
    assert "ablation 'grid' cannot be run as it is asked for:" in message
    assert expected in message


def test_what_all_arms_are_given_may_be_unread_in_some_of_them(base, tmp_path):
    arms = {"bpe": {"tokenizer": "bpe"}, "word": {"tokenizer": "word"}, "no-memory": {"memory": "none"}}
    planned = plan_grid(tiny_grid(base, arms=arms, changes={"bpe_vocabulary": 300, "min_word_count": 2}))
    assert {run.config.bpe_vocabulary for run in planned} == {300}
    sgd = write_base(tmp_path, optimizer="sgd", momentum=0.8)  # what the base reads may be changed away
    assert plan_grid(tiny_grid(sgd, changes={"optimizer": "adamw"}))[0].config.momentum == 0.8


def test_what_the_base_sets_and_does_not_read_is_refused(tmp_path):
    assert "base: data_root is read by dataset" in refusal(write_base(tmp_path, data_root="x"))
    needing = write_base(tmp_path, epochs=None)  # it needs the changes to be a run
    assert plan_grid(tiny_grid(needing, changes={"epochs": 1}))


def test_everything_wrong_is_listed_at_once(base):
    message = refusal(base, tune={"lr": []}, changes={"lrr": 1}, claims=[CLAIM | {"arm": "x"}])
    assert len(message.splitlines()) == 4


def test_a_base_that_is_missing_or_continues_another_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parameter file"):
        plan_grid(tiny_grid(str(tmp_path / "nothing.yaml")))
    assert "expected a run that starts from random weights" in refusal(write_base(tmp_path, parent="other"))


def test_mappings_are_expected_where_they_are():
    with pytest.raises(ParameterError, match="arms: expected a mapping of names to values, found 'x'"):
        build(AblationConfig, {"run": "a", "base": "b", "arms": "x"})
    with pytest.raises(ParameterError, match="arms: expected a mapping of names to values, found True"):
        build(AblationConfig, {"run": "a", "base": "b", "arms": True})


@pytest.mark.parametrize("path", sorted(files.PARAMS.glob("*/05_ablation.yaml")), ids=lambda p: p.parent.name)
def test_the_ablations_of_this_repository_can_be_planned(path):
    config = build(AblationConfig, read_yaml(path))
    planned = plan_grid(config)
    assert {run.config.dataset for run in planned} == {"flickr8k"}
    arms = {run.arm for run in planned}
    assert config.claims if len(arms) > 1 else len(config.seeds) >= 3  # a single row is for its seeds
