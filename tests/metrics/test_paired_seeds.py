"""Comparisons under several seeds: by hand, beside one seed, and how often luck passes for a difference."""

import numpy as np
import pytest
from scipy.stats import t

from mmlib.metrics import RetrievalRanks, compare_runs, summarise_seeds
from mmlib.metrics.compare import compare_seeds
from mmlib.metrics.resampling import image_weights, sign_flip_test
from mmlib.training.ablation import judge_claims

IMAGES = 120


def ranks_of(hit_N) -> RetrievalRanks:
    """One caption an image; both directions hit alike."""
    rank_N = 2 - np.asarray(hit_N, int)
    none_N, image_N = np.zeros_like(rank_N), np.arange(len(rank_N))
    return RetrievalRanks(rank_N, rank_N.copy(), none_N, none_N, image_N, len(rank_N), len(rank_N))


def drawn(rng, recall: float, easy_N, spread: float = 0.0) -> RetrievalRanks:
    """Images that are easy are hit by all; a seed's own luck moves the recall by about `spread`."""
    return ranks_of((easy_N + 0.2 * rng.random(IMAGES)) % 1 < recall + spread * rng.normal())


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_one_seed_is_compared_as_two_runs_are(rng):
    a, b = (drawn(rng, recall, rng.random(IMAGES)) for recall in (0.2, 0.4))
    found = compare_seeds([a], [b], resamples=500)
    assert (found["seeds"], found["interval"]) == (1, "queries")
    expected = compare_runs(a, b, resamples=500)["metrics"]
    for name, metric in found["metrics"].items():
        assert {key: metric[key] for key in ("a", "b", "low", "high", "p")} == {
            key: expected[name][key] for key in ("a", "b", "low", "high", "p")
        }


@pytest.mark.parametrize("spread", [0.0, 0.1])  # the queries decide the width, or the seeds
def test_several_seeds_by_hand(rng, spread):
    easy_N = rng.random(IMAGES)
    before, after = ([drawn(rng, recall, easy_N, spread) for _ in range(3)] for recall in (0.2, 0.35))
    found = compare_seeds(before, after, resamples=400, seed=5)
    metric = found["metrics"]["mean_r1"]
    hits = [np.array([ranks.i2t_N == 1 for ranks in side]) for side in (before, after)]
    difference_S = hits[1].mean(1) - hits[0].mean(1)
    assert metric["differences"] == pytest.approx(difference_S.tolist())
    assert metric["difference"] == pytest.approx(difference_S.mean())
    assert metric["difference"] == pytest.approx(metric["b"] - metric["a"])
    gain_N = (hits[1].astype(float) - hits[0]).mean(0)
    weight_BN = np.concatenate(list(image_weights(IMAGES, 400, 5)))
    of_queries, of_seeds = (weight_BN @ gain_N / IMAGES).var(), difference_S.var(ddof=1) / 3
    freedom = (of_queries + of_seeds) ** 2 / (of_seeds**2 / 2 + of_queries**2 / (IMAGES - 1))
    of_both = t.ppf(0.975, freedom) * (of_queries + of_seeds) ** 0.5
    half = max(of_both, t.ppf(0.975, 2) * of_seeds**0.5)
    assert (metric["low"], metric["high"]) == pytest.approx(
        (difference_S.mean() - half, difference_S.mean() + half)
    )
    assert metric["p"] == sign_flip_test(gain_N[:, None], flips=400, seed=5)[0]
    assert found["interval"] == "seeds and queries"


def test_means_are_those_of_the_summary_over_seeds(rng):
    easy_N = rng.random(IMAGES)
    runs = [drawn(rng, 0.3, easy_N) for _ in range(2)]
    found = compare_seeds(runs, runs, resamples=100)["metrics"]
    summary = summarise_seeds(runs, resamples=100)
    for name, metric in found.items():
        assert metric["a"] == pytest.approx(summary[name]["mean"])
        assert metric["difference"] == metric["low"] == metric["high"] == 0


def test_bad_input_is_refused(rng):
    runs = [drawn(rng, 0.3, rng.random(IMAGES)) for _ in range(2)]
    with pytest.raises(ValueError, match="as many seeds on both sides, found 2 and 1"):
        compare_seeds(runs, runs[:1])
    with pytest.raises(ValueError, match=r"over the same queries, found that .*gallery differs"):
        compare_seeds(runs, [runs[0], ranks_of(np.ones(30, bool))])


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_luck_is_seldom_taken_for_a_difference(spread):
    """Two arms of the same quality: at most about one claim in twenty may be decided."""
    rng, decided = np.random.default_rng(11), 0
    for _ in range(200):
        easy_N = rng.random(IMAGES)
        arms = {name: {s: drawn(rng, 0.3, easy_N, spread) for s in (0, 1)} for name in ("a", "b")}
        (claim,) = judge_claims([{"claim": "", "arm": "a", "over": "b"}], arms, resamples=200)
        decided += claim["verdict"] != "no evidence"
    assert decided <= 16  # 99 % point of a binomial with 200 trials at 5 %


def test_a_difference_on_the_queries_alone_is_no_evidence_where_the_seeds_disagree(rng):
    easy_N = rng.random(IMAGES)
    before = {0: drawn(rng, 0.2, easy_N), 1: drawn(rng, 0.2, easy_N)}
    after = {0: drawn(rng, 0.22, easy_N), 1: drawn(rng, 0.8, easy_N)}
    claim = {"claim": "", "arm": "b", "over": "a"}
    (found,) = judge_claims([claim], {"a": before, "b": after}, resamples=500)
    assert found["p_holm"] < 0.05
    assert found["metrics"]["mean_r1"]["low"] < 0
    assert found["verdict"] == "no evidence"
    after[0] = drawn(rng, 0.78, easy_N)
    (found,) = judge_claims([claim], {"a": before, "b": after}, resamples=500)
    assert found["verdict"] == "supported"
    (found,) = judge_claims(
        [{"claim": "", "arm": "a", "over": "b"}], {"a": before, "b": after}, resamples=500
    )
    assert found["verdict"] == "contradicted"


def test_p_is_corrected_over_the_claims_that_are_judged(rng):
    easy_N = rng.random(IMAGES)
    ranks = {name: {0: drawn(rng, recall, easy_N)} for name, recall in (("a", 0.3), ("b", 0.45))}
    ranks["failed"] = {}
    pairs = [("b", "a"), ("a", "b"), ("failed", "a")]
    claims = [{"claim": "", "arm": arm, "over": over} for arm, over in pairs]
    found = judge_claims(claims, ranks, resamples=500)
    p = found[0]["metrics"]["mean_r1"]["p"]
    assert [claim.get("p_holm") for claim in found] == [2 * p, 2 * p, None]
    assert [claim.get("judged") for claim in found] == [2, 2, None]
    assert found[2]["verdict"] == "not judged"
    assert found[2]["seeds"] == []


def test_seeds_that_only_one_arm_has_are_left_out(rng):
    easy_N = rng.random(IMAGES)
    ranks = {"a": {s: drawn(rng, 0.3, easy_N) for s in (0, 1, 2)}, "b": {2: drawn(rng, 0.3, easy_N)}}
    (found,) = judge_claims([{"claim": "", "arm": "a", "over": "b"}], ranks, resamples=200)
    assert found["seeds"] == [2]
    assert found["metrics"]["mean_r1"]["b"] == np.mean(ranks["a"][2].i2t_N == 1)
