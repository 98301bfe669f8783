"""Two processes that train together do what one does alone: loss, gradient, order, metrics, files.

Started as torchrun starts them, with gloo on the CPU.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import checkpoint, left_behind, quiet, tiny_train
from together import SERVER, as_rank, run_together, settle

from mmlib.config import ParameterError
from mmlib.training import read_history, run_state
from mmlib.training.processes import check_divides, share
from mmlib.training.runs import open_run

pytestmark = pytest.mark.usefixtures("tiny_place")
# Without dropout, whose masks differ between processes; 64 = 2 · 32; 120 pairs leave a last batch of 56.
TOGETHER = {"dropout": 0.0, "batch_size": 64, "optimizer": "sgd", "lr": 0.05, "epochs": 2}


def train_here(runs, cache, changes):
    settle(runs, cache)
    tiny_train(**changes)


def two(place: Path, cache: Path, **changes) -> list[int]:
    return run_together(train_here, 2, place, cache, TOGETHER | changes)


def watch_gradients(runs, cache, changes, out):
    """Trains one epoch and keeps each step's part of the loss, gradient, and images seen."""
    from mmlib.training.loop import Learner

    settle(runs, cache)
    kept = {"loss": [], "images": []}
    step = Learner.backward

    def watched(training, batch):
        loss = step(training, batch)
        kept["loss"].append(float(loss))
        kept["images"].append(batch.image_id_R[: batch.rows].tolist())
        if "gradient" not in kept:
            kept["gradient"] = {n: p.grad.tolist() for n, p in training.model.named_parameters()}
            kept["temperature"] = [p.grad.tolist() for p in training.loss.parameters() if p.grad is not None]
        return loss

    Learner.backward = watched
    tiny_train(**changes)
    Path(out, f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("loss", "chunk_size"),
    [
        ({"loss": "infonce", "learn_temperature": True}, 0),
        ({"loss": "infonce", "identity_positives": False, "label_smoothing": 0.1}, 8),
        ({"loss": "sigmoid", "learn_temperature": True}, 0),
        ({"loss": "triplet", "hardest_after_epochs": 0.0}, 0),
    ],
    ids=lambda value: str(value["loss"] if isinstance(value, dict) else value),
)
def test_loss_and_gradient_are_those_of_one_process(loss, chunk_size, tiny_place, tiny_cache, tmp_path):
    changes = TOGETHER | loss | {"clip_norm": 0.0, "epochs": 1}
    kept = {}
    for count in (1, 2):
        out = tmp_path / str(count)
        out.mkdir()
        chunks = chunk_size if count == 2 else 0
        arguments = (out / "runs", tiny_cache, changes | {"chunk_size": chunks}, out)
        assert run_together(watch_gradients, count, *arguments) == [0] * count
        kept[count] = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    (alone,), (first, second) = kept[1], kept[2]

    assert [a + b for a, b in zip(first["images"], second["images"])] == alone["images"]
    together = [a + b for a, b in zip(first["loss"], second["loss"])]
    assert together == pytest.approx(alone["loss"], rel=1e-5)
    assert first["gradient"] == second["gradient"]
    assert first["temperature"] == pytest.approx(alone["temperature"], rel=1e-4)
    norm = np.linalg.norm([np.linalg.norm(g) for g in alone["gradient"].values()])
    for name, gradient in alone["gradient"].items():
        difference = np.linalg.norm(np.array(gradient) - np.array(first["gradient"][name]))
        assert difference <= 1e-5 * max(np.linalg.norm(gradient), 1e-3 * norm), name


def test_history_and_weights_are_those_of_one_process(tiny_place, tiny_cache, tmp_path):
    tiny_train(**TOGETHER)
    alone = left_behind("tiny")
    os.rename(tiny_place / "tiny", tiny_place / "alone")
    assert two(tiny_place, tiny_cache) == [0, 0]
    both = left_behind("tiny")
    for there, here in zip(alone["history"], both["history"], strict=True):
        assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-5)
        assert here["val"] == there["val"]
    for name, weight in alone["last"]["model"].items():
        torch.testing.assert_close(both["last"]["model"][name], weight, rtol=1e-4, atol=1e-6)
    assert run_state("tiny") == ("complete", None)
    assert len(both["last"]["rng_of_others"]) == 1


def die_in_the_middle(runs, cache, changes, rank, signalled=False):
    from mmlib.training.loop import Learner

    settle(runs, cache)
    step = Learner.backward

    def mortal(training, batch):
        if training.position.epoch == 2 and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if training.position.epoch == 2 and signalled:
            signal.raise_signal(signal.SIGTERM)  # torchrun's, before the loss of the other one is seen
        return step(training, batch)

    Learner.backward = mortal
    try:
        tiny_train(**changes)
    except Exception as error:
        Path(runs, f"{os.environ['RANK']}.txt").write_text(str(error))
        sys.exit(1)


@pytest.mark.parametrize(("rank", "signalled"), [("0", False), ("1", True)])
def test_a_process_that_dies_ends_the_run_and_it_goes_on(rank, signalled, tiny_place, tiny_cache):
    codes = run_together(die_in_the_middle, 2, tiny_place, tiny_cache, TOGETHER, rank, signalled)
    assert codes[int(rank)] == -signal.SIGKILL
    assert codes[1 - int(rank)] == 1
    said = (tiny_place / f"{1 - int(rank)}.txt").read_text()
    assert (
        said == "another process of run 'tiny' has ended, its own output says why; the same command goes on"
    )
    state, reason = run_state("tiny")
    assert (state, "a process of it ended without a word" in reason) == ("killed", True)
    # What the first process was still writing when it was killed is lost, and made again.
    assert [row["epoch"] for row in read_history("tiny")] in ([[1]] if rank == "1" else [[], [1]])

    assert two(tiny_place, tiny_cache) == [0, 0]
    interrupted = left_behind("tiny")
    os.rename(tiny_place / "tiny", tiny_place / "interrupted")
    assert two(tiny_place, tiny_cache) == [0, 0]
    whole = left_behind("tiny")
    assert interrupted["history"] == whole["history"]
    assert all(
        torch.equal(weight, whole["last"]["model"][n]) for n, weight in interrupted["last"]["model"].items()
    )


def test_a_run_goes_on_with_another_number_of_processes(tiny_place, tiny_cache):
    run_together(die_in_the_middle, 2, tiny_place, tiny_cache, TOGETHER, "1")
    lines = []
    history = tiny_train(**TOGETHER, log=lines.append)
    assert any(line.startswith("run 'tiny' goes on in epoch 2, step 1") for line in lines)
    assert [row["epoch"] for row in history] == [1, 2]
    os.rename(tiny_place / "tiny", tiny_place / "other-number")
    alone = tiny_train(**TOGETHER, log=quiet)
    assert history[1]["train_loss"] == pytest.approx(alone[1]["train_loss"], rel=1e-4)


def fail_in_one(runs, cache, changes, rank):
    from mmlib.training.loop import Learner

    settle(runs, cache)
    step = Learner.backward

    def failing(training, batch):
        if training.position.epoch == 2 and os.environ["RANK"] == rank:
            raise MemoryError("the cable came loose")
        return step(training, batch)

    Learner.backward = failing
    try:
        tiny_train(**changes)
    except Exception:
        sys.exit(1)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_fails_says_why_and_the_other_does_not_contradict(rank, tiny_place, tiny_cache):
    assert run_together(fail_in_one, 2, tiny_place, tiny_cache, TOGETHER, rank) == [1, 1]
    assert run_state("tiny") == ("failed", "MemoryError: the cable came loose")


def stop_one(runs, cache, changes, rank):
    from mmlib.training.loop import Learner

    settle(runs, cache)
    step = Learner.backward

    def stopping(training, batch):
        if training.position.epoch == 2 and os.environ["RANK"] == rank:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # as torchrun does after the terminal did
        return step(training, batch)

    Learner.backward = stopping
    try:
        tiny_train(**changes)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_that_is_asked_to_stop_stops_all_with_a_checkpoint(rank, tiny_place, tiny_cache):
    changes = TOGETHER | {"epochs": 3}
    assert run_together(stop_one, 2, tiny_place, tiny_cache, changes, rank) == [130, 130]
    assert run_state("tiny")[0] == "interrupted"
    position = checkpoint("tiny")["position"]
    assert (position["epoch"], position["step"]) == (2, 2)


def complain(runs, cache, changes, spoil=None):
    settle(runs, cache)
    if spoil:
        spoil()
    try:
        tiny_train(**changes)
    except (ParameterError, FileNotFoundError, FileExistsError) as error:
        Path(runs.parent, f"{os.environ['RANK']}.txt").write_text(str(error))
        sys.exit(2)
    except RuntimeError as error:
        Path(runs.parent, f"{os.environ['RANK']}.txt").write_text(str(error))
        sys.exit(1)


def lose_the_data_of_the_second():
    from mmlib.training import start

    if os.environ["RANK"] == "1":
        start.load_dataset = lambda config: os.stat("/no/such/photo.jpg")


def test_what_one_process_cannot_read_is_refused_by_all(tiny_place, tiny_cache, tmp_path):
    codes = run_together(complain, 2, tiny_place, tiny_cache, TOGETHER, lose_the_data_of_the_second)
    assert codes == [2, 2]
    missing = "[Errno 2] No such file or directory: '/no/such/photo.jpg'"
    assert (tmp_path / "1.txt").read_text() == missing
    assert (tmp_path / "0.txt").read_text() == f"process 1 of 2: {missing}"
    assert not (tiny_place / "tiny").exists()


def test_a_folder_that_another_training_has_is_refused_by_all(tiny_place, tiny_cache, tmp_path):
    with open_run("tiny"):
        assert run_together(complain, 2, tiny_place, tiny_cache, TOGETHER) == [1, 1]
    message = f"run 'tiny' is being written by another process (process {os.getpid()} on "
    assert (tmp_path / "0.txt").read_text().startswith(message)
    assert (tmp_path / "1.txt").read_text().startswith(f"process 0 of 2: {message}")


def test_a_batch_that_the_processes_cannot_share_is_refused(tiny_place, tiny_cache, tmp_path):
    for rank in range(2):  # one after the other: neither waits for a process that has left
        arguments = (tiny_place, tiny_cache, TOGETHER | {"batch_size": 31})
        process = SERVER.Process(target=as_rank, args=(complain, rank, 2, 1, arguments))
        process.start()
        process.join()
        assert process.exitcode == 2
    message = (tmp_path / "0.txt").read_text()
    assert "batch_size must be a multiple of the number of processes: found 31 pairs for 2" in message
    assert "use 30 or 32" in message
    assert not (tiny_place / "tiny").exists()


def test_fewer_pairs_than_one_batch_are_refused(tiny_place):
    with pytest.raises(ParameterError, match="must not exceed the pairs of an epoch: found 121 for 120"):
        tiny_train(batch_size=121)
    assert not tiny_place.exists()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("rows", [0, 1, 2, 6, 7, 8, 100])
def test_shares_cover_a_batch_in_order(rows, count):
    shares = [share(rows, rank, count) for rank in range(count)]
    assert [row for part in shares for row in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_that_can_be_shared_passes():
    check_divides(64, 2)
    with pytest.raises(ParameterError, match="found 3 pairs for 8 processes; use 8,"):
        check_divides(3, 8)
