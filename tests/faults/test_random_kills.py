"""Killed again and again at random moments, a run ends with the bits of one that nobody killed."""

import shutil
import tarfile

import pytest
from random_kills import Work, killed_at_random, results_of, undisturbed
from tiny_runs import ADAMW_ONE, SGD_ALL, assert_same, tiny_config, tiny_train

from mmlib import files
from mmlib.data import load_dataset
from mmlib.data.shards import write_shards
from mmlib.training import run_state

KILLS, MANY = 6, 200
LONG = {"epochs": 6, "checkpoint_steps": 1}
RECIPES = {
    "sgd, all captions; average, augmentation, chunks, dropout": LONG
    | SGD_ALL
    | {"checkpoint_steps": 2, "ema_decay": 0.9, "crop_area": 0.5, "flip": True, "chunk_size": 7}
    | {"dropout": 0.2, "learn_temperature": True, "schedule_unit": "step"},
    "adamw, one caption; frozen features of two views": LONG
    | ADAMW_ONE
    | {"image_encoder": "timm:test_resnet", "image_tune": "none", "image_size": 32}
    | {"feature_views": 2, "flip": True},
    "shards, one of them with a broken sample": LONG | {"dataset": "shards", "flip": True},
    "continued": LONG | {"parent": "tiny"},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of runs and cache that the test may copy."""
    import torch

    monkeypatch.setattr(files, "RUNS", tmp_path / "place" / "runs")
    monkeypatch.setattr(files, "CACHE", tmp_path / "place" / "cache")
    files.RUNS.mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "place"
    torch.set_num_threads(threads)


def spoil(shard, number: int) -> None:
    """Overwrites the picture of a sample, from 0; the tar stays whole."""
    with tarfile.open(shard) as archive:
        picture = [member for member in archive if member.name.endswith(".png")][number]
    with open(shard, "r+b") as file:
        file.seek(picture.offset_data)
        file.write(bytes(picture.size))


def work_of(name: str, folder) -> Work:
    """The work of a recipe; makes what it starts from."""
    changes = dict(RECIPES[name])
    if name == "continued":
        tiny_train()
        return Work("child", changes)
    if "dataset" in changes:
        write_shards(load_dataset(tiny_config()), folder, samples_per_shard=9)
        spoil(folder / "train-000001.tar", 4)
        shards = {f"{split}_shards": [str(folder / f"{split}-*.tar")] for split in ("train", "val", "test")}
        return Work("tiny", changes | shards, most_broken=0.5)
    return Work("tiny", changes)


@pytest.mark.parametrize(
    "kills", [KILLS, pytest.param(MANY, marks=pytest.mark.slow)], ids=lambda kills: f"{kills} kills"
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_killed_at_random_moments_ends_bit_for_bit(recipe, kills, place, tmp_path, monkeypatch):
    work = work_of(recipe, tmp_path / "shards")
    if kills == MANY:
        work.changes["epochs"] = 40
    whole = tmp_path / "whole"
    shutil.copytree(place, whole)
    cut = killed_at_random(place, work, kills, seed=len(recipe), whole=undisturbed(whole, work))
    assert len(cut) == kills, cut
    assert run_state(work.run) == ("complete", None)
    ended = results_of(work.run)
    monkeypatch.setattr(files, "RUNS", whole / "runs")
    assert_same(results_of(work.run), ended)
