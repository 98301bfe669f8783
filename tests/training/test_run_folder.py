"""What a run folder promises: complete runs are safe, others go on, and the status is the truth."""

import errno
import json
import os
import shutil
import signal

import pytest
from tiny_runs import (
    TINY,
    assert_same,
    before_step,
    left_behind,
    press_ctrl_c,
    tiny_config,
    tiny_evaluate,
    tiny_train,
)

from mmlib import files
from mmlib.cli import main
from mmlib.config import ParameterError
from mmlib.data import shapes
from mmlib.data.tokenizers import loss_shares, losses_warning
from mmlib.files import InUse, read_json
from mmlib.metrics.summary import percent
from mmlib.reporting import lineage_table
from mmlib.training import read_history, read_result, run_state, start, stored_config
from mmlib.training.loop import Learner
from mmlib.training.runs import open_run, require_complete

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture
def folder(tiny_place):
    return tiny_place / "tiny"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_cache):
    """Folders to copy: a complete run of one epoch, and one that was stopped in the second of two."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", tiny_cache)
        patch.setattr(files, "RUNS", place / "complete")
        tiny_train(epochs=1)
        patch.setattr(files, "RUNS", place / "interrupted")
        before_step(patch, 6, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train()
    return place


@pytest.fixture
def complete(trained, folder):
    """A complete run of one epoch."""
    return shutil.copytree(trained / "complete" / "tiny", folder)


@pytest.fixture
def interrupted(trained, folder):
    """A run that was stopped in its second epoch."""
    return shutil.copytree(trained / "interrupted" / "tiny", folder)


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_run_leaves_behind(folder):
    history = tiny_train()
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "config.json", "environment.json", "tokenizer.json", "history.jsonl", "status.json",
        "best.pt", "last.pt", "model.safetensors", "README.md",
    }  # fmt: skip
    assert read_history("tiny") == history
    assert stored_config("tiny") == tiny_config()
    status = read_json(folder / "status.json")
    assert (status["state"], status["reason"], status["epoch"], status["epochs"]) == ("complete", None, 2, 2)
    environment = read_json(folder / "environment.json")
    assert (environment["device"], environment["seed"], environment["parent"]) == ("cpu", 0, None)
    assert environment["data"]["splits"]["train"] == {"images": 24, "captions": 120}
    assert environment["versions"]["torch"]
    assert environment["tokenizer_losses"]["captions"] == 40
    row = history[0]
    assert (row["epoch"], row["phase"], row["steps"], row["run"]) == (1, 1, 4, "tiny")
    assert row["seconds"] > 0
    assert row["pairs_per_s"] > 0


def test_what_the_tokenizer_loses_is_counted_said_and_shown(folder):
    """At the start, again where the complete run is shown, and in the table of where runs come from."""
    lines = []
    tiny_train(lines.append, epochs=1, tokenizer="word", min_word_count=400, max_tokens=12)
    losses = read_json(folder / "environment.json")["tokenizer_losses"]
    unknown, cut = loss_shares(losses)
    assert unknown > 0.5
    assert cut > 0.05
    said = [line for line in lines if line.startswith(("tokenizer word", "Warning"))]
    assert said == [
        f"tokenizer word: of the validation captions {100 * unknown:.1f} % of the tokens are unknown,"
        f" {100 * cut:.1f} % are cut at 12 tokens",
        losses_warning(losses),
    ]
    assert "take tokenizer: bpe" in said[1]
    assert "raise max_tokens" in said[1]
    again = []
    tiny_train(again.append, "show", epochs=1, tokenizer="word", min_word_count=400, max_tokens=12)
    assert again[1:] == said
    table = lineage_table("tiny")
    assert table.frame["unknown tokens"].tolist() == [f"{percent(unknown)} %"]
    assert table.frame["image encoder"].tolist() == ["vit, from scratch"]
    assert table.frame["cut captions"].tolist() == [f"{percent(cut)} %"]
    assert f"tiny: {losses_warning(losses)}" in table.caption
    environment = read_json(folder / "environment.json")
    del environment["tokenizer_losses"]  # a run of before it was counted
    (folder / "environment.json").write_text(json.dumps(environment))
    assert lineage_table("tiny").frame["unknown tokens"].tolist() == ["–"]


def test_a_complete_run_is_refused(complete):
    before = contents(complete)
    with pytest.raises(
        FileExistsError, match=r"'tiny' exists and is complete; choose another.*overwrite=True"
    ):
        tiny_train(epochs=1)
    assert contents(complete) == before


def test_a_complete_run_is_shown(folder):
    history = tiny_train(epochs=1)
    before, lines = contents(folder), []
    assert tiny_train(epochs=1, if_complete="show", log=lines.append) == history
    assert lines[0] == "run 'tiny' is complete: its results are shown, nothing is trained again"
    assert contents(folder) == before


def test_a_complete_run_is_overwritten_on_request(complete):
    tiny_evaluate()
    history = tiny_train(epochs=1, lr=0.02, overwrite=True)
    assert history[0]["lr"] == 0.02
    assert not (complete / "results.json").exists()  # those of the old weights


@pytest.mark.parametrize("if_complete", ["show", "refuse"])
def test_other_parameters_are_named(if_complete, complete):
    before = contents(complete)
    with pytest.raises(FileExistsError, match="with other parameters") as caught:
        tiny_train(epochs=1, lr=0.02, latent_dim=32, if_complete=if_complete)
    for part in (
        "(complete)",
        "lr: 0.01 there, 0.02 here",
        "latent_dim: 16 there, 32 here",
        "overwrite=True",
    ):
        assert part in str(caught.value)
    assert contents(complete) == before


def test_where_a_run_is_kept_may_change_when_it_goes_on(interrupted):
    tiny_train(device="auto", checkpoint_seconds=5.0)
    assert run_state("tiny")[0] == "complete"


def test_a_second_writer_is_refused(monkeypatch, folder):
    def second(_):
        assert run_state("tiny")[0] == "running"  # the lock is held, so it was not killed
        before = (folder / "history.jsonl").read_bytes()
        for overwrite in (False, True):
            named = "it has not said which" if overwrite else f"process {os.getpid()} on .*"
            with pytest.raises(InUse, match=rf"'tiny' is being written by another process \({named}\); wait"):
                tiny_train(epochs=1, overwrite=overwrite)
            (folder / ".lock").unlink(missing_ok=True)  # the second time it is refused without
        assert (folder / "history.jsonl").read_bytes() == before

    rates = before_step(monkeypatch, 2, second)
    tiny_train(epochs=1)
    assert len(rates) == 4
    assert run_state("tiny")[0] == "complete"


def meanwhile(monkeypatch, act) -> None:
    """Calls `act()` when the next training has checked its input and not yet taken the folder."""
    open_run_ = start.open_run

    def opened(*arguments):
        monkeypatch.setattr(start, "open_run", open_run_)
        act()
        return open_run_(*arguments)

    monkeypatch.setattr(start, "open_run", opened)


@pytest.mark.parametrize("if_complete", ["show", "refuse"])
def test_a_run_that_another_process_completed_meanwhile_is_not_replaced(if_complete, monkeypatch):
    theirs = []
    meanwhile(monkeypatch, lambda: theirs.append(tiny_train(epochs=1)))
    with pytest.raises(InUse, match="'tiny' was changed by another process while this one got ready"):
        tiny_train(epochs=1, lr=0.02, if_complete=if_complete)
    assert stored_config("tiny") == tiny_config(epochs=1)
    assert run_state("tiny") == ("complete", None)
    assert read_history("tiny") == theirs[0]


def test_a_run_that_another_process_trained_on_meanwhile_is_left_to_it(monkeypatch, interrupted):
    def go_on_and_stop():
        with monkeypatch.context() as patch:
            before_step(patch, 2, press_ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                tiny_train()

    meanwhile(monkeypatch, go_on_and_stop)
    with pytest.raises(InUse, match="'tiny' was changed by another process while this one got ready"):
        tiny_train()
    assert run_state("tiny")[0] == "interrupted"
    tiny_train()
    assert run_state("tiny")[0] == "complete"


def test_a_folder_deleted_under_a_training_stays_deleted(monkeypatch, folder, tmp_path, capsys):
    params = tmp_path / "run.json"
    params.write_text(json.dumps(TINY))
    with monkeypatch.context() as patch:
        before_step(patch, 6, lambda _: shutil.rmtree(folder))
        assert main(["train", str(params)]) == 1
    error = capsys.readouterr().err
    assert f"error: {folder} is gone: it was deleted, moved or replaced while run 'tiny' was at work" in error
    assert "space" not in error
    assert not folder.exists()


def test_a_folder_replaced_under_a_training_is_left_to_the_new_one(monkeypatch, folder):
    def move_and_train_anew(training):
        folder.rename(folder.with_name("moved"))
        monkeypatch.undo()
        monkeypatch.setattr(files, "RUNS", folder.parent)
        monkeypatch.setattr(files, "CACHE", cache)
        tiny_train(epochs=1, lr=0.02)

    cache = files.CACHE
    before_step(monkeypatch, 6, move_and_train_anew)
    with pytest.raises(RuntimeError, match="tiny is gone: it was deleted, moved or replaced"):
        tiny_train()
    assert run_state("tiny") == ("complete", None)
    assert [(row["epoch"], row["lr"]) for row in read_history("tiny")] == [(1, 0.02)]
    assert [row["epoch"] for row in read_history("moved")] == [1]


def test_a_state_is_read_where_nothing_can_be_written(monkeypatch, complete):
    status = read_json(complete / "status.json")
    (complete / "status.json").write_text(json.dumps(status | {"state": "running"}))
    (complete / ".lock").unlink()

    def read_only(function):
        def call(path, flags, *rest, **named):
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, flags, *rest, **named)

        return call

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only(os.open))
    monkeypatch.setattr(os, "mkdir", refuse)
    state, reason = run_state("tiny")
    assert (state, [row["epoch"] for row in read_history("tiny")]) == ("killed", [1])
    assert "ended without a word" in reason
    with pytest.raises(OSError, match=r"could not write .*tiny.*: Read-only file system.*another folder"):
        tiny_train(epochs=1)


def test_sigterm_stops_as_ctrl_c_does(monkeypatch, folder):
    before_step(monkeypatch, 2, lambda _: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        tiny_train()
    state, reason = run_state("tiny")
    assert state == "interrupted"
    assert reason == "stopped on request (Ctrl-C or SIGTERM); the same call goes on"
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(
        ValueError, match=r"'tiny' is not complete but interrupted .*it goes on where it stopped"
    ):
        require_complete("tiny")


def test_a_run_that_says_running_while_nobody_holds_its_lock_was_killed(complete):
    status = read_json(complete / "status.json")
    (complete / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert run_state("tiny")[0] == "killed"
    (complete / ".lock").unlink()
    assert run_state("tiny")[0] == "killed"


def test_a_failed_run_goes_on_and_keeps_its_reason_until_then(monkeypatch, folder):
    whole = tiny_train(run="whole", epochs=1)

    def fail(_):
        raise RuntimeError("the cable came loose")

    with monkeypatch.context() as patch:
        before_step(patch, 2, fail)
        with pytest.raises(RuntimeError, match="cable"):
            tiny_train(epochs=1)
    assert run_state("tiny") == ("failed", "RuntimeError: the cable came loose")
    history = tiny_train(epochs=1)
    assert [row["train_loss"] for row in history] == [row["train_loss"] for row in whole]


def test_a_status_that_cannot_be_written_hides_no_error(monkeypatch, folder):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def fail(training):
        monkeypatch.setattr(type(training.folder), "write_status", full)
        raise RuntimeError("what went wrong first")

    before_step(monkeypatch, 2, fail)
    with pytest.raises(RuntimeError, match="what went wrong first"):
        tiny_train()
    assert run_state("tiny")[0] == "killed"  # nothing else could be written down


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run": "ti', "damaged: expected JSON"),
        ("[1, 2]", "damaged: expected a JSON object, found list"),
        ('{"run": "tiny"}', "epochs: missing"),
    ],
)
def test_damaged_parameters_stop_before_anything_is_touched(text, message, interrupted):
    (interrupted / "config.json").write_text(text)
    before = contents(interrupted)
    with pytest.raises(ValueError, match=message):
        tiny_train()
    assert contents(interrupted) == before


def test_what_is_missing_is_named():
    with pytest.raises(
        FileNotFoundError, match=r"no run 'tiny' in .*; there are no runs yet\. Train it first"
    ):
        require_complete("tiny")
    with pytest.raises(FileNotFoundError, match=r"'tiny' has no history: expected .*; train it first"):
        read_history("tiny")
    with pytest.raises(FileNotFoundError, match=r"no run 'tiny' in .*runs"):
        read_result("tiny")
    tiny_train(epochs=1, run="another")
    with pytest.raises(FileNotFoundError, match=r"'another' was not evaluated: expected .*03_evaluate first"):
        read_result("another")
    with pytest.raises(FileNotFoundError, match="the runs there are: another"):
        require_complete("tiny")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dataset": "flickr8k", "data_root": "no/such/folder"}, FileNotFoundError, "no/such/folder"),
        ({"device": "cuda"}, ParameterError, "expected a CUDA GPU, found none"),
        ({"precision": "fp16"}, ParameterError, "fp16 needs a GPU"),
    ],
)
def test_overwriting_with_wrong_input_leaves_the_old_run(wrong, error, message, complete, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = contents(complete)
    with pytest.raises(error, match=message):
        tiny_train(overwrite=True, **wrong)
    assert contents(complete) == before


def test_overwriting_removes_first_what_says_that_the_run_is_complete(complete, monkeypatch):
    removed = []
    unlink = type(complete).unlink
    monkeypatch.setattr(
        type(complete), "unlink", lambda path, **k: (removed.append(path.name), unlink(path, **k))
    )
    with open_run("tiny", overwrite=True):
        pass
    assert set(removed[:2]) == {"status.json", "config.json"}
    assert {path.name for path in complete.iterdir()} == {".lock"}


def test_data_that_changed_meanwhile_are_refused_with_both_fingerprints(interrupted, monkeypatch):
    there = read_json(interrupted / "environment.json")["data"]["fingerprint"]
    before = contents(interrupted)
    monkeypatch.setattr(shapes, "RENDERER_VERSION", 99)
    with pytest.raises(
        ValueError, match=r"'tiny' was trained on other data: shapes with fingerprint"
    ) as caught:
        tiny_train()
    assert there in str(caught.value)
    assert len([w for w in str(caught.value).split() if len(w.strip(" ;,")) == 16]) >= 2
    assert contents(interrupted) == before
    history = tiny_train(overwrite=True)
    assert read_json(interrupted / "environment.json")["data"]["fingerprint"] != there
    assert len(history) == 2


def test_a_run_in_a_thread_leaves_the_signals_alone(folder):
    from concurrent.futures import ThreadPoolExecutor

    whole = tiny_train(run="whole", epochs=1)
    with ThreadPoolExecutor(1) as pool:
        history = pool.submit(tiny_train, epochs=1).result()
    assert history[0]["train_loss"] == whole[0]["train_loss"]


def test_unfinished_files_of_a_killed_writer_are_cleared(interrupted):
    rest = interrupted / "last.pt.0123.part"
    rest.write_bytes(b"half")
    tiny_train()
    assert not rest.exists()


def test_one_line_per_epoch_goes_to_the_log(folder):
    lines = []
    tiny_train(log=lines.append)
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert "lr 1.00e-02" in epochs[0]
    assert "rsum" in epochs[0]
    assert epochs[0].endswith("best")
    assert_same(lines[:1], [f"shapes: {shapes.NOTE}"])


def test_the_loop_runs_the_steps_it_says(folder, monkeypatch):
    seen = []
    step = Learner.backward
    monkeypatch.setattr(Learner, "backward", lambda t, b: (seen.extend(b.image_id_R.tolist()), step(t, b))[1])
    tiny_train(epochs=1)
    assert sorted(seen) == sorted(5 * list(range(24)))  # every pair once: five of each image
    assert left_behind("tiny")["last"]["position"]["epoch"] == 2
