"""Kendall's tau by hand and by pairs, and the judgement files as the data set ships them."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from mmlib.analysis.people import kendall_agreement, read_judgements


@pytest.fixture
def files(tmp_path):
    (tmp_path / "expert.txt").write_text(
        "a.jpg\tb.jpg#0\t1\t1\t2\n"
        "a.jpg\ta.jpg#0\t4\t4\t4\n"  # its own caption
        "a.jpg\tb.jpg#1\t4\t4\t3\n"  # another image's, with the text of its own
        "b.jpg\ta.jpg#0\t2\t1\t1\n"
    )
    (tmp_path / "crowd.txt").write_text("a.jpg\ta.jpg#0\t1\t3\t0\nb.jpg\ta.jpg#0\t0.333333333333\t1\t2\n")
    return tmp_path


def test_pairs_with_own_captions_are_left_out_of_the_experts(files):
    texts = {"a.jpg#0": "A dog runs .", "a.jpg#1": "A dog", "b.jpg#0": "A cat", "b.jpg#1": "A dog"}
    pairs, own = read_judgements(files / "expert.txt", texts, expert=True)
    assert pairs == [("a.jpg", "b.jpg#0", [1, 1, 2]), ("b.jpg", "a.jpg#0", [2, 1, 1])]
    assert own == 2


def test_crowdflower_keeps_everything(files):
    pairs, own = read_judgements(files / "crowd.txt", {"a.jpg#0": "A dog"}, expert=False)
    assert [pair[:2] for pair in pairs] == [("a.jpg", "a.jpg#0"), ("b.jpg", "a.jpg#0")]
    assert [share for *_, (share,) in pairs] == pytest.approx([1, 1 / 3])
    assert own == 0


def test_judged_captions_without_a_text_are_named(files):
    with pytest.raises(ValueError, match=r"every judged caption among the 1 given, 2 are missing \(first: b"):
        read_judgements(files / "expert.txt", {"a.jpg#0": "A dog"}, expert=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a.jpg\tb.jpg#0\t1\t1\n",
            r"line 1: expected an image, a caption and three numbers .* found 'a",
        ),
        ("\na.jpg\n", r"line 2: expected an image, a caption and three numbers between tabs, found 'a\.jpg'"),
        ("a.jpg\ta.jpg#0\tx\t1\t1\n", r"line 1: expected .*#0\\tx\\t1\\t1'; take the file"),
        ("\n", "expected judged pairs, found none; the file is empty"),
        ("a.jpg\ta.jpg#0\t1\t1\t1\n\udce9", r"bad\.txt, line 2: expected UTF-8 text, found byte 0xe9"),
    ],
)
def test_malformed_judgements_are_refused(tmp_path, content, message):
    (tmp_path / "bad.txt").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_judgements(tmp_path / "bad.txt", {}, expert=False)
    with pytest.raises(FileNotFoundError):
        read_judgements(tmp_path / "none.txt", {}, expert=False)


def tau_by_pairs(x, y, variant):
    """Kendall (1945) and Stuart (1953), over all pairs."""
    sign_x, sign_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    difference = (sign_x * sign_y).sum() / 2
    if variant == "b":
        return difference / np.sqrt((sign_x != 0).sum() / 2 * (sign_y != 0).sum() / 2)
    classes = min(len(set(x)), len(set(y)))
    return 2 * difference / (len(x) ** 2 * (classes - 1) / classes)


@pytest.mark.parametrize("variant", ["b", "c"])
def test_tau_by_pairs(variant):
    rng = np.random.default_rng(0)
    rating = rng.integers(1, 5, 60).astype(float)
    score = np.round(rating + 2 * rng.standard_normal(60), 1)
    found = kendall_agreement(score, rating, np.repeat(np.arange(20), 3), variant=variant)
    assert found["tau"] == pytest.approx(tau_by_pairs(score, rating, variant))
    assert found["low"] < found["tau"] < found["high"]
    assert (found["n"], found["images"], found["variant"]) == (60, 20, variant)


def test_the_interval_is_as_wide_as_samples_vary():
    """Judgements of an image share its offset; its interval must know."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(60), 4)

    def draw():
        rating = rng.integers(1, 5, 60)[image].astype(float)
        return rating + 2 * rng.standard_normal(60)[image] + 0.1 * rng.standard_normal(240), rating

    taus = [kendalltau(*draw(), variant="c").statistic for _ in range(300)]
    found = kendall_agreement(*draw(), image, variant="c")
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(np.std(taus), rel=0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_J": [1.0, np.nan, 2]}, "expected finite scores and ratings that vary"),
        ({"score_J": [1.0, 1, 1]}, "scores and ratings that vary"),
        ({"image_of_J": [7, 7, 7]}, "judgements of two images or more, found one"),
    ],
)
def test_bad_scores_are_refused(changes, message):
    arguments = {"score_J": [1.0, 2, 3], "rating_J": [1, 2, 2], "image_of_J": [0, 0, 1], "variant": "b"}
    with pytest.raises(ValueError, match=message):
        kendall_agreement(**(arguments | changes))
