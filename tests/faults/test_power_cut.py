"""What is promised whole or not at all is still so after a power cut: each rename reaches the disk."""

import os
import threading

import pytest
from tiny_runs import tiny_config, tiny_evaluate, tiny_train

from mmlib import paths
from mmlib.data import load_dataset
from mmlib.data.shards import write_shards

pytestmark = pytest.mark.usefixtures("tiny_place")


@pytest.fixture
def renamed(monkeypatch):
    """Names of renamed files; each was flushed, and its folder too before anything else was renamed."""
    names, flushed, waiting = [], {}, {}
    fsync, replace = os.fsync, os.replace

    def identity(path) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_dev, found.st_ino

    def synced(descriptor):
        fsync(descriptor)
        flushed[identity(descriptor)] = True
        if waiting.get(threading.get_ident()) == identity(descriptor):
            del waiting[threading.get_ident()]

    def replaced(source, target):
        assert flushed.get(identity(source)), f"{source} was renamed and not flushed"
        assert threading.get_ident() not in waiting, f"{names[-1]} was renamed, its folder was not flushed"
        replace(source, target)
        names.append(os.path.basename(target))
        waiting[threading.get_ident()] = identity(os.path.dirname(target))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    yield names
    assert not waiting, f"{names[-1]} was renamed, its folder was not flushed"


def test_every_rename_is_flushed(renamed, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    frozen = {"image_encoder": "timm:test_resnet", "image_tune": "none", "image_size": 32}
    tiny_train(epochs=1, **frozen)
    tiny_evaluate()
    write_shards(load_dataset(tiny_config()), tmp_path / "shards", samples_per_shard=9)
    assert {
        "config.json", "environment.json", "tokenizer.json", "history.jsonl", "status.json", "best.pt",
        "last.pt", "model.safetensors", "ranks.npz", "gallery.npz", "queries.json", "diagnosis.json",
        "results.json", "train-000000.tar", "shards.json",
    } <= set(renamed)  # fmt: skip
    stores = [name for name in renamed if name.endswith((".uint8", ".float16", ".uint8.json"))]
    assert len(stores) >= 3, renamed
