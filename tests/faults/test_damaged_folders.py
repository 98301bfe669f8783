"""A run folder with a file missing or damaged: the run goes on bit for bit, or stops and says what to do."""

import json
import re
import shutil

import pytest
from tiny_runs import (
    ADAMW_ONE,
    STEPS,
    assert_same,
    before_step,
    checkpoint,
    left_behind,
    press_ctrl_c,
    tiny_continue,
    tiny_evaluate,
    tiny_train,
)

from mmlib import files
from mmlib.cli import main
from mmlib.files import InUse
from mmlib.training import run_state
from mmlib.training.runs import open_run, parse_history

pytestmark = pytest.mark.usefixtures("tiny_place")
RUN = ADAMW_ONE | {"epochs": 4}
WHAT_TO_DO = "; bring it back from a copy, or train again with overwrite=True"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_cache):
    """What the run leaves if nobody disturbs it, and its folder when it was stopped in its third epoch."""
    import torch

    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", tiny_cache)
        patch.setattr(files, "RUNS", place / "whole")
        tiny_train(**RUN)
        whole = left_behind("tiny")
        patch.setattr(files, "RUNS", place / "stopped")
        before_step(patch, 2 * STEPS + 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**RUN)
        # So that nothing but best.pt of an earlier epoch holds the best weights.
        assert checkpoint("tiny")["best"]["epoch"] == whole["last"]["best"]["epoch"] == 1
    return whole, place / "stopped" / "tiny"


@pytest.fixture
def whole(runs):
    return runs[0]


@pytest.fixture
def stopped(runs, tiny_place):
    """The folder of a run that was stopped in its third epoch."""
    return shutil.copytree(runs[1], tiny_place / "tiny")


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused(folder, error: type[Exception], message: str) -> None:
    """Stops with exactly this message, and nothing is touched."""
    before = contents(folder)
    with pytest.raises(error, match=re.escape(message) + "$"):
        tiny_train(**RUN)
    assert contents(folder) == before


def goes_on(whole: dict) -> list[str]:
    """Trains to the end, which is as if nothing had happened; returns the lines of the log."""
    lines = []
    tiny_train(**RUN, log=lines.append)
    assert_same(whole, left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)
    return lines


def test_without_last_pt_it_goes_on_from_best_pt(stopped, whole):
    (stopped / "last.pt").unlink()
    line = "run 'tiny' goes on in epoch 2, step 1 from best.pt, as its last.pt is missing"
    assert line in goes_on(whole)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_last_pt_can_be_deleted(share, stopped, whole):
    last = stopped / "last.pt"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    with pytest.raises(
        ValueError,
        match=r"last\.pt is truncated, damaged or no checkpoint .*"
        r"; use the run's other checkpoint \(without last\.pt, training goes on from best\.pt\), or",
    ):
        tiny_train(**RUN)
    last.unlink()
    goes_on(whole)


def test_without_any_checkpoint_and_history_it_starts_again(stopped, whole):
    for name in ("last.pt", "best.pt", "history.jsonl"):
        (stopped / name).unlink()
    goes_on(whole)


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
@pytest.mark.parametrize("last", [True, False], ids=["last.pt", "no last.pt"])
def test_without_the_weights_of_the_best_epoch(name, last, stopped, whole):
    (stopped / name).unlink()
    if not last:
        (stopped / "last.pt").unlink()
        if name == "best.pt":  # nothing is left to go on from
            goes_on(whole)
            return
    path = files.RUNS / "tiny" / name
    message = f"expected {path}, the weights of epoch 1, the best one so far, found nothing there"
    assert_refused(stopped, FileNotFoundError, message + WHAT_TO_DO)


def test_without_history(stopped):
    (stopped / "history.jsonl").unlink()
    message = (
        f"expected the epochs 1 to 2 in {stopped / 'history.jsonl'}, as last.pt goes on behind them, found"
        " no 1, 2"
    )
    assert_refused(stopped, FileNotFoundError, message + WHAT_TO_DO)


def lines_of(path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "lacking"),
    [
        (lambda lines: lines[:1], "2"),
        (lambda lines: lines[1:], "1"),
        (lambda lines: [lines[0], lines[1][:50]], "2"),
        (lambda lines: [lines[0][:50]], "1, 2"),
        (lambda lines: [], "1, 2"),
    ],
    ids=[
        "last line gone",
        "first line gone",
        "cut inside the last line",
        "cut inside the first line",
        "empty",
    ],
)
def test_a_history_that_lacks_epochs_of_the_checkpoint(damage, lacking, stopped):
    path = stopped / "history.jsonl"
    path.write_bytes(b"".join(damage(lines_of(path))))
    message = f"in {path}, as last.pt goes on behind them, found no {lacking}{WHAT_TO_DO}"
    assert_refused(stopped, FileNotFoundError, "expected the epochs 1 to 2 " + message)


@pytest.mark.parametrize(
    ("damage", "number"),
    [
        (lambda lines: [lines[0][:50] + b"\n", lines[1]], 1),
        (lambda lines: [lines[0][:50], lines[1]], 1),
        (lambda lines: [*lines, b"\xff\xfe garbage \x00\n"], 3),
        (lambda lines: [*lines, b"[1, 2]\n"], 3),
        (lambda lines: [lines[0], b"7\n", lines[1]], 2),
        (lambda lines: [lines[0], b"\n", lines[1]], 2),
        (lambda lines: [b'{"phase": 1}\n', *lines], 1),
        (lambda lines: [lines[0].replace(b", ", b"\r ", 1), lines[1]], 1),
    ],
    ids=[
        "half a line", "two halves", "no text", "a list", "a number", "an empty line", "no epoch", "a return",
    ],
)  # fmt: skip
def test_a_history_with_garbage_in_it(damage, number, stopped):
    path = stopped / "history.jsonl"
    path.write_bytes(b"".join(damage(lines_of(path))))
    message = f"{path}, line {number} is damaged: expected one JSON object per line, with its epoch"
    assert_refused(stopped, ValueError, message + WHAT_TO_DO)


@pytest.mark.parametrize(
    "rest", [b'{"epoch": 3, "pha', b"\xff\x00\x17", b'{"epoch": 3}\r', b'{"epoch": 9}\n{"epoch"']
)
def test_what_a_crash_left_behind_the_last_line_is_cut_off(rest, stopped, whole):
    with open(stopped / "history.jsonl", "ab") as file:
        file.write(rest)
    goes_on(whole)


def test_rows_are_read_up_to_the_last_line_that_is_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"epoch": 1, "x": "a\\rb"}\r\n{"epoch": 2}\n{"epoch": 3}')
    assert parse_history(path) == [{"epoch": 1, "x": "a\rb"}, {"epoch": 2}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is damaged: expected JSON"),
        ("garbage", "is damaged: expected JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "is damaged: state: expected it, found nothing"),
        ('{"state": "done"}', "'interrupted' or 'killed', found 'done'"),
        ('{"state": ["complete"]}', "'interrupted' or 'killed', found ['complete']"),
        (None, "expected the file"),
    ],
)
def test_garbage_for_a_status_is_a_failure_and_the_run_goes_on(text, reason, stopped, whole):
    (stopped / "status.json").unlink()
    if text is not None:
        (stopped / "status.json").write_text(text)
    state, why = run_state("tiny")
    assert state == "failed"
    assert str(stopped / "status.json") in why
    assert reason in why
    goes_on(whole)


@pytest.mark.parametrize("content", [b"", b"4711\nsome-machine\n"])
def test_a_lock_that_nobody_holds_locks_nothing(content, stopped, whole):
    (stopped / ".lock").write_bytes(content)
    goes_on(whole)


def test_without_parameters_nothing_is_thrown_away(stopped):
    (stopped / "config.json").unlink()
    message = (
        f"expected {stopped / 'config.json'} beside last.pt, found nothing there (it was deleted, or an"
        " overwriting was cut short)"
    )
    assert_refused(stopped, FileNotFoundError, message + WHAT_TO_DO)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected the file {path}, found nothing there"),
        ("{", "{path} is damaged: expected JSON"),
        ("{}", "{path} is damaged: data: expected it, found nothing"),
        ('{"parent": null, "data": {}}', "{path} is damaged: data.name: expected it, found nothing"),
    ],
)
def test_without_its_environment(text, message, stopped):
    path = stopped / "environment.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    before = contents(stopped)
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        tiny_train(**RUN)
    assert message.format(path=path) in str(caught.value)
    assert str(caught.value).endswith(WHAT_TO_DO)
    assert contents(stopped) == before


def test_a_parent_without_its_history_is_not_continued(tiny_place):
    tiny_train(**RUN | {"epochs": 1})
    history = tiny_place / "tiny" / "history.jsonl"
    history.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        tiny_continue()
    assert str(caught.value) == (
        f"expected the epochs 1 to 1 in {history}, as best.pt goes on behind them, found no 1{WHAT_TO_DO}"
    )
    assert not (tiny_place / "child").exists()


def test_the_command_line_says_it_without_a_traceback(stopped, tmp_path, capsys):
    from tiny_runs import TINY

    (stopped / "model.safetensors").unlink()
    (tmp_path / "run.yaml").write_text(json.dumps(TINY | RUN))
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"error: expected {stopped / 'model.safetensors'}, the weights")


def test_results_of_a_run_whose_overwriting_was_killed_are_not_taken_for_the_new_ones(tiny_place):
    tiny_train(**RUN | {"epochs": 1})
    tiny_evaluate()
    folder = tiny_place / "tiny"
    for name in ("status.json", "config.json", "last.pt"):  # what goes before the rest
        (folder / name).unlink()
    tiny_train(**RUN | {"epochs": 1, "lr": 0.02})
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "config.json", "environment.json", "tokenizer.json", "history.jsonl", "status.json",
        "best.pt", "last.pt", "model.safetensors", "README.md",
    }  # fmt: skip
    assert "Not evaluated yet" in (folder / "README.md").read_text(encoding="utf-8")


def test_an_evaluation_waits_for_nobody_who_writes(tiny_place):
    tiny_train(**RUN | {"epochs": 1})
    with open_run("tiny"), pytest.raises(InUse, match="'tiny' is being written by another process"):
        tiny_evaluate()
