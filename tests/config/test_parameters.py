"""Parameters: every wrong one is refused with what was expected, what came and the nearest name."""

import pytest
from pydantic import ValidationError

from mmlib.config import (
    CONFIG_OF_NOTEBOOK,
    IDENTITY,
    AnalysisConfig,
    ContinueConfig,
    EvaluateConfig,
    ModelConfig,
    ParameterError,
    TrainConfig,
    build,
    continued,
    differences,
)

TRAIN = {
    "run": "a-run", "epochs": 3, "lr": 0.01,
    "image_size": 64, "tokenizer": "char", "max_tokens": 77, "patch_size": 8, "latent_dim": 128,
    "num_layers": 2, "num_heads": 4, "mlp_ratio": 4, "dropout": 0.1, "memory_slots": 32, "padding_mask": True,
}  # fmt: skip
CONTINUE = {"run": "b-run", "parent": "a-run", "epochs": 2, "lr": 0.005}


def message(config_class, parameters):
    with pytest.raises(ParameterError) as caught:
        build(config_class, parameters)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("learning_rate", "lr"),
        ("num_epochs", "epochs"),
        ("bs", "batch_size"),
        ("amp", "precision"),
        ("memory_size", "memory_slots"),
        ("width", "latent_dim"),
        ("epoch", "epochs"),
        ("batchsize", "batch_size"),
        ("temprature", "temperature"),
        ("pading_mask", "padding_mask"),
    ],
)
def test_an_unknown_name_brings_the_nearest(name, nearest):
    assert message(TrainConfig, TRAIN | {name: 1}) == (
        f"1 wrong parameter(s):\n  {name} = 1: unknown parameter; did you mean {nearest!r}?"
    )


def test_an_unknown_name_like_no_other_brings_all_names():
    text = message(EvaluateConfig, {"runs": ["a"], "zzz": 1})
    assert "zzz = 1: unknown parameter; known: " + ", ".join(EvaluateConfig.model_fields) in text


def test_another_trainers_word_is_no_hint_where_its_parameter_does_not_exist():
    assert "did you mean 'lr'" not in message(EvaluateConfig, {"runs": ["a"], "learning_rate": 1})


@pytest.mark.parametrize(
    ("name", "value", "expected", "found"),
    [
        ("lr", "fast", "expected a number", "found 'fast' (str)"),
        ("lr", True, "expected a number", "found True (bool)"),
        ("lr", None, "expected a number", "found None (NoneType)"),
        ("lr", [0.1], "expected a number", "found [0.1] (list)"),
        ("lr", 0, "greater than 0", "found 0 (int)"),
        ("lr", -0.1, "greater than 0", "found -0.1 (float)"),
        ("lr", "-1e-3", "greater than 0", "found -0.001 (float)"),
        ("lr", float("nan"), "finite number", "found nan (float)"),
        ("lr", "nan", "finite number", "found nan (float)"),
        ("lr", float("inf"), "finite number", "found inf (float)"),
        ("epochs", 0, "greater than or equal to 1", "found 0 (int)"),
        ("epochs", 2.5, "expected a whole number", "found 2.5 (float)"),
        ("epochs", True, "expected a whole number", "found True (bool)"),
        ("epochs", "many", "expected a whole number", "found 'many' (str)"),
        ("padding_mask", 1, "expected true or false", "found 1 (int)"),
        ("padding_mask", "1", "expected true or false", "found '1' (str)"),
        ("epochs", "0x10", "expected a whole number", "found '0x10' (str)"),
        ("epochs", "1:30", "expected a whole number", "found '1:30' (str)"),
        ("epochs", "9" * 5000, "expected a whole number", "found inf (float)"),
        ("epochs", 2**63, "expected a number that fits into 64 bits", "found 9223372036854775808 (int)"),
        ("lr", "1e999", "finite number", "found inf (float)"),
        ("data_root", "a\0b", "expected text in UTF-8, without NUL", r"found 'a\x00b' (str)"),
        ("run", "\x1b[31m" + "x" * 10_000, "at most 100 bytes long, f", r"found '\x1b[31mxxx"),
        (
            "run",
            True,
            "expected text; put it in quotes in Python, or give it with papermill's -r",
            "found Tr",
        ),
        ("dropout", 1.0, "less than 1", "found 1.0 (float)"),
        ("temperature", 0, "greater than 0", "found 0 (int)"),
        ("optimizer", "adamv", "'sgd', 'adamw'", "found 'adamv' (str); did you mean 'adam'?"),
        ("tokenizer", True, "input should be 'char', 'char-ref", "found True (bool)"),
        (
            "run",
            7,
            "expected text; put it in quotes in Python, or give it with papermill's -r",
            "found 7 (int)",
        ),
        ("run", "../elsewhere", "expected a name of letters, digits", "found '../elsewhere' (str)"),
        ("run", "", "expected a name of letters, digits", "found '' (str)"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected_and_what_came(name, value, expected, found):
    text = message(TrainConfig, TRAIN | {name: value})
    assert len(text) < 1000
    assert text.startswith(f"1 wrong parameter(s):\n  {name}: ")
    assert expected in text
    assert found in text
    assert text.endswith(f"it is: {TrainConfig.model_fields[name].description}")


def test_a_number_of_thousands_of_digits_has_a_message():
    text = message(TrainConfig, TRAIN | {"epochs": 10**5000})
    assert "expected a number that fits into 64 bits, found a number of thousands of digits (int)" in text


def test_a_name_inside_a_list_is_checked():
    assert "runs: expected a name of letters, digits" in message(EvaluateConfig, {"runs": ["ok", "not/ok"]})
    assert "expected a list" in message(EvaluateConfig, {"runs": 7})
    assert build(EvaluateConfig, {"runs": "a-run"}).runs == ["a-run"]  # as papermill's -p hands it over
    assert "at least 1 item" in message(AnalysisConfig, {"runs": []})


def test_all_errors_are_listed_at_once():
    text = message(TrainConfig, {"lr": 0, "batch_size": 1, "optimiser": "sgd", "amp": False})
    lines = text.splitlines()
    assert lines[0] == "6 wrong parameter(s):"
    assert sorted(line.split()[0].rstrip(":") for line in lines[1:]) == [
        "amp", "batch_size", "epochs", "lr", "optimiser", "run",
    ]  # fmt: skip
    assert "  epochs: missing; expected epochs of this phase" in lines


def test_sizes_that_do_not_fit_each_other_are_listed_at_once():
    text = message(
        TrainConfig, TRAIN | {"latent_dim": 100, "num_heads": 3, "patch_size": 7, "warmup_epochs": 3}
    )
    assert "num_heads must divide latent_dim: 100 is not a multiple of 3" in text
    assert "patch_size must divide image_size: 64 is not a multiple of 7" in text
    assert "warmup_epochs must be smaller than epochs: found 3.0 of 3" in text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("lr", " 2 ", 2.0),
        ("epochs", "5", 5),
        ("epochs", "1e1", 10),
        ("epochs", 5.0, 5),
        ("shapes_train", "2000.0", 2000),
        ("padding_mask", "false", False),
        ("padding_mask", "True", True),
        ("overwrite", "FALSE", False),
        ("run", "2024", "2024"),
    ],
)
def test_text_that_reads_as_the_expected_value_is_taken(name, text, value):
    config = build(TrainConfig, TRAIN | {name: text})
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize("text", ["null", "None"])
def test_text_that_reads_as_nothing_is_taken_where_nothing_is_allowed(text):
    assert build(ContinueConfig, CONTINUE | {"batch_size": text}).batch_size is None
    assert "expected a number" in message(TrainConfig, TRAIN | {"lr": text})


def test_a_whole_number_is_a_number():
    lr = build(TrainConfig, TRAIN | {"lr": 1}).lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_a_config_is_frozen():
    config = build(TrainConfig, TRAIN)
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 1.0


@pytest.mark.parametrize("config_class", CONFIG_OF_NOTEBOOK.values())
def test_every_parameter_says_what_it_is(config_class):
    assert [name for name, field in config_class.model_fields.items() if not field.description] == []


# --- continued runs


def test_a_continued_run_takes_what_it_does_not_name_from_its_parent():
    parent = build(
        TrainConfig, TRAIN | {"batch_size": 32, "latent_dim": 64, "schedule": "constant", "seed": 5}
    )
    config = continued(build(ContinueConfig, CONTINUE), parent)
    assert (config.batch_size, config.latent_dim, config.schedule) == (32, 64, "constant")
    assert (config.run, config.epochs, config.lr, config.seed) == ("b-run", 2, 0.005, 0)


def test_a_continued_run_may_change_its_recipe():
    asked = {"batch_size": 17, "temperature": 0.1, "schedule": "constant", "identity_positives": False}
    config = continued(build(ContinueConfig, CONTINUE | asked), build(TrainConfig, TRAIN))
    assert asked.items() <= config.model_dump().items()


def test_a_continued_run_does_not_inherit_the_parents_warm_up():
    parent = build(TrainConfig, TRAIN | {"epochs": 30, "warmup_epochs": 2})
    assert continued(build(ContinueConfig, CONTINUE), parent).warmup_epochs == 0


OTHER = {
    "dataset": "flickr8k", "also_train_on": ["coco"], "data_name": "home", "private": True,
    "val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 1, "train_shards": ["a.tar"],
    "val_shards": ["b.tar"], "test_shards": ["c.tar"], "shapes_seed": 1, "shapes_train": 7,
    "shapes_val": 7, "shapes_test": 7, "image_size": 32, "resize": "crop", "leaks": "keep",
    "tokenizer": "word", "max_tokens": 9, "min_word_count": 2, "bpe_vocabulary": 300,
    "image_encoder": "resnet18", "image_weights": "a", "image_pooling": "attention",
    "text_encoder": "gru", "text_weights": "b",
    "patch_size": 16, "latent_dim": 64, "num_layers": 1, "num_heads": 2, "mlp_ratio": 2, "dropout": 0.0,
    "memory": "cosine", "memory_slots": 8, "feedback_steps": 1, "padding_mask": False, "memory_write": True,
}  # fmt: skip


def test_conflicts_with_the_parent_name_both_values():
    parent = build(TrainConfig, TRAIN)
    with pytest.raises(ParameterError) as caught:
        continued(build(ContinueConfig, CONTINUE | OTHER), parent)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data, tokenizer and architecture come from the parent; these differ:"
    assert set(OTHER) == set(IDENTITY) - {"data_root"}
    for name, line in zip(OTHER, lines[1:-1], strict=True):
        assert (
            line == f"  {name}: the parent 'a-run' has {getattr(parent, name)!r}, asked for {OTHER[name]!r}"
        )
    assert lines[-1] == "Leave them out, or train a new run with notebook 01."


def test_naming_the_parents_own_values_is_no_conflict_and_data_may_have_moved():
    parent = build(TrainConfig, TRAIN | {"dataset": "flickr8k"})
    same = {name: getattr(parent, name) for name in ModelConfig.model_fields}
    config = continued(build(ContinueConfig, CONTINUE | same | {"data_root": "/mnt/other"}), parent)
    assert config.data_root == "/mnt/other"


def test_what_a_continued_run_inherits_may_be_unread_and_what_it_asks_for_may_not():
    parent = build(TrainConfig, TRAIN | {"optimizer": "sgd", "momentum": 0.8})
    changed = {"optimizer": "adamw", "optimizer_state": "reset"}
    assert continued(build(ContinueConfig, CONTINUE | changed), parent).momentum == 0.8
    with pytest.raises(ParameterError) as caught:
        continued(build(ContinueConfig, CONTINUE | changed | {"momentum": 0.7, "data_root": "x"}), parent)
    assert str(caught.value) == (
        "2 parameter(s) that nothing in this run reads:\n"
        "  momentum is read by optimizer 'sgd', 'rmsprop'; this run has optimizer 'adamw'\n"
        "  data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this run has dataset"
        " 'shapes'\n"
        "Leave them out, or choose what reads them."
    )


def test_a_continued_runs_values_are_checked_together_with_the_inherited_ones():
    asked = build(ContinueConfig, CONTINUE | {"warmup_epochs": 2})
    with pytest.raises(ParameterError, match="warmup_epochs must be smaller than epochs"):
        continued(asked, build(TrainConfig, TRAIN))


def test_a_resumed_run_may_differ_in_what_it_does_not_read():
    here, there = (build(TrainConfig, TRAIN | {"momentum": m, "optimizer": "adamw"}) for m in (0.1, 0.2))
    assert differences(here, there) == []
    here, there = (build(TrainConfig, TRAIN | {"momentum": m, "optimizer": "sgd"}) for m in (0.1, 0.2))
    assert differences(here, there) == ["momentum: 0.1 there, 0.2 here"]


def test_a_resumed_run_may_move_and_nothing_else():
    here = build(TrainConfig, TRAIN)
    moved = build(
        TrainConfig, TRAIN | {"data_root": "x", "device": "cpu", "overwrite": True, "checkpoint_seconds": 1}
    )
    other = build(TrainConfig, TRAIN | {"lr": 0.02, "padding_mask": False})
    assert differences(here, moved) == []
    assert sorted(differences(here, other)) == [
        "lr: 0.01 there, 0.02 here",
        "padding_mask: True there, False here",
    ]
