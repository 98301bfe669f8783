"""A parameter that is set and that nothing in a run reads is refused, with what would read it."""

import pytest

from mmlib.config import (
    IDENTITY,
    AblationConfig,
    ContinueConfig,
    DataConfig,
    EvaluateConfig,
    ParameterError,
    TrainConfig,
    ask,
    build,
    continued,
    unread,
)

RUN = {"run": "a-run", "epochs": 3, "lr": 0.01}
SHARDS = {"dataset": "shards", "train_shards": ["a.tar"], "val_shards": ["b.tar"]}
FROZEN = {"image_encoder": "timm:x", "image_weights": "default", "image_tune": "none"}
TEXT = {"text_encoder": "hf:x", "tokenizer": "encoder"}

# parameter: a value away from its default, a run that reads it, and one that does not
CASES = {
    "data_root": ("x", {"dataset": "coco"}, {}),
    "also_train_on": (["coco"], {"dataset": "flickr8k"}, SHARDS),
    "data_name": ("home", {"dataset": "folder"}, {}),
    "private": (True, {"dataset": "folder"}, {"dataset": "coco"}),
    "val_fraction": (0.2, {"dataset": "folder"}, SHARDS),
    "test_fraction": (0.2, {"dataset": "folder"}, {}),
    "split_seed": (1, {"dataset": "folder"}, {}),
    "train_shards": (["a.tar"], SHARDS, {}),
    "val_shards": (["b.tar"], SHARDS, {}),
    "test_shards": (["c.tar"], SHARDS, {"dataset": "coco"}),
    "shapes_seed": (1, {}, {"dataset": "coco"}),
    "shapes_train": (7, {}, SHARDS),
    "shapes_val": (7, {}, SHARDS),
    "shapes_test": (7, {}, SHARDS),
    "resize": ("crop", SHARDS, {}),
    "leaks": ("keep", SHARDS, {}),
    "min_word_count": (2, {}, {"tokenizer": "char"}),
    "bpe_vocabulary": (300, {"tokenizer": "bpe"}, {}),
    "image_weights": ("default", {"image_encoder": "timm:x"}, {"image_encoder": "resnet18"}),
    "text_weights": ("default", TEXT, {}),
    "image_pooling": ("attention", {"image_encoder": "resnet18"}, {}),
    "patch_size": (16, {}, {"image_encoder": "resnet18"}),
    "num_layers": (3, {"text_encoder": "gru"}, {"text_encoder": "gru", "image_encoder": "resnet18"}),
    "num_heads": (8, FROZEN | TEXT, FROZEN | TEXT | {"memory": "none"}),
    "mlp_ratio": (2, FROZEN | {"text_encoder": "words"}, FROZEN | {"text_encoder": "gru"}),
    "memory_slots": (8, {"memory": "cosine"}, {"memory": "none"}),
    "feedback_steps": (1, {}, {"memory": "none"}),
    "memory_write": (True, {}, {"memory": "cosine"}),
    "padding_mask": (False, {}, {"text_encoder": "gru"}),
    "temperature": (0.1, {"loss": "sigmoid"}, {"loss": "triplet"}),
    "learn_temperature": (True, {}, {"loss": "triplet"}),
    "label_smoothing": (0.1, {}, {"loss": "sigmoid"}),
    "sigmoid_bias": (-5.0, {"loss": "sigmoid"}, {}),
    "margin": (0.1, {"loss": "triplet"}, {}),
    "hardest_after_epochs": (2.0, {"loss": "triplet"}, {}),
    "crop_area": (0.5, FROZEN | {"cache_features": False}, FROZEN),
    "flip": (True, FROZEN | {"feature_views": 2}, FROZEN),
    "colour": (0.5, FROZEN | SHARDS, FROZEN),
    "randaugment": (1, {}, FROZEN),
    "image_lr_scale": (0.1, {"image_encoder": "timm:x"}, FROZEN),
    "text_lr_scale": (0.1, TEXT, {}),
    "layer_decay": (0.9, FROZEN | TEXT, FROZEN),
    "cache_features": (False, FROZEN, {"image_encoder": "timm:x"}),
    "feature_views": (3, FROZEN | {"flip": True}, FROZEN),
    "momentum": (0.8, {"optimizer": "rmsprop"}, {}),
    "schedule_unit": ("step", {}, {"schedule": "constant"}),
    "final_lr_fraction": (0.1, {}, {"schedule": "constant"}),
    "checkpoint_seconds": (5.0, {}, {"checkpoint_steps": 10}),
}


def test_every_parameter_of_the_table_has_a_case_and_exists():
    assert CASES.keys() == {name for _, names in TrainConfig.READ_BY for name in names}
    readers = {reader for row, _ in TrainConfig.READ_BY for reader in row}
    assert CASES.keys() | readers <= TrainConfig.model_fields.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_is_refused_where_nothing_reads_it(name):
    value, reader, other = CASES[name]
    config = ask(TrainConfig, RUN | reader | {name: value})
    assert getattr(config, name) == value
    with pytest.raises(ParameterError) as caught:
        ask(TrainConfig, RUN | other | {name: value})
    first, line, last = str(caught.value).splitlines()
    assert first == "1 parameter(s) that nothing in this run reads:"
    assert line.startswith(f"  {name} is read by ")
    assert last == "Leave them out, or choose what reads them."
    assert ask(TrainConfig, RUN | {k: v for k, v in other.items() if k != name})  # its default is fine


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"data_root": "/x"},
            "data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this run has dataset"
            " 'shapes'",
        ),
        (
            {"image_weights": "default"},
            "image_weights is read by image_encoder <library>:<name>; this run has image_encoder 'vit'",
        ),
        (
            FROZEN | {"crop_area": 0.5},
            "crop_area is read by image_tune other than 'none' or cache_features False or dataset 'shards' or"
            " feature_views other than 1; this run has image_tune 'none', cache_features True, dataset"
            " 'shapes', feature_views 1",
        ),
    ],
)
def test_the_message_says_what_would_read_it_and_what_there_is(changes, expected):
    (name,) = set(unread(build(TrainConfig, RUN | changes)))
    assert unread(build(TrainConfig, RUN | changes))[name] == expected


def test_only_asking_refuses_so_that_stored_configs_can_be_read():
    assert build(TrainConfig, RUN | {"momentum": 0.1}).momentum == 0.1


@pytest.mark.parametrize("name", CASES)
def test_a_continued_run_reads_what_its_parent_makes_it_read(name):
    """`null` in its config is no value: the parent has the data set, the optimizer, the encoders."""
    value, reading, other = CASES[name]
    on = ask(ContinueConfig, {"run": "b", "parent": "a-run", "epochs": 1, "lr": 0.1, name: value})
    if name not in (*IDENTITY, "checkpoint_seconds") or name == "data_root":
        assert getattr(continued(on, build(TrainConfig, RUN | reading)), name) == value
        with pytest.raises(ParameterError, match=f"{name} is read by"):
            continued(on, build(TrainConfig, RUN | other))


def test_configs_that_other_runs_decide_on_are_asked_for_as_they_are():
    assert ask(EvaluateConfig, {"runs": "a", "data_root": "x"}).data_root == "x"
    assert ask(AblationConfig, {"run": "a", "base": "b", "image_weights": "w"}).image_weights == "w"
    with pytest.raises(ParameterError, match="train_shards is read by dataset 'shards'"):
        ask(DataConfig, {"train_shards": ["a.tar"]})
