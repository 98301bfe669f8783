"""The page of all parameters is what the configs say, and says it as a person writes it."""

from mmlib.config import CONFIG_OF_NOTEBOOK
from mmlib.config.page import PAGE, parameters_page


def row(name: str) -> str:
    return next(line for line in parameters_page().splitlines() if line.startswith(f"| `{name}` |"))


def test_the_committed_page_is_what_the_configs_give():
    assert PAGE.read_text(encoding="utf-8") == parameters_page(), "write it anew: make docs"


def test_the_page_has_every_parameter_of_every_notebook():
    for config in CONFIG_OF_NOTEBOOK.values():
        assert all(row(name) for name in config.model_fields)


def test_values_defaults_and_readers_stand_as_a_person_writes_them():
    assert "| `sgd`, `adamw`," in row("optimizer")
    assert "| whole number from 16 to 1,024 | `64` |" in row("image_size")
    assert "| number above 0 | needed | base learning rate |" in row("lr")
    assert "| list (text) | `[]` |" in row("train_shards")
    assert "| text or `null` | `null` | folder of a data set" in row("data_root")
    assert row("memory_write").endswith("| `memory` is `published` |")
    assert row("text_weights").endswith("| `text_encoder` is `<library>:<name>` |")
    assert row("text_lr_scale").endswith("; and `text_tune` is not `none` |")
