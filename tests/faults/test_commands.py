"""The command line under faults: exit codes are truthful, and the same command goes on."""

import contextlib
import os
import signal
import sys

import pytest
import yaml
from forked import PATIENCE, SERVER, settle
from tiny_runs import ADAMW_ONE, TINY, assert_same, checkpoint, left_behind, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.training import run_state

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture
def params(tmp_path):
    """Writes a parameter file."""

    def write(**changes):
        path = tmp_path / "01_train.yaml"
        path.write_text(yaml.safe_dump(TINY | changes))
        return path

    return write


class Lines:
    """A standard output whose every line waits until the test has read it and answered."""

    def __init__(self, connection):
        self.connection, self.text = connection, ""

    def write(self, text: str) -> None:
        *lines, self.text = (self.text + text).split("\n")
        for line in lines:
            self.connection.send(line)
            self.connection.recv()

    def flush(self) -> None:
        """Nothing is held back."""


def run_command(connection, runs, cache, arguments: list[str]) -> None:
    settle(runs, cache)
    with contextlib.redirect_stdout(Lines(connection)):
        code = main(arguments)
    sys.exit(code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_interrupts_and_the_same_command_goes_on(number, params, tiny_cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "RUNS", tmp_path / "never-stopped")
        tiny_train(epochs=3, **ADAMW_ONE)
        whole = left_behind("tiny")

    command = ["train", str(params(epochs=3, **ADAMW_ONE))]
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=run_command, args=(there, files.RUNS, tiny_cache, command))
    process.start()
    there.close()
    lines = []
    with contextlib.suppress(EOFError):
        while here.poll(PATIENCE):
            lines.append(here.recv())
            if lines[-1].startswith("epoch 1/3"):
                os.kill(process.pid, number)
            here.send("read")
    process.join(PATIENCE)
    assert process.exitcode == 130
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/3"]
    assert run_state("tiny")[0] == "interrupted"
    position = checkpoint("tiny")["position"]
    assert (position["epoch"], position["step"]) == (2, 1)

    assert main(command) == 0
    assert_same(whole, left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)


def test_a_diverging_run_ends_with_an_error_code(params, capsys, tiny_place):
    assert main(["train", str(params(optimizer="sgd", lr=1e30, clip_norm=0.0))]) == 1
    said = capsys.readouterr().err
    assert "in epoch 1 at step" in said
    assert "(lr 1e+30)" in said
    assert "Traceback" not in said
    state, reason = run_state("tiny")
    assert state == "failed"
    assert reason.startswith("FloatingPointError: the ")
    assert not (tiny_place / "tiny" / "best.pt").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["-p", "learning_rate", "0.1"], "learning_rate = '0.1': unknown parameter; did you mean 'lr'?"),
        (["-p", "epochs", "0"], "epochs:"),
        (["-p", "lr", "-1"], "lr:"),
        (
            ["-p", "dataset", "flickr8k"],
            "shapes_train is read by dataset 'shapes'; this run has dataset 'flickr8k'",
        ),
        (
            ["-p", "data_root", "no/such"],
            "data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this run",
        ),
    ],
)
def test_wrong_input_ends_with_the_code_for_it_and_touches_nothing(wrong, message, params, capsys):
    assert main(["train", str(params()), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not files.RUNS.exists()


def test_a_complete_run_is_refused_with_a_code(params, capsys):
    tiny_train(epochs=1)
    assert main(["train", str(params(epochs=1))]) == 2
    assert "'tiny' exists and is complete" in capsys.readouterr().err
