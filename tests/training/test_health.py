"""Signs of a training that goes wrong: what is recorded, and what is said in words."""

import math

import pytest
import torch
from tiny_runs import tiny_train

from mmlib.model import MemoryNetwork
from mmlib.reporting import health_table
from mmlib.training.card import health_warning
from mmlib.training.embed import embedding_health

pytestmark = pytest.mark.usefixtures("tiny_place")


def test_spread_and_gap_of_known_embeddings():
    point, opposite = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, -1.0]])
    health = embedding_health(point, opposite)
    assert health == {"image_spread": 0.0, "caption_spread": 1.0, "modality_gap": 1.0}
    gap = embedding_health(point, -point)["modality_gap"]
    assert gap == pytest.approx(2.0)


def row(loss: float, spread: float = 0.5, chance: float | None = math.log(64)) -> dict:
    health = {"image_spread": spread, "caption_spread": 0.6, "modality_gap": 0.1, "gradient_norm": 1.0}
    return {"epoch": 1, "phase": 1, "train_loss": loss, "health": {**health, "chance_loss": chance}}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(4.1), row(4.1)], "the loss has stayed at ln B = 4.159, that of guessing, for two epochs"),
        ([row(4.1)], None),
        ([row(4.1), row(3.9)], None),
        (
            [row(2.0), row(2.0, spread=0.004)],
            "the image embeddings have collapsed to one point (spread 0.004)",
        ),
        ([row(4.1, chance=None), row(4.1, chance=None)], None),
        ([{"epoch": 1, "phase": 1, "train_loss": 4.1}], None),
        ([], None),
    ],
)
def test_what_is_wrong_is_said_in_words(rows, said):
    warning = health_warning(rows)
    assert warning is None if said is None else warning.startswith(said)


def test_a_run_records_its_health_and_says_what_is_wrong_after_each_epoch():
    lines = []
    history = tiny_train(log=lines.append, epochs=3)
    warnings = [health_warning(history[:epoch]) for epoch in (1, 2, 3)]
    assert [line for line in lines if "WARNING" in line] == [f"WARNING: {w}" for w in warnings if w]
    for epoch in history:
        health = epoch["health"]
        assert health["chance_loss"] == math.log(30)
        assert 0 < health["image_spread"] < 1
        assert 0 < health["caption_spread"] < 1
        assert health["gradient_norm"] > 0
    table = health_table(history)
    assert table.frame["ln B"].tolist() == ["3.401"] * len(table.frame)
    assert table.frame["epoch"].iloc[[0, -1]].tolist() == [1, 3]
    assert table.sentences == ((f"Epoch 3: {warnings[-1]}.",) if warnings[-1] else ())
    assert tiny_train(clip_norm=0.0, epochs=1, run="free")[0]["health"]["gradient_norm"] is None


def test_a_collapsed_run_is_warned_of_in_the_log_and_on_the_page(monkeypatch):
    def one_point(self, image, write=False):
        return embed(self, image, write) * 1e-6 + 1

    embed = MemoryNetwork.embed_images
    monkeypatch.setattr(MemoryNetwork, "embed_images", one_point)
    lines = []
    history = tiny_train(log=lines.append, epochs=1)
    warned = [line for line in lines if "WARNING: the image embeddings have collapsed to one point" in line]
    assert len(warned) == 1
    assert health_table(history).sentences[0].startswith("Epoch 1: the image embeddings have collapsed")


def test_a_history_of_before_has_no_health():
    history = [{k: v for k, v in epoch.items() if k != "health"} for epoch in tiny_train(epochs=1)]
    assert health_table(history).sentences == ("Not recorded.",)
