"""The commands: help at once, truthful exit codes, messages on stderr, overrides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmlib import cli, files
from mmlib.config import ContinueConfig, TrainConfig

COMMANDS = ["run", "train", "evaluate", "compare", "report", "publish", "index", "search", "shard"]
HEAVY = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "scipy", "lightning_fabric")
TINY = """\
run: tiny
shapes_train: 12
shapes_val: 4
shapes_test: 4
image_size: 16
patch_size: 8
tokenizer: char
max_tokens: 20
latent_dim: 16
num_layers: 1
num_heads: 2
memory_slots: 4
epochs: 1
batch_size: 10
lr: 1e-3
device: cpu
"""
CHILD = "run: child\nparent: tiny\nepochs: 1\nlr: 0.005\ndevice: cpu\n"


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(cli.__file__).parents[1],
    )


# --- help


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_every_command_has_help(capsys, command):
    assert cli.main([*command, "--help"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: " + " ".join(["python -m mmlib", *command]))
    assert all(name in said.out for name in (COMMANDS if not command else ["-h, --help"]))
    assert said.err == ""


def test_help_and_wrong_words_load_nothing_heavy():
    script = f"""
import contextlib, io, sys
from mmlib import cli
for words in (["--help"], *([c, "--help"] for c in {COMMANDS}), ["--version"], ["trian"], ["train"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main(words)
cli.main(["train", "params/nowhere.yaml"])
print(sorted(set(sys.modules) & set({HEAVY})))
"""
    assert python("-c", script).stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: params"),
        (["train", "a.yaml", "-p", "lr"], "expected 2 arguments"),
        (["report", "demo", "-p", "lr", "1"], "unrecognized arguments"),
        (["shard"], "the following arguments are required: --out"),
    ],
)
def test_wrong_words_end_with_2(capsys, words, said):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


# --- wrong input


def test_wrong_input_ends_the_process_with_2_and_no_traceback(write, tmp_path):
    file = write("a.yaml", TINY + "learning_rate: 0.1\n")
    ended = python("-m", "mmlib", "train", file, MMLIB_RUNS=str(tmp_path / "runs"))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: 1 wrong parameter(s):\n  learning_rate = '0.1': unknown parameter; did you mean 'lr'?\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("tiny_place")
@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("train", TINY.replace("1e-3", "0"), "lr: input should be greater than 0, found 0 (int)"),
        ("train", TINY.replace("epochs: 1", "epochs: 0"), "equal to 1, found 0 (int); it is: epochs"),
        (
            "train",
            TINY.replace("patch_size: 8", "patch_size: 5"),
            "patch_size must divide image_size: 16 is not a multiple of 5",
        ),
        ("train", TINY + "precision: fp16\n", "precision: fp16 needs a GPU, found a CPU"),
        ("train", "run: [a\n", "a.yaml, line 2: expected valid YAML, found"),
        ("train", "run: a\nepochs: 1\nlr: 1\ndataset: flickr8k\ndata_root: not/here\n", "not/here"),
        ("train", CHILD.replace("tiny", "child"), "run and parent are both 'child'"),
        ("train", CHILD.replace("tiny", "unheard-of"), "no run 'unheard-of'"),
        ("evaluate", "runs: [unheard-of]\n", "no run 'unheard-of'"),
        ("evaluate", "run: tiny\n", "run = 'tiny': unknown parameter; did you mean 'runs'?"),
    ],
)
def test_wrong_parameters_end_with_2_and_touch_nothing(capsys, write, tiny_place, command, text, said):
    assert cli.main([command, write("a.yaml", text)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert not tiny_place.exists()


def test_a_missing_parameter_file_ends_with_2(capsys):
    assert cli.main(["train", "params/not/01_train.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: no parameter file params/not/01_train.yaml")


def test_paths_are_found_from_the_current_folder_and_from_the_root(tmp_path, monkeypatch, capsys):
    """`cd params/demo` and the bare file name work; what is in neither place is shown with both."""
    read, ran = [], []
    monkeypatch.setattr(cli.commands, "read_yaml", lambda path: read.append(path) or {"epochs": -1})
    monkeypatch.setattr("mmlib.pipeline.run_experiment", lambda name, *_: ran.append(name) or 0)
    demo = files.PARAMS / "demo"
    for folder, text in ((files.ROOT, "params/demo/01_train.yaml"), (demo, "01_train.yaml")):
        monkeypatch.chdir(folder)
        assert cli.main(["train", text]) == 2  # of its epochs, once it was read
        assert read.pop().resolve() == demo / "01_train.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert cli.main(["train", "params/demo/01_train.yaml"]) == 2
    assert read.pop() == demo / "01_train.yaml"
    capsys.readouterr()
    assert cli.main(["train", "01_train.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"found neither {tmp_path / '01_train.yaml'} nor {files.ROOT / '01_train.yaml'}" in error
    assert [cli.main(["run", name]) for name in ("demo", "params/demo", "./demo")] == [0, 0, 0]
    assert ran == ["demo", "params/demo", str(tmp_path / "demo")]


def test_a_deleted_current_folder_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (["train", "a.yaml"], ["run", "demo"], ["shard", "--out", "x"]):
        assert cli.main(words) == 2
        assert capsys.readouterr().err == "error: the current folder is gone: change to one that exists\n"
    monkeypatch.delenv("MMLIB_ROOT", raising=False)
    assert files._root() == files.ROOT


def test_an_unknown_experiment_offers_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PARAMS", tmp_path / "params")
    for name in ("demo", "flickr8k-cpu"):
        (files.PARAMS / name).mkdir(parents=True)
    assert cli.main(["run", "flikr8k-cpu"]) == 2
    said = capsys.readouterr()
    assert "no experiment 'flikr8k-cpu'" in said.err
    assert "did you mean 'flickr8k-cpu'?; there are: demo, flickr8k-cpu" in said.err
    assert said.out == ""


def test_a_report_on_nothing_ends_with_2(capsys):
    assert cli.main(["report", "unheard-of"]) == 2
    assert "nothing to report on 'unheard-of'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "publish"])
@pytest.mark.parametrize("name", ["..", "", "a/.b"])
def test_a_name_that_no_report_can_have_ends_with_2(capsys, command, name):
    assert cli.main([command, name]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: experiment: expected a name of letters")
    assert said.out == ""


# --- exit codes of what happens at work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FloatingPointError("the loss became nan"), 1, "error: the loss became nan\n"),
        (OSError(28, "no space left"), 1, "error: [Errno 28] no space left\n"),
        (RuntimeError("another process"), 1, "error: another process\n"),
        (ValueError("damaged"), 1, "error: damaged\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (FileExistsError("is complete"), 2, "error: is complete\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where this stopped\n"),
    ],
)
def test_what_goes_wrong_at_work_is_told_by_the_exit_code(capsys, write, monkeypatch, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("mmlib.training.train", fail)
    assert cli.main(["train", write("a.yaml", TINY)]) == code
    assert capsys.readouterr().err == said


def test_an_error_of_ours_is_not_hidden(write, monkeypatch):
    def fail(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("mmlib.training.train", fail)
    with pytest.raises(KeyError):
        cli.main(["train", write("a.yaml", TINY)])


# --- parameters


@pytest.fixture
def taken(monkeypatch):
    """The configs that training was asked for."""
    configs = []
    monkeypatch.setattr("mmlib.training.train", lambda config, log: configs.append(config))
    monkeypatch.setattr("mmlib.training.continue_training", lambda config, log: configs.append(config))
    return configs


def test_the_command_line_beats_the_file_and_the_file_beats_the_config(write, taken):
    file = write("a.yaml", "run: f\nlr: 0.1\nepochs: 7\nseed: 3\n")
    assert cli.main(["train", file, "-p", "lr", "1e-2", "--param", "lr", "2e-2"]) == 0
    (config,) = taken
    assert isinstance(config, TrainConfig)
    assert (config.run, config.lr, config.epochs, config.seed) == ("f", 0.02, 7, 3)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("lr", "1", 1.0),
        ("epochs", "5", 5),
        ("padding_mask", "false", False),
        ("run", "2024", "2024"),
        ("run", "2024-01-31", "2024-01-31"),  # a date to YAML
    ],
)
def test_an_override_is_read_as_the_parameter_needs_it(write, taken, name, text, value):
    assert cli.main(["train", write("a.yaml", TINY), "-p", name, text]) == 0
    assert getattr(taken[0], name) == value


def test_an_override_may_be_nothing_or_a_list(write, taken, monkeypatch):
    assert cli.main(["train", write("a.yaml", CHILD + "batch_size: 7\n"), "-p", "batch_size", "null"]) == 0
    assert taken[0].batch_size is None
    evaluated = []
    monkeypatch.setattr("mmlib.training.evaluate", lambda config: evaluated.append(config) or [])
    assert cli.main(["evaluate", write("b.yaml", "split: val\n"), "-p", "runs", "[a, b]"]) == 0
    assert (evaluated[0].runs, evaluated[0].split) == (["a", "b"], "val")


def test_overrides_of_an_experiment_reach_its_notebooks(monkeypatch):
    calls = []
    monkeypatch.setattr("mmlib.pipeline.run_experiment", lambda *given: calls.append(given) or 7)
    assert cli.main(["run", "demo", "-p", "epochs", "2", "--overwrite"]) == 7
    assert calls == [("demo", {"epochs": "2"}, True)]


def test_a_file_with_a_parent_continues(write, taken):
    assert cli.main(["train", write("b.yaml", CHILD)]) == 0
    assert isinstance(taken[0], ContinueConfig)
    assert (taken[0].run, taken[0].parent, taken[0].lr) == ("child", "tiny", 0.005)


# --- the real thing, small


def test_train_continue_and_evaluate(capsys, write, tiny_place):
    train, child = write("a.yaml", TINY), write("b.yaml", CHILD)
    assert cli.main(["train", train]) == 0
    assert cli.main(["train", child]) == 0
    said = capsys.readouterr()
    assert [line.split("  ")[0] for line in said.out.splitlines() if line.startswith("epoch")] == [
        "epoch 1/1",
        "epoch 2/2",
    ]
    assert f"complete: {files.shown(tiny_place / 'child')}" in said.out.splitlines()
    history = [json.loads(line) for line in (tiny_place / "child/history.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["phase"], row["lr"]) for row in history] == [(1, 1, 0.001), (2, 2, 0.005)]
    assert json.loads((tiny_place / "child/environment.json").read_text())["parent"]["run"] == "tiny"

    assert cli.main(["train", train]) == 2
    assert "run 'tiny' exists and is complete" in capsys.readouterr().err
    assert cli.main(["train", child, "-p", "latent_dim", "32"]) == 2
    assert "latent_dim: the parent 'tiny' has 16, asked for 32" in capsys.readouterr().err

    evaluation = write("c.yaml", "runs: [tiny, child]\nsplit: val\ngallery_queries: 0\n")
    assert cli.main(["evaluate", evaluation]) == 0
    said = capsys.readouterr()
    assert "standard" in said.out
    assert "child" in said.out


def test_shard_writes_the_data_of_a_parameter_file(capsys, write, tmp_path):
    out = tmp_path / "out"
    words = ["shard", write("a.yaml", TINY), "-p", "shapes_val", "2", "--out", str(out)]
    assert cli.main([*words, "--samples-per-shard", "8"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:3] for line in said[:-1]] == [
        ["train-000000.tar", "8 images", "40 captions"],
        ["train-000001.tar", "4 images", "20 captions"],
        ["val-000000.tar", "2 images", "10 captions"],
        ["test-000000.tar", "4 images", "20 captions"],
    ]
    assert said[-1] == f"complete: {files.shown(out)}"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["shards.json", *(line.split("  ")[0] for line in said[:-1])]
    )
    assert cli.main(words) == 2
    assert "without finished or other shards, found shards.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "dataset", "shards"], "found dataset 'shards', which are some"),
        (["-p", "shapes_trian", "4"], "shapes_trian = '4': unknown parameter; did you mean 'shapes_train'?"),
        (["-p", "lr", "0.1"], "-p lr: expected parameters that choose data; shards hold images and captions"),
        (
            ["-p", "data_root", "x"],
            "data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this run has",
        ),
        (["--samples-per-shard", "0"], "--samples-per-shard: expected at least 1, found 0"),
    ],
)
def test_what_cannot_be_sharded_ends_with_2(capsys, tmp_path, words, said):
    assert cli.main(["shard", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
