"""Tables: every number with its scope, in HTML and in plain text."""

import pytest
import reporting_samples as samples
from pydantic import BaseModel, Field

from mmlib.metrics import recall_interval
from mmlib.reporting import best_epochs_table, parameter_table, results_table
from mmlib.reporting.published import (
    PUBLISHED,
    REFERENCE_TEST_STANDARD_R1,
    published_table,
    reference_table,
    why_not_published,
)
from mmlib.reporting.tables import percent, recall_text


class Config(BaseModel):
    lr: float = Field(0.01, description="base learning rate <per step>")
    run: str = "demo"


def test_parameter_table_has_name_value_and_meaning():
    table = parameter_table(Config(lr=0.005))
    for line, words in zip(
        repr(table).splitlines(), (["parameter", "value"], ["lr", "0.005"], ["run", "'demo'"])
    ):
        assert line.split()[:2] == words
    assert table.markdown()[3] == r"| lr | 0.005 | base learning rate \<per step\> |"
    page = table._repr_html_()
    assert "base learning rate &lt;per step&gt;" in page
    assert "NaN" not in page


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
    frame = best_epochs_table(history, "shapes").frame
    assert list(frame["epochs"]) == ["1–6", "7–10"]
    assert frame["best epoch"][1] == max(history[6:], key=lambda row: row["val"]["rsum"])["epoch"]
    assert list(frame["run"]) == ["demo-train", "demo-continue"]


def test_small_recalls_keep_two_decimals():
    low, high = recall_interval([True] * 17 + [False] * 4983)
    text = recall_text({"value": 17 / 5000, "low": low, "high": high})
    assert text.replace("\N{NO-BREAK SPACE}", " ") == "0.34 % (0.20–0.54)"  # REFERENCE §3.2
    assert percent(0.123) == "12.3"
    assert percent(0) == "0.0"


def test_published_table_keeps_the_traps_and_the_gaps():
    table = published_table()
    assert len(table.frame) == len(PUBLISHED) == 18
    rows = table.frame.set_index("system")
    assert rows.loc["CLIP ViT-B/16 laion400m", "image → text R@1/5/10"] == "76.9/94.1/–"
    assert rows.loc["CLIP H/14, LAION-2B", "text → image R@1/5/10"] == "–/92.8/–"
    assert "943 of the 1,000" in table.caption
    assert "8,091" in table.caption
    assert published_table([samples.flickr_result()]).frame["system"][0] == "flickr8k-continue (this project)"


def test_reference_table_has_both_protocols_and_their_limits():
    table = reference_table([samples.flickr_result()])
    assert table.frame["standard I→T R@1"].iloc[0] == "1.60"
    assert "20 % I→T R@1" in table.caption
    assert "is no test of a difference" in table.caption
    assert pytest.approx(1.52) == REFERENCE_TEST_STANDARD_R1["t2i"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": samples.DATA}, "for Flickr8k; this run was evaluated on shapes"),
        ({"split": "val"}, "official test split; this run was evaluated on val"),
        ({"protocols": {}}, "use the standard protocol; this run was not evaluated under it"),
        (
            {"protocols": {"standard": samples.summary(0.5)}},
            "use 1,000 test images; this run was evaluated on 60",
        ),
    ],
)
def test_what_may_not_stand_beside_published_figures_is_told_why(change, reason):
    other = samples.flickr_result() | change
    assert reason in why_not_published(other)
    with pytest.raises(ValueError, match="'flickr8k-continue' cannot stand beside the published figures"):
        published_table([other])
    with pytest.raises(ValueError, match="at least one run, found none"):
        reference_table([])


def test_flickr8k_test_results_may_stand_beside_published_figures():
    assert why_not_published(samples.flickr_result()) is None
