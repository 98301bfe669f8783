"""Text of a parameter gives the same config by `-p`, by a YAML file, and by papermill."""

import json

import pytest
from click.testing import CliRunner

from mmlib import cli, files
from mmlib.config import (
    AblationConfig,
    ContinueConfig,
    EvaluateConfig,
    ParameterError,
    TrainConfig,
    build,
    read_yaml,
)
from mmlib.config.reading import cell_parameters

GIVEN = {
    TrainConfig: {"run": "a", "epochs": 3, "lr": 0.1},
    ContinueConfig: {"run": "b", "parent": "a", "epochs": 3, "lr": 0.1},
    EvaluateConfig: {"runs": ["a"]},
    AblationConfig: {"run": "a", "base": "b.yaml"},
}
NOTEBOOKS = {
    TrainConfig: "01_train", ContinueConfig: "02_continue", EvaluateConfig: "03_evaluate",
    AblationConfig: "05_ablation",
}  # fmt: skip
P, F, R = "-p", "-f", "-r"  # the ways through papermill that can hand the text over


@pytest.fixture(scope="module")
def papermill():
    """What `papermill NOTEBOOK … ARGUMENTS` injects, as the notebook reads it."""
    from papermill.cli import papermill

    def inject(config_class, folder, *arguments):
        copy = folder / "out.ipynb"
        notebook = files.NOTEBOOKS / f"{NOTEBOOKS[config_class]}.ipynb"
        words = [str(notebook), str(copy), "--prepare-only", "--log-level", "ERROR", *arguments]
        ended = CliRunner().invoke(papermill, words, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        sources = [
            "".join(c["source"]) for c in json.loads(copy.read_text())["cells"] if c["cell_type"] == "code"
        ]
        assert sources[1].startswith("# Parameters\n")
        return cell_parameters(sources[:2], config_class)

    return inject


@pytest.mark.parametrize(
    ("config_class", "name", "text", "value", "ways"),
    [
        (TrainConfig, "compile", "off", "off", (P, F, R)),
        (TrainConfig, "compile", "on", "on", (P, F, R)),
        (TrainConfig, "padding_mask", "off", False, (P, F, R)),
        (TrainConfig, "padding_mask", "yes", True, (P, F, R)),
        (TrainConfig, "padding_mask", "False", False, (P, F, R)),
        (TrainConfig, "overwrite", "true", True, (P, F, R)),
        (TrainConfig, "lr", "1e-3", 0.001, (P, F, R)),
        (TrainConfig, "lr", ".5", 0.5, (P, F, R)),
        (TrainConfig, "lr", "1", 1.0, (P, F, R)),
        (TrainConfig, "epochs", "012", 12, (P, R)),  # 10 to papermill's -f
        (TrainConfig, "epochs", "1_000", 1000, (P, F, R)),
        (TrainConfig, "epochs", "1e1", 10, (P, F, R)),
        (TrainConfig, "run", "2024-01-31", "2024-01-31", (P, F, R)),
        (TrainConfig, "run", "off", "off", (P, R)),
        (TrainConfig, "run", "true", "true", (P, R)),
        (TrainConfig, "run", "null", "null", (P, R)),
        (TrainConfig, "run", "007", "007", (R,)),  # papermill's -p makes numbers of these
        (TrainConfig, "run", "1e3", "1e3", (F, R)),
        (TrainConfig, "data_root", "null", None, (P, F, R)),
        (TrainConfig, "data_root", "~", None, (P, F, R)),
        (TrainConfig, "data_root", "None", None, (P, F, R)),
        (TrainConfig, "val_shards", "[a.tar, 'b{0..3}.tar']", ["a.tar", "b{0..3}.tar"], (P, F, R)),
        (TrainConfig, "val_shards", "a.tar", ["a.tar"], (P, F, R)),
        (ContinueConfig, "batch_size", "null", None, (P, F, R)),
        (ContinueConfig, "batch_size", "none", None, (P, F, R)),
        (ContinueConfig, "image_tune", "none", "none", (P, F, R)),
        (ContinueConfig, "image_tune", "null", None, (P, F, R)),
        (ContinueConfig, "compile", "off", "off", (P, F, R)),
        (EvaluateConfig, "runs", "[a, b]", ["a", "b"], (P, F, R)),
        (EvaluateConfig, "runs", "a", ["a"], (P, F, R)),
        (EvaluateConfig, "runs", "[007, null]", ["007", "null"], (P, R)),
        (AblationConfig, "seeds", "[0, 1]", [0, 1], (P, F, R)),
        (AblationConfig, "changes", "{lr: 1e-3, run_: x}", {"lr": 0.001, "run_": "x"}, (P, F, R)),
        (
            AblationConfig,
            "arms",
            "{a: {compile: off, lr: 2e-3}, b: {}}",
            {"a": {"compile": "off", "lr": 0.002}, "b": {}},
            (P, F, R),
        ),
        (AblationConfig, "grid", "{flip: [on, no], seed: [1]}", {"flip": [True, False], "seed": [1]}, (P,)),
        (AblationConfig, "tune", "{lr: [1e-3], a: {lr: [.5]}}", {"lr": [0.001], "a": {"lr": [0.5]}}, (P, F)),
        (AblationConfig, "claims", "[{claim: it is, arm: a}]", [{"claim": "it is", "arm": "a"}], (P, F)),
    ],
)  # fmt: skip
def test_the_field_decides_whatever_the_door(tmp_path, papermill, config_class, name, text, value, ways):
    (tmp_path / "given.yaml").write_text(f"{name}: {text}\n")
    options = cli._parser().parse_args(["run", "demo", "-p", name, text])
    doors = [dict(options.param), read_yaml(tmp_path / "given.yaml")]
    for way in ways:
        given = [F, str(tmp_path / "given.yaml")] if way == F else [way, name, text]
        doors.append({name: papermill(config_class, tmp_path, *given)[name]})
    for read in doors:
        built = getattr(build(config_class, GIVEN[config_class] | read), name)
        assert (built, type(built)) == (value, type(value))


@pytest.mark.parametrize("text", ["007", "1e3", "True"])
def test_where_papermill_has_lost_the_text_it_is_said_what_to_write(tmp_path, papermill, text):
    values = papermill(TrainConfig, tmp_path, "-p", "run", text)
    with pytest.raises(ParameterError, match=r"run: expected text; put it in quotes .* with papermill's -r"):
        build(TrainConfig, values)
