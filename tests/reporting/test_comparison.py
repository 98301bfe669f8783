"""Runs of any lineage, pair by pair: who is better, what is corrected, what is refused."""

import numpy as np
import pytest
from tiny_runs import tiny_evaluate, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.files import read_json, write_json
from mmlib.metrics import RetrievalRanks, compare_runs
from mmlib.metrics.compare import holm
from mmlib.reporting.results import comparison_table

RUNS = ("one", "two", "three")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three evaluated runs of one data set, the third of which ranks every query first."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("compare")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    for seed, run in enumerate(RUNS):
        tiny_train(run=run, seed=seed, epochs=1, shapes_test=30)
        tiny_evaluate(run)
    path = files.RUNS / "three" / "ranks.npz"
    ranks = RetrievalRanks.load(path)
    for values in (ranks.i2t_N, ranks.t2i_M):
        values[:] = 1
    for values in (ranks.ties_i2t_N, ranks.ties_t2i_M):
        values[:] = 0
    ranks.save(path)
    yield files.RUNS
    patch.undo()


def test_every_pair_is_judged_and_p_is_corrected_over_the_pairs(place):
    frame = comparison_table(*RUNS).frame
    pairs = [("two", "one"), ("three", "one"), ("three", "two")]
    assert list(zip(frame["run"], frame["against"])) == pairs
    ranks = {run: RetrievalRanks.load(place / run / "ranks.npz") for run in RUNS}
    alone = [compare_runs(ranks[a], ranks[b])["metrics"]["mean_r1"] for b, a in pairs]
    corrected = holm([metric["p"] for metric in alone])
    assert frame["p, Holm"].tolist()[1:] == ["< 0.001", "< 0.001"]
    assert frame["p, Holm"][0] == f"{corrected[0]:.3f}"
    assert frame["better"].tolist()[1:] == ["three", "three"]
    assert frame["mean R@1"][1].startswith("100.00 % against ")
    assert f"{100 * alone[2]['difference']:+.2f} (" in frame["points (95 %)"][2]


def test_the_order_of_the_runs_turns_the_sign_and_not_the_verdict(place):
    (row,) = comparison_table("three", "one").frame.to_dict("records")
    assert (row["run"], row["better"]) == ("one", "three")
    assert row["points (95 %)"].startswith("-")


def test_the_command_prints_the_table(place, capsys):
    assert main(["compare", *RUNS]) == 0
    printed = capsys.readouterr().out
    assert "corrected over 3 comparisons (Holm)" in printed
    assert "shapes · test split · protocol standard · 30 image and 150 caption queries" in printed


def test_runs_on_other_queries_are_told_apart(place, capsys):
    path = place / "two" / "results.json"
    result = read_json(path)
    try:
        write_json(path, result | {"data": result["data"] | {"fingerprint": "0" * 16}})
        table = comparison_table(*RUNS)
        assert list(zip(table.frame["run"], table.frame["against"])) == [("three", "one")]
        assert [sentence.split(": not comparable: ")[0] for sentence in table.sentences] == [
            "two against one", "three against two",
        ]  # fmt: skip
        assert comparison_table("one", "two").frame is None
    finally:
        write_json(path, result)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["one"], "expected two or more different runs to compare, found one; name each once"),
        (["one", "one"], "found one, one; name each once"),
        (["one", "absent"], "absent"),
        (["one", "raw"], "run 'raw' was not evaluated"),
    ],
)
def test_what_cannot_be_compared_is_said(place, capsys, runs, message):
    (place / "raw").mkdir(exist_ok=True)
    assert main(["compare", *runs]) == 2
    assert message in capsys.readouterr().err


def test_each_pair_stands_under_its_own_data(place):
    for name, seed in (("small", 0), ("small-too", 1)):
        tiny_train(run=name, seed=seed, epochs=1, shapes_test=20)
        tiny_evaluate(name)
    table = comparison_table("one", "small", "three", "small-too")
    assert list(zip(table.frame["run"], table.frame["against"])) == [("three", "one"), ("small-too", "small")]
    for names, images in (("one, three", 30), ("small, small-too", 20)):
        scope = f"{names}: shapes · test split · protocol standard · {images} image and {5 * images} caption"
        assert scope in table.caption
    assert "corrected over 2 comparisons" in table.caption


def test_equal_runs_are_no_evidence(place):
    ranks = RetrievalRanks.load(place / "one" / "ranks.npz")
    assert np.isfinite(ranks.t2i_M).all()
    for name in ("results.json", "ranks.npz"):
        (place / "copy").mkdir(exist_ok=True)
        (place / "copy" / name).write_bytes((place / "one" / name).read_bytes())
    assert comparison_table("one", "copy").frame["better"].tolist() == ["no evidence"]
