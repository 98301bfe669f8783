"""Runs of any lineage, pair by pair: who is better, what is corrected, what is refused."""

import re
import shutil

import numpy as np
import pytest
from browser import needs_browser, open_page
from tiny_runs import tiny_continue, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.files import read_json, write_json
from mmlib.metrics import RetrievalRanks, compare_runs, summarise_seeds
from mmlib.metrics.compare import holm, measured_on
from mmlib.metrics.summary import percent
from mmlib.reporting.comparison import compared_with, comparison_table, write_comparison

HOSTILE = "</td><img src=x onerror=alert(1)> \x1b[31m שלום \u202e 'x' & 🎈"
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
        (["one", "absent"], "no run 'absent' in "),
        (["one", "thre"], "did you mean 'three'?"),
        (["one", "two", "--html", "/absent/page.html"], "found no folder /absent; make it or name another"),
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


@needs_browser
def test_the_page_shows_verdicts_differences_curves_and_queries(place, tmp_path, capsys):
    queries = read_json(place / "three" / "queries.json")
    hostile = queries | {"captions": [HOSTILE] * len(queries["captions"])}
    write_json(place / "three" / "queries.json", hostile)
    try:
        assert main(["compare", *RUNS, "--html", str(tmp_path / "page.html")]) == 0
    finally:
        write_json(place / "three" / "queries.json", queries)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "\x1b" not in text
    assert "three is better than one by " in text
    assert "three is better than two by " in text
    assert "No evidence that one and two differ" in text
    with open_page(tmp_path / "profile", f"file://{tmp_path / 'page.html'}") as page:
        count = "document.querySelectorAll('{}').length"
        assert page.evaluate(count.format(".verdicts li")) == 3
        assert page.evaluate(count.format("figure img")) == 2
        assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
        heads = "[...document.querySelectorAll('h2')].map(h => h.innerText)"
        found = page.evaluate(heads)
        assert found == [
            "Who is better", "Results", "Differences", "Over seeds", "Curves", "Queries that differ",
        ]  # fmt: skip
        for width in (400, 1280):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []
        assert page.requests == []


def test_runs_of_one_recipe_are_summed_over_their_seeds(place, tmp_path):
    table = write_comparison(tmp_path / "page.html", *RUNS)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert table.frame.equals(comparison_table(*RUNS).frame)
    assert "<td>one, two, three</td>" in re.sub(r"<td [^>]*>", "<td>", text)
    ranks = [RetrievalRanks.load(place / run / "ranks.npz") for run in RUNS]
    mean = summarise_seeds(ranks)["mean_r1"]["mean"]
    assert f"{percent(mean)} % (" in text


def test_continued_runs_of_several_seeds_are_one_recipe_and_a_seed_counts_once(place, tmp_path):
    for run in ("one", "two"):
        tiny_continue(run=f"{run}-on", parent=run, epochs=1)
        tiny_evaluate(f"{run}-on")
    shutil.copytree(place / "one", place / "again")
    try:
        write_comparison(tmp_path / "page.html", "one", "two", "one-on", "two-on", "again")
    finally:
        shutil.rmtree(place / "again")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    seeds = re.findall(r"<td [^>]*>((?:one|two)[^<]*, [^<]*)</td><td [^>]*>([^<]+)</td>", text)
    assert seeds == [("one, two", "0, 1"), ("one-on, two-on", "0 after 0, 0 after 1")]
    assert "one-on, two-on against one, two: " in text
    assert "again has the recipe and the seed of one and is counted in no mean." in text


def test_queries_of_private_data_stand_on_private_pages_alone(place, tmp_path):
    before = {run: (place / run / "queries.json").read_bytes() for run in ("one", "three")}
    for private in (("one",), ("three",), ("one", "three")):  # one of two is enough
        for run in before:
            queries = read_json(place / run / "queries.json")
            queries |= {"redistributable": run not in private, "captions": ["a secret"] * 150}
            write_json(place / run / "queries.json", queries)
        try:
            for name in ("page.html", "page.private.html"):
                write_comparison(tmp_path / name, "one", "three")
        finally:
            for run, content in before.items():
                (place / run / "queries.json").write_bytes(content)
        shared, kept = ((tmp_path / name).read_text() for name in ("page.html", "page.private.html"))
        assert "a secret" not in shared
        assert "data:image/webp" not in shared
        assert "test_0" not in shared  # the names of files
        assert "left out of this page; one whose name ends in <code>.private.html</code>" in shared
        assert "a secret" in kept
        assert "data:image/webp" in kept
        assert "Private page" in kept


def test_ranks_of_another_evaluation_are_refused(place):
    content = (place / "two" / "ranks.npz").read_bytes()
    try:
        tiny_train(run="other", epochs=1, shapes_test=6)
        tiny_evaluate("other")
        (place / "two" / "ranks.npz").write_bytes((place / "other" / "ranks.npz").read_bytes())
        with pytest.raises(ValueError, match=r"run 'two': expected 30 ranks image → text in ranks\.npz, as"):
            comparison_table("one", "two")
    finally:
        (place / "two" / "ranks.npz").write_bytes(content)


def test_damaged_pictures_are_left_out(place, tmp_path):
    content = (place / "three" / "neighbours.npz").read_bytes()
    try:
        with np.load(place / "three" / "neighbours.npz") as file:
            arrays = dict(file)
        np.savez(place / "three" / "neighbours.npz", **arrays | {"sheets": arrays["sheets"][:100]})
        write_comparison(tmp_path / "page.html", "one", "three")
    finally:
        (place / "three" / "neighbours.npz").write_bytes(content)
    text = (tmp_path / "page.html").read_text()
    assert "data:image/webp" not in text
    assert "found by" in text


def test_a_page_of_what_cannot_be_compared_says_so(place, tmp_path, capsys):
    tiny_train(run="elsewhere", epochs=1, shapes_seed=5)
    tiny_evaluate("elsewhere")
    assert main(["compare", "one", "elsewhere", "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    for said in (capsys.readouterr().out, text):
        assert "elsewhere against one: not comparable: fingerprint differs (" in said
    assert "What cannot be compared" in text
    assert "Who is better" not in text


def test_a_model_is_compared_with_runs_by_their_names(place):
    ranks = RetrievalRanks.load(place / "one" / "ranks.npz")
    result = read_json(place / "one" / "results.json")
    found, known = compared_with(["two", "three"], ranks, measured_on(result))
    assert known
    assert list(found) == ["two", "three"]
    assert found["three"]["verdict"].startswith("worse by ")
    assert not compared_with(["two"], ranks, None)[1]
    other = measured_on(result) | {"fingerprint": "0" * 16}
    with pytest.raises(ValueError, match="two: not comparable: fingerprint differs"):
        compared_with(["two"], ranks, other)
