"""What is promised whole or not at all is still so after a power cut: each rename reaches the disk."""

import pytest
from tiny_runs import tiny_config, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.data import load_dataset
from mmlib.data.shards import write_shards

pytestmark = pytest.mark.usefixtures("tiny_place")


def test_every_rename_is_flushed(renamed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    frozen = {"image_encoder": "timm:test_resnet", "image_tune": "none", "image_size": 32}
    tiny_train(epochs=1, **frozen)
    tiny_evaluate()
    write_shards(load_dataset(tiny_config()), tmp_path / "shards", samples_per_shard=9)
    assert {
        "config.json", "environment.json", "tokenizer.json", "history.jsonl", "status.json", "best.pt",
        "last.pt", "model.safetensors", "ranks.npz", "gallery.npz", "queries.json", "diagnosis.json",
        "results.json", "train-000000.tar", "shards.json",
    } <= set(renamed)  # fmt: skip
    assert sum(name.endswith(".npy") for name in renamed) >= 2, renamed
