"""Training from shards, end to end: it is what it always is."""

import json
import os
import re
import shutil
import sys
import tarfile
from itertools import chain
from pathlib import Path

import pytest
from tiny_runs import (
    STEPS,
    TINY,
    assert_same,
    before_step,
    checkpoint,
    left_behind,
    press_ctrl_c,
    tiny_config,
    tiny_continue,
    tiny_evaluate,
    tiny_train,
)
from together import run_together, settle

from mmlib import files
from mmlib.cli import main
from mmlib.data import load_dataset
from mmlib.data import shards as shards_module
from mmlib.data.shards import write_shards
from mmlib.files import read_json
from mmlib.training import read_history, run_state
from mmlib.training.loop import Learner

pytestmark = pytest.mark.usefixtures("tiny_place", "tolerant")
IMAGES = 24
SPOILED = 13  # a training image whose bytes are no picture, in the `spoiled` shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The tiny data set in shards of nine samples, as parameters."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(load_dataset(tiny_config()), folder, samples_per_shard=9)
    return parameters(folder)


@pytest.fixture(scope="module")
def spoiled(shards, tmp_path_factory):
    """The same with one training image spoiled; their tar files are whole."""
    folder = shutil.copytree(
        Path(shards["val_shards"][0]).parent, tmp_path_factory.mktemp("spoiled") / "shards"
    )
    shard, number = f"train-{SPOILED // 9:06d}.tar", f"{SPOILED:09d}.png"
    with tarfile.open(folder / shard) as archive:
        picture = archive.getmember(number)
    with open(folder / shard, "r+b") as file:
        file.seek(picture.offset_data)
        file.write(bytes(picture.size))
    return parameters(folder)


def parameters(folder: Path) -> dict:
    names = {f"{split}_shards": [str(folder / f"{split}-*.tar")] for split in ("train", "val", "test")}
    return {"dataset": "shards", **names}


@pytest.fixture
def tolerant(monkeypatch):
    """One of 24 samples may be broken."""
    monkeypatch.setattr(shards_module, "MOST_BROKEN", 0.1)


@pytest.fixture(autouse=True)
def cold(tiny_place, tmp_path, monkeypatch):
    """A cache that knows nothing yet."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_it_trains_validates_and_is_evaluated(shards, tiny_place, monkeypatch):
    seen = []
    step = Learner.backward
    monkeypatch.setattr(Learner, "backward", lambda t, b: (seen.append(b.image_id_R.tolist()), step(t, b))[1])
    history = tiny_train(**shards)
    assert [(row["epoch"], row["steps"], row["val"]["split"]) for row in history] == [
        (1, STEPS, "val"),
        (2, STEPS, "val"),
    ]
    assert [len(batch) for batch in seen] == [30] * 2 * STEPS
    for epoch in (seen[:STEPS], seen[STEPS:]):
        assert sorted(chain(*epoch)) == sorted(5 * list(range(IMAGES)))
    assert seen[:STEPS] != seen[STEPS:]
    assert run_state("tiny") == ("complete", None)

    data = read_json(tiny_place / "tiny" / "environment.json")["data"]
    assert data["splits"] == {
        "train": {"images": 24, "captions": 120},
        "val": {"images": 8, "captions": 40},
        "test": {"images": 8, "captions": 40},
    }
    (result,) = tiny_evaluate()
    assert result["data"]["fingerprint"] == data["held_out_fingerprint"]
    assert result["protocols"]["standard"]["i2t"]["n"] == 8
    assert result["protocols"]["standard"]["t2i"]["n"] == 40
    assert (result["split"], result["epoch"]) == ("test", left_behind("tiny")["last"]["best"]["epoch"])


def test_a_frozen_pretrained_encoder_gets_its_mean_from_the_first_shards(shards):
    frozen = {"image_encoder": "timm:test_resnet", "image_tune": "none", "image_weights": "none"}
    history = tiny_train(**shards | frozen | {"image_size": 32}, epochs=1)
    assert history[0]["train_loss"] > 0


def test_it_can_be_evaluated_where_the_training_shards_are_not(shards, tmp_path):
    folder = shutil.copytree(Path(shards["val_shards"][0]).parent, tmp_path / "here")
    tiny_train(**parameters(folder))
    for shard in folder.glob("train-*.tar"):
        shard.unlink()
    assert tiny_evaluate()[0]["split"] == "test"


def test_a_run_is_continued(shards):
    tiny_train(**shards, epochs=1)
    history = tiny_continue(parent_checkpoint="last", epochs=1)
    assert [(row["epoch"], row["phase"]) for row in history] == [(1, 1), (2, 2)]


@pytest.fixture(scope="module")
def never_stopped(spoiled, tmp_path_factory):
    """What a run from the spoiled shards leaves behind."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "MOST_BROKEN", 0.1)
        patch.setattr(files, "CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(files, "RUNS", tmp_path_factory.mktemp("runs"))
        tiny_train(**spoiled, flip=True)
        return left_behind("tiny")


def test_a_broken_sample_is_left_out_counted_and_named(spoiled, never_stopped):
    said = []
    tiny_train(said.append, **spoiled, flip=True)
    assert said[0] == (
        f"shapes: Left out of train: 1 broken samples: train-000001.tar: {SPOILED:09d} (no image, or one that"
        " cannot be decoded)."
    )
    assert [row["steps"] for row in never_stopped["history"]] == [STEPS] * 2


@pytest.mark.parametrize(("step", "known"), [(3, True), (STEPS, False), (STEPS + 1, False)])
def test_a_stopped_run_goes_on_bit_for_bit(step, known, spoiled, never_stopped, cold, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, step, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**spoiled, flip=True)
    if not known:
        shutil.rmtree(cold)
    tiny_train(**spoiled, flip=True)
    assert_same(never_stopped, left_behind("tiny"))


def test_shards_whose_content_alone_changed_are_refused(shards, tmp_path, monkeypatch):
    """Names, sizes, counts and modification times are what they were; one letter of a caption is not."""
    folder = shutil.copytree(Path(shards["val_shards"][0]).parent, tmp_path / "here")
    with monkeypatch.context() as patch:
        before_step(patch, 2, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(**parameters(folder))
    shard = folder / "train-000001.tar"
    status, content = shard.stat(), bytearray(shard.read_bytes())
    content[content.index(b'"captions": ["') + 14] ^= 1
    with open(shard, "r+b") as file:
        file.write(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match="'tiny' was trained on other data: shapes with fingerprint"):
        tiny_train(**parameters(folder))


# --- two processes


def train_and_watch(runs, cache, changes, out, last):
    """Trains; keeps the images of each step; stops training in the way of a crash before step `last`."""
    settle(runs, cache)
    shards_module.MOST_BROKEN = 0.1
    seen, step = [], Learner.backward

    def watched(training, batch):
        if len(seen) + 1 == last:
            Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
            os._exit(9)
        seen.append(batch.image_id_R.tolist())
        return step(training, batch)

    Learner.backward = watched
    tiny_train(**changes)
    Path(out, f"{os.environ['RANK']}.json").write_text(json.dumps(seen))
    sys.exit(0)


def seen_by(processes, place, cold, changes, last=0) -> list[list[int]]:
    """The images of each step, those of all processes in the order of their ranks."""
    codes = run_together(train_and_watch, processes, place / "runs", cold, changes, place, last)
    assert codes == [9 if last else 0] * processes
    parts = [json.loads((place / f"{rank}.json").read_text()) for rank in range(processes)]
    return [list(chain(*step)) for step in zip(*parts)]


def test_two_processes_have_the_order_of_one_and_go_on_bit_for_bit_when_killed(
    spoiled, tmp_path, cold, monkeypatch
):
    changes = spoiled | {"checkpoint_steps": 1, "epochs": 2}
    alone, step = [], Learner.backward
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "backward", lambda t, b: (alone.append(b.image_id_R.tolist()), step(t, b))[1])
        tiny_train(run="alone", **changes)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert seen_by(2, whole, cold, changes) == alone
    with monkeypatch.context() as patch:
        patch.setattr(files, "RUNS", whole / "runs")
        expected = left_behind("tiny")
    assert seen_by(2, tmp_path, cold, changes, last=STEPS + 2) == alone[: STEPS + 1]
    assert run_state("tiny")[0] == "killed"
    done = checkpoint("tiny")["position"]
    assert seen_by(2, tmp_path, cold, changes) == alone[(done["epoch"] - 1) * STEPS + done["step"] :]
    assert_same(expected, left_behind("tiny"))


# --- through the command line


@pytest.mark.parametrize("which", ["all", "one"])
def test_the_example_of_the_docs_runs(which, tmp_path, capsys):
    text = (files.ROOT / "docs" / "shards.md").read_text(encoding="utf-8")
    (writing,) = re.findall(r"^python -m mmlib (shard .*)$", text, re.MULTILINE)
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    folder = str(tmp_path / "shards")
    small = ["-p", "shapes_train", "20", "-p", "shapes_val", "4", "-p", "shapes_test", "4"]
    assert main([*writing.replace("data/shards", folder).split(), *small]) == 0
    file = tmp_path / "example.yaml"
    file.write_text(example.replace("data/shards", folder).replace("captions_per_image: all", ""))
    small = ["-p", "batch_size", "10", "-p", "latent_dim", "16", "-p", "device", "cpu", "-p", "epochs", "1"]
    assert main(["train", str(file), "-p", "captions_per_image", which, *small]) == 0
    (row,) = read_history("from-shards")
    assert row["steps"] == (10 if which == "all" else 2)
    capsys.readouterr()


# --- wrong input


@pytest.fixture
def command(tmp_path, shards):
    """Runs `train` with other parameters; returns its exit code."""

    def run(**changes) -> int:
        path = tmp_path / "01_train.yaml"
        tiny = {name: value for name, value in TINY.items() if not name.startswith("shapes_")}
        path.write_text(json.dumps(tiny | shards | changes))
        return main(["train", str(path)])

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_shards": ["no/such-*.tar"]}, "train_shards: 'no/such-*.tar': expected tar files, as in"),
        ({"val_shards": ["no/val.tar"]}, "val_shards: 'no/val.tar': expected tar files, as in"),
        ({"train_shards": []}, "dataset 'shards' needs train_shards"),
        ({"batch_size": 121}, "batch_size must not exceed the pairs of an epoch: found 121 for 120 training"),
        (
            {"also_train_on": ["coco"]},
            "also_train_on is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this",
        ),
    ],
)
def test_wrong_input_ends_with_the_code_for_it_and_leaves_nothing(
    changes, message, command, tiny_place, capsys
):
    assert command(**changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not tiny_place.exists()


def test_an_evaluation_on_test_needs_test_shards(command, tiny_place, tmp_path, capsys):
    assert command(test_shards=[], epochs=1) == 0
    capsys.readouterr()
    before = {path.name for path in (tiny_place / "tiny").iterdir()}
    path = tmp_path / "03_evaluate.yaml"
    path.write_text(json.dumps({"runs": ["tiny"], "device": "cpu"}))
    assert main(["evaluate", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: split: expected one of val, which is what the files of shapes hold, found 'test'"
    )
    assert {path.name for path in (tiny_place / "tiny").iterdir()} == before
