"""Tables: every number with its scope, in HTML and in plain text."""

import pytest
import reporting_samples as samples
from pydantic import BaseModel, Field
from torch import nn

from mmlib.config.page import value_text
from mmlib.metrics import recall_interval
from mmlib.metrics.summary import percent, recall_cells, recall_text
from mmlib.model.network import MemoryBlock
from mmlib.reporting import best_epochs_table, model_table, parameter_table, results_table
from mmlib.reporting.pages import harmless_html
from mmlib.reporting.published import (
    published_section,
    published_table,
    reference_section,
    why_not_published,
)


class Config(BaseModel):
    lr: float = Field(0.01, description="base learning rate <per step>")
    run: str = "demo"
    parent: str | None = None
    words: list[str] = ["a", "b"]


def test_parameters_that_were_set_stand_first_and_the_others_are_folded():
    table = parameter_table(Config(lr=0.005))
    assert table.frame.values.tolist() == [["lr", "0.005", "base learning rate <per step>"]]
    assert table.folded[0] == "3 more at their defaults"
    assert table.folded[1]["value"].tolist() == ["demo", "–", "a, b"]
    assert table.markdown()[3] == r"| lr | 0.005 | base learning rate \<per step\> |"
    page = table._repr_html_()
    assert "base learning rate &lt;per step&gt;" in page
    assert page.index("lr") < page.index("<details>") < page.index("parent")
    assert harmless_html(page).count("<details>") == 1


def test_a_recall_at_the_size_of_the_gallery_is_chance(result):
    part = result["protocols"]["standard"]["i2t"] | {"gallery": 10}
    assert recall_cells(part)["R@10"] == "100 % by chance"
    assert recall_cells(part)["R@5"] != "100 % by chance"


def test_results_table_gives_hits_interval_chance_and_scope(result):
    table = results_table([result])
    row = table.frame.iloc[0]
    part = result["protocols"]["standard"]["i2t"]["r1"]
    assert row["direction"] == "image → text"
    assert row["R@1"] == f"{recall_text(part)}, {part['hits']}/60"
    assert row["chance R@1"] == "1.7 %"
    assert len(table.frame) == 2
    for words in ("shapes · test split · protocol standard", "60 image and 180 caption", "95 % intervals"):
        assert words in table.caption


def test_the_ceiling_of_a_protocol_is_said(result):
    assert "a perfect model reaches 33.3 % image → text R@1" in results_table([result], "paired").caption
    assert "perfect model" not in results_table([result]).caption


def test_best_epochs_table_has_a_row_a_phase(history):
    table = best_epochs_table(history, "shapes")
    frame = table.frame
    assert list(frame["epochs"]) == ["1–6", "7–10"]
    assert frame["best epoch"][1] == max(history[6:], key=lambda row: row["val"]["rsum"])["epoch"]
    assert list(frame["run"]) == ["demo-train", "demo-continue"]
    (sentence,) = table.sentences
    assert sentence.startswith(f"demo-continue was best after epoch {frame['best epoch'][1]} of 10:")
    assert "of 60 images find a caption of theirs first" in sentence


def test_values_are_words_and_no_python():
    value = {"memory": {}, "small": {"latent_dim": 8, "bias": True, "schedule": None}, "seeds": [0, 1]}
    said = "memory: –; small: latent_dim: 8; bias: true; schedule: –; seeds: 0, 1"
    assert value_text(value) == said


def test_a_run_that_keeps_its_last_epoch_shows_that_one(history):
    table = best_epochs_table(history, "shapes", "last")
    assert list(table.frame["best epoch"]) == [6, 10]
    assert "last epoch" in table.caption


def test_small_recalls_keep_two_decimals():
    low, high = recall_interval([True] * 17 + [False] * 4983)
    text = recall_text({"value": 17 / 5000, "low": low, "high": high})
    assert text.replace("\N{NO-BREAK SPACE}", " ") == "0.34 % (0.20–0.54)"  # REFERENCE §3.2
    assert percent(0.123) == "12.3"
    assert percent(0) == "0.0"


def test_published_table_keeps_the_traps_and_the_gaps():
    table = published_table()
    assert len(table.folded[1]) == 18
    rows = table.folded[1].set_index("system")
    assert rows.loc["CLIP ViT-B/16 laion400m", "image → text R@1/5/10"] == "76.9/94.1/–"
    assert rows.loc["CLIP H/14, LAION-2B", "text → image R@1/5/10"] == "–/92.8/–"
    assert "943 of the 1,000" in table.caption
    assert "8,091" in table.caption
    assert published_table([samples.flickr_result()]).folded[1]["system"].iloc[0].endswith("(this project)")


def displayed(results: list[dict], monkeypatch) -> list:
    shown = []
    monkeypatch.setattr("mmlib.reporting.published.display", lambda *parts: shown.extend(parts))
    monkeypatch.setattr("mmlib.reporting.published.show", lambda figure, name: shown.append(name))
    published_section(results)
    reference_section(results)
    return shown


def test_our_results_stand_beside_published_ones_and_the_reference(monkeypatch):
    heading, figure, table, reference, paired, claim = displayed([samples.flickr_result()], monkeypatch)
    assert figure == "published"
    assert "flickr8k-continue (this project)" in table.folded[1]["system"].values
    assert heading.data.startswith("### Beside published figures")
    assert "0.32/1.30/2.54 %" in reference.data
    assert "is no test of a difference" in reference.data
    assert "protocol paired" in paired.caption
    assert "a perfect model reaches" in paired.caption
    assert "no evidence of a difference" in claim.sentences[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": samples.DATA}, "for Flickr8k; this run was evaluated on shapes"),
        ({"split": "val"}, "official test split; this run was evaluated on val"),
        (
            {"protocols": {"standard": samples.summary(0.5)}},
            "use 1,000 test images; this run was evaluated on 60",
        ),
    ],
)
def test_what_may_not_stand_beside_published_figures_is_told_why(change, reason, monkeypatch):
    other = samples.flickr_result() | change
    assert reason in why_not_published(other)
    shown = displayed([samples.flickr_result(), other], monkeypatch)
    if other["data"]["name"] != "flickr8k":
        assert shown == []  # nothing to say of published figures
    else:
        assert reason in shown[1].sentences[0]


def test_the_parts_of_a_model_add_up():
    model = nn.Module()
    model.encoder, model.fusion = MemoryBlock(2, 8, 1), nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    table = model_table(model)
    assert table.frame.values.tolist() == [
        ["encoder", "MemoryBlock", f"{16 + 4 * (64 + 8) + 16:,}"],
        ["fusion", "Linear, ReLU", "8"],
    ]
    assert table.caption == "328 weights in all."
