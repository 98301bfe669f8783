"""What a person sees of a training: trackers' logs equal the history; a notebook that is watched shows curves
while it runs and keeps the lines alone."""

import csv
import importlib.util
import re
from pathlib import Path

import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from tiny_runs import TINY, before_step, tiny_config, tiny_continue, tiny_train
from together import run_together, settle

from mmlib.training import progress, read_history, run_folder, run_state
from mmlib.training.progress import Progress, scalars
from mmlib.training.start import train

pytestmark = pytest.mark.usefixtures("tiny_place")
TRACKERS = ("csv", "tensorboard")


def logged(run: str, tracker: str) -> list[dict]:
    """What a tracker's log holds of each epoch, in order; of TensorBoard as its own reader has it."""
    folder = run_folder(run) / tracker
    if tracker == "csv":
        with open(folder / "metrics.csv", newline="") as file:
            return [
                {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)
            ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    rows = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            row = rows.setdefault(event.step, {"step": event.step})
            assert name not in row, "an epoch is there twice"
            row[name] = event.value
    return [rows[step] for step in sorted(rows)]


def assert_is_history(run: str, tracker: str) -> None:
    found, history = logged(run, tracker), read_history(run)
    assert len(found) == len(history)
    for there, row in zip(found, history):
        assert there == pytest.approx(scalars(row) | {"step": row["epoch"]}, rel=1e-6)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_log_equals_the_history_also_of_a_run_that_was_stopped(tracker, monkeypatch):
    with monkeypatch.context() as patch:

        def stop(training):
            raise KeyboardInterrupt

        before_step(patch, 10, stop)  # in the third epoch
        with pytest.raises(KeyboardInterrupt):
            tiny_train(epochs=4, tracker=tracker)
    assert [row["step"] for row in logged("tiny", tracker)] == [1, 2]
    tiny_train(epochs=4, tracker=tracker)
    assert_is_history("tiny", tracker)
    tiny_continue(tracker=tracker)
    assert [row["step"] for row in logged("child", tracker)] == [
        row["epoch"] for row in read_history("child")
    ]
    assert_is_history("child", tracker)


def test_a_tracker_that_is_asked_for_later_logs_the_epochs_before_too(monkeypatch):
    with monkeypatch.context() as patch:

        def stop(training):
            raise KeyboardInterrupt

        before_step(patch, 6, stop)
        with pytest.raises(KeyboardInterrupt):
            tiny_train()
    assert not (run_folder("tiny") / "csv").exists()
    tiny_train(tracker="csv")
    assert_is_history("tiny", "csv")


def test_a_log_changes_no_result():
    without, with_log = tiny_train(), tiny_train(run="logged", tracker="csv")
    of_time = ("seconds", "pairs_per_s", "run")
    for one, other in zip(without, with_log):
        assert {k: v for k, v in one.items() if k not in of_time} == {
            k: v for k, v in other.items() if k not in of_time
        }


def test_a_missing_package_is_named_with_its_extra_before_anything_is_touched(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmlib\[tensorboard\]'"):
        tiny_train(tracker="tensorboard")
    assert not run_folder("tiny").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_log_that_cannot_be_written_fails_the_run_which_goes_on_later(tracker, epoch, monkeypatch):
    whole = tiny_train(run="whole")

    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        before_step(patch, 4 * epoch + 1, lambda training: break_disk(patch, tracker, full))
        if not epoch:
            break_disk(patch, tracker, full)
        with pytest.raises(OSError, match=f"could not write .*{tracker}: No space left on device.*Free some"):
            tiny_train(tracker=tracker)
    state, reason = run_state("tiny")
    assert state == "failed"
    assert "No space left" in reason
    rows = tiny_train(tracker=tracker)
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in whole]
    assert_is_history("tiny", tracker)


def break_disk(patch, tracker, full) -> None:
    from lightning_fabric.loggers.csv_logs import _ExperimentWriter
    from tensorboard.summary.writer.record_writer import RecordWriter

    patch.setattr(*((_ExperimentWriter, "save") if tracker == "csv" else (RecordWriter, "write")), full)


def track_as_rank(runs: Path, cache: Path, tracker: str) -> None:
    settle(runs, cache)
    tiny_train(tracker=tracker)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_of_several_processes_the_first_writes(tracker, tiny_place, tiny_cache):
    assert run_together(track_as_rank, 2, tiny_place, tiny_cache, tracker) == [0, 0]
    assert len(list((run_folder("tiny") / tracker).iterdir())) == 1
    assert_is_history("tiny", tracker)


class Output:
    """An output of a cell, and all that it showed."""

    def __init__(self):
        self.shown = []

    def update(self, content, raw):
        assert raw
        self.shown.append(content)


@pytest.fixture
def cell(monkeypatch):
    """A watched cell, with its one output."""
    output = Output()

    def display(content, raw, display_id):
        assert not output.shown
        output.update(content, raw)
        return output

    monkeypatch.setattr(progress, "is_watched", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    return output


def test_a_watched_cell_shows_bar_and_growing_curves_and_keeps_the_lines(cell, capsys):
    train(tiny_config(), print)
    *during, last = cell.shown
    assert list(last) == ["text/plain"]
    assert [line.split("  ")[0] for line in last["text/plain"].splitlines() if "WARNING" not in line] == [
        "epoch 1/2", "epoch 2/2"
    ]  # fmt: skip
    assert all('<progress value="' in shown["text/html"] for shown in during)
    points = [shown["text/html"].count("<polyline") for shown in during]
    assert (points[0], points[-1]) == (0, 7)  # the loss, and three recalls of two directions
    assert "epoch 1/2" not in capsys.readouterr().out


def test_a_watched_cell_of_a_training_that_fails_keeps_nothing_of_the_show(cell, monkeypatch):
    def stop(training):
        raise KeyboardInterrupt

    before_step(monkeypatch, 2, stop)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), print)
    assert cell.shown[-1] == {"text/plain": "no epoch was finished"}


def test_a_log_of_ones_own_gets_the_lines_in_a_watched_cell_too(cell):
    lines = []
    tiny_train(log=lines.append)
    assert not cell.shown
    assert sum(line.startswith("epoch") for line in lines) == 2


def test_what_is_shown_is_text(cell):
    show = Progress(tiny_config(), None, print, True)
    show.start([], 1)
    show.log("<b>\x1b[31m & a name")
    assert "<b>" not in cell.shown[-1]["text/html"].split("<pre")[1]


def code_of(run: str, runs: Path, cache: Path) -> str:
    return f"""
from pathlib import Path
from mmlib import files
from mmlib.config import TrainConfig, build
from mmlib.training import train
files.RUNS, files.CACHE = Path({str(runs)!r}), Path({str(cache)!r})
history = train(build(TrainConfig, {TINY | {"run": run}!r}))"""


def test_a_kernel_shows_curves_to_a_front_end_and_lines_alone_to_nbclient(tiny_place, tiny_cache):
    notebook = new_notebook(cells=[new_code_cell(code_of("headless", tiny_place, tiny_cache))])
    client = NotebookClient(notebook, timeout=300)
    with client.setup_kernel():
        client.execute_cell(notebook.cells[0], 0)
        request = client.kc.session.msg(
            "execute_request", {"code": code_of("seen", tiny_place, tiny_cache), "silent": False}
        )
        request["metadata"]["cellId"] = "as-jupyterlab-does"
        client.kc.shell_channel.send(request)
        answers = []
        while not answers or answers[-1]["content"].get("execution_state") != "idle":
            answer = run_sync(client.kc.get_iopub_msg)(timeout=300)
            if answer["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                answers.append(answer)
    outputs = notebook.cells[0].outputs
    assert {output["output_type"] for output in outputs} == {"stream"}
    headless = "".join(output["text"] for output in outputs)
    assert headless.count("\nepoch ") == 2
    shown = [answer for answer in answers if "display_data" in answer["msg_type"]]
    assert [answer["msg_type"] for answer in shown[:2]] == ["display_data", "update_display_data"]
    assert len({answer["content"]["transient"]["display_id"] for answer in shown}) == 1
    assert all("text/html" in answer["content"]["data"] for answer in shown[:-1])
    assert list(shown[-1]["content"]["data"]) == ["text/plain"]

    def without_times(text: str) -> list[str]:
        return re.sub(r"  [\d.]+ s  [\d,]+ pairs/s", "", text).split("\n")

    printed = "".join(answer["content"]["text"] for answer in answers if answer["msg_type"] == "stream")
    kept = printed + shown[-1]["content"]["data"]["text/plain"]
    assert without_times(kept) == without_times(headless.rstrip("\n"))
