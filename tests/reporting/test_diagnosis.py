"""Figures and tables of an error analysis: what is drawn, what is told, what is refused and kept private."""

import json
import re

import numpy as np
import pytest
import reporting_samples as samples
from IPython.core.formatters import DisplayFormatter
from matplotlib.text import Text
from nbformat import v4

from mmlib import files
from mmlib.analysis.diagnosis import diagnose, queries_of
from mmlib.analysis.people import human_aware_recall
from mmlib.data import Dataset, Split
from mmlib.files import write_json
from mmlib.metrics import retrieval_ranks, summarise
from mmlib.reporting import (
    calibration_figure,
    hubness_table,
    people_section,
    recall_by_group_figure,
    similarity_figure,
    slots_section,
)
from mmlib.reporting.diagnosis import agreement_table, human_aware_table
from mmlib.reporting.notebooks import mark_of
from mmlib.reporting.results import changed_queries_list, changed_queries_table
from mmlib.reporting.style import DIRECTIONS
from mmlib.training.runs import run_folder

WORDS = ("man", "dog", "ball", "two men")


def dataset(redistributable: bool = True) -> Dataset:
    map_M = samples.embeddings(1.0)[2]
    names = tuple(f"photo{n}.jpg" for n in range(samples.IMAGES))
    captions = tuple(f"a {WORDS[n % 4]} <{m}> in the park , {m % 7} $" for m, n in enumerate(map_M))
    split = Split("test", names, captions, map_M)
    return Dataset("shapes", {"test": split}, None, samples.DATA["fingerprint"], (), redistributable)


@pytest.fixture(scope="module")
def diagnosis() -> dict:
    image_ND, text_MD, map_M = samples.embeddings(0.8)
    ranks = retrieval_ranks(image_ND, text_MD, map_M)
    found = diagnose(dataset(), "test", image_ND, text_MD, ranks)
    tau = {"tau": 0.3, "low": 0.25, "high": 0.35, "variant": "c", "n": 900, "images": 60}
    counts = {"judgements": 912, "own_left_out": 4, "unscored": {"image outside the split": 12, "other": 0}}
    none = {"tau": None, "variant": "b", "n": 0, "reason": "expected scores that vary"}
    judged = np.array([0]), np.array([9]), np.array([4])
    aware = [human_aware_recall(image_ND, text_MD, ranks, *judged, threshold=t) for t in (4.0, 3.0)]
    people = {"caption_numbers": "the token file", "expert": tau | counts, "crowdflower": none | counts}
    return found | {"people": people | {"human_aware": aware}}


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


def test_figures_name_their_scope_and_their_axes(diagnosis):
    for figure in (
        recall_by_group_figure(diagnosis), recall_by_group_figure(diagnosis, 1),
        similarity_figure(diagnosis), calibration_figure(diagnosis),
    ):  # fmt: skip
        assert "shapes · test split · protocol standard · 60 image and 180 caption" in texts(figure)
        assert not re.search(r"\d", re.sub(r"recall at \d+", "", figure.get_label()))
        assert all(axes.get_xlabel() for axes in figure.axes)
        figure.draw_without_rendering()


def test_groups_are_drawn_with_their_numbers_of_queries(diagnosis):
    figure = recall_by_group_figure(diagnosis, k=10)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "by length of the caption",
        "by image cluster",
        "by word of the caption",
    ]
    assert "man (– / 45)" in texts(figure)
    without = {d: {"length": diagnosis["groups"]["t2i"]["length"]} for d in DIRECTIONS}
    assert len(recall_by_group_figure(diagnosis | {"groups": without}).axes) == 1
    with pytest.raises(ValueError, match="k: expected one of 1, 10, found 5"):
        recall_by_group_figure(diagnosis, k=5)


def test_every_bin_of_the_margin_is_drawn(diagnosis):
    for axes, direction in zip(calibration_figure(diagnosis).axes, DIRECTIONS):
        values = [100 * row["value"] for row in diagnosis["calibration"][direction]]
        assert any(
            np.allclose(line.get_ydata(), values) for line in axes.lines if len(line.get_ydata()) == 10
        )


def test_hubness_table_has_both_directions(diagnosis):
    frame = hubness_table(diagnosis).frame
    assert frame["gallery"].tolist() == ["180", "60"]
    assert frame["in a top 10, on average"].tolist() == ["3.3", "30.0"]
    assert frame["the largest hub"].tolist() == [str(diagnosis["hubness"][d]["largest"]) for d in DIRECTIONS]


def test_agreement_tells_what_was_and_was_not_scored(diagnosis):
    table = agreement_table(diagnosis)
    assert table.frame["value (95 %)"].tolist() == ["0.300 (0.250 to 0.350)", "–"]
    assert table.frame["not scored"].tolist() == ["12 image outside the split"] * 2
    assert "No tau for CrowdFlower, share of yes: expected scores that vary." in table.caption
    assert "the token file" in table.caption


def test_people_are_left_out_of_data_without_their_judgements(diagnosis, monkeypatch):
    shown = []
    monkeypatch.setattr("mmlib.reporting.diagnosis.display", lambda *parts: shown.extend(parts))
    people_section(diagnosis | {"people": None})
    assert shown == []
    people_section(diagnosis | {"people": diagnosis["people"] | {"human_aware": None}})
    assert [type(part).__name__ for part in shown] == ["Markdown", "Table"]
    people_section(diagnosis)
    assert [type(part).__name__ for part in shown[2:]] == ["Markdown", "Table", "Table"]


def test_memory_that_is_read_evenly_is_said_and_not_drawn(monkeypatch):
    shown = []
    monkeypatch.setattr("mmlib.reporting.gallery.display", lambda *parts: shown.extend(parts))
    monkeypatch.setattr("mmlib.reporting.gallery.show", lambda figure, name: shown.append(figure))
    slots_section({}, samples.result())
    assert shown == []
    even = samples.slots(8) | {f"{name}_weight": np.full(8, 1 / 8) for name in ("image", "text")}
    slots_section(even, samples.result())
    _, figure, table = shown
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    assert titles == ["central memory, read by images", "central memory, read by captions"]
    assert "image memory, read by images; text memory, read by captions" in table.sentences[0]


def test_human_aware_recall_stands_beside_the_standard(diagnosis):
    frame = human_aware_table(diagnosis).frame
    assert frame["a hit is"].unique().tolist() == [
        "own captions (standard)", "or rated 4 (no errors)", "or rated 3 and above",
    ]  # fmt: skip
    hits = diagnosis["standard"]["i2t"]["r1"]["hits"]
    assert frame["R@1"][0].endswith(f"{hits}/60")
    assert frame["extended"].tolist() == ["", "", "1", "1", "1", "1"]
    alone = diagnosis["people"] | {"human_aware": None, "expert": None}
    assert len(agreement_table(diagnosis | {"people": alone}).frame) == 1


# Two runs


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUNS", tmp_path)
    ranks = {}
    for run, skill in (("first", 0.5), ("second", 0.9)):
        (tmp_path / run).mkdir()
        ranks[run] = retrieval_ranks(*samples.embeddings(skill))
        ranks[run].save(tmp_path / run / "ranks.npz")
        result = samples.result(run) | {"protocols": {"standard": summarise(ranks[run])}}
        (tmp_path / run / "results.json").write_text(json.dumps(result))
    return ranks


@pytest.mark.parametrize("k", [1, 10])
def test_changed_queries_are_counted(two_runs, k):
    frame = changed_queries_table("first", "second", k).frame
    for row, direction in zip(frame.to_dict("records"), DIRECTIONS):
        before, after = (two_runs[run].of(direction) <= k for run in ("first", "second"))
        expected = [before & after, ~before & after, before & ~after, ~before & ~after]
        counted = [int(row[name]) for name in ("hit by both", "won", "lost", "hit by neither")]
        assert counted == [cell.sum() for cell in expected]
        assert sum(counted) == int(row["queries"])
        assert row["p, McNemar"]
        assert row["p, by image"]


def test_changed_queries_are_listed_with_their_captions(two_runs):
    write_json(run_folder("second") / "queries.json", queries_of(dataset(), "test"))
    table = changed_queries_list("first", "second", "t2i", top=3)
    frame = table.folded[1]
    won = frame[frame[""] == "won"]
    assert len(won) == 3
    before, after = (two_runs[run].t2i_M for run in ("first", "second"))
    query = dataset().splits["test"].captions.index(won["query"].iloc[0])
    assert (before[query], after[query]) == (int(won["rank before"].iloc[0]), 1)
    assert before[query] == before[after == 1].max()
    assert changed_queries_list("first", "second", "i2t").folded[1]["query"].iloc[0].startswith("photo")
    assert changed_queries_list("second", "second", "i2t").folded[1].empty
    assert DisplayFormatter().format(table)[1] == {}


def test_captions_that_may_not_be_passed_on_are_private(two_runs):
    write_json(run_folder("second") / "queries.json", queries_of(dataset(redistributable=False), "test"))
    bundle, metadata = DisplayFormatter().format(changed_queries_list("first", "second", "t2i"))
    output = v4.new_output("execute_result", bundle, metadata=metadata, execution_count=1)
    assert mark_of(output) == ("changed-queries", True)
    assert "&lt;" in bundle["text/html"]
    assert "in the park" in bundle["text/plain"]


def test_runs_and_queries_that_do_not_fit_are_refused(two_runs, tmp_path):
    with pytest.raises(ValueError, match="direction: expected one of i2t, t2i, found 'up'"):
        changed_queries_list("first", "second", "up")
    with pytest.raises(FileNotFoundError, match=r"queries\.json"):
        changed_queries_list("first", "second", "t2i")
    write_json(run_folder("second") / "queries.json", queries_of(dataset(), "test"))
    path = tmp_path / "second" / "queries.json"
    path.write_text(path.read_text().replace(samples.DATA["fingerprint"], "f" * 16))
    with pytest.raises(
        ValueError, match=r"run 'second': expected queries\.json of the evaluation in .* found test f"
    ):
        changed_queries_list("first", "second", "t2i")
    result = samples.result("first", data=samples.DATA | {"fingerprint": "f" * 16})
    (tmp_path / "first" / "results.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="runs 'first' and 'second' cannot be compared: fingerprint differs"):
        changed_queries_table("first", "second")
