"""Differences between runs: tests against scipy and by hand, verdicts in words, and their error rate."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from mmlib.metrics import RetrievalRanks, compare_runs, paired_ranks, retrieval_ranks, verdict_from_counts
from mmlib.metrics.compare import holm, mcnemar, summarise_seeds, verdict_in_words
from mmlib.metrics.resampling import bootstrap_intervals, image_weights, metric_values, sign_flip_test
from mmlib.metrics.summary import exact_binomial_interval, recall_at_k, summarise


def ranks_of(hit_N, hit_M, image_of_text_M):
    """Ranks 1 for hits, 2 for misses."""
    nothing = np.zeros_like
    i2t, t2i = 2 - np.asarray(hit_N, int), 2 - np.asarray(hit_M, int)
    return RetrievalRanks(i2t, t2i, nothing(i2t), nothing(t2i), image_of_text_M, len(t2i), len(i2t))


def clustered_pair(rng, recall_a, recall_b, images=200, captions=5):
    """Two runs that share what is easy (a latent per image), of given true recalls in both directions."""
    image_of_text = np.repeat(np.arange(images), captions)
    # Sums of two uniforms on the circle are uniform: hits cluster by image, yet recall is exact.
    easy_N = rng.random(images)
    runs = []
    for recall in (recall_a, recall_b):
        own_N = (easy_N + 0.1 * rng.random(images)) % 1
        own_M = (easy_N[image_of_text] + 0.1 * rng.random(len(image_of_text))) % 1
        runs.append(ranks_of(own_N < recall, own_M < recall, image_of_text))
    return runs


def test_metric_values_with_unit_weights_equal_the_summary(sample):
    for ranks in (retrieval_ranks(*sample(noise=3)), paired_ranks(*sample(noise=3))):
        summary = summarise(ranks)
        values = metric_values(ranks, np.ones((1, 30), np.int32))
        assert values.pop("rsum")[0] == pytest.approx(summary["rsum"])
        assert values.pop("mean_r1")[0] == pytest.approx(summary["mean_r1"])
        for name, value in values.items():
            direction, field = name.split("_", 1)
            expected = summary[direction][field]
            expected = expected["value"] if isinstance(expected, dict) else expected
            assert value[0] == pytest.approx(expected), name


@pytest.mark.parametrize("images", [30, 31])  # medians of even and odd numbers
def test_weighted_metrics_equal_those_of_repeated_queries(sample, images):
    image, text, image_of_text = sample(images=images, noise=3)
    ranks = retrieval_ranks(image, text, image_of_text[np.argsort(image_of_text)])
    for weight_N in next(image_weights(images, 20, seed=1)):
        values = metric_values(ranks, weight_N[None])
        for d in ("i2t", "t2i"):
            drawn = np.repeat(ranks.of(d), weight_N[ranks.image_of_query(d)])
            assert values[f"{d}_r5"][0] == pytest.approx(recall_at_k(drawn, 5))
            assert values[f"{d}_median_rank"][0] == np.median(drawn)
            assert values[f"{d}_mrr"][0] == pytest.approx((1 / drawn).mean())


def test_bootstrap_agrees_with_the_exact_interval_where_both_hold():
    rng = np.random.default_rng(0)
    hit_N = rng.random(1000) < 0.3
    ranks = ranks_of(hit_N, hit_N, np.arange(1000))
    intervals = bootstrap_intervals(ranks, resamples=4000)
    expected = exact_binomial_interval(int(hit_N.sum()), 1000)
    assert (intervals["i2t_r1"]["low"], intervals["i2t_r1"]["high"]) == pytest.approx(expected, abs=0.003)
    # The two directions hit the same images, so their sum is twice as wide, not sqrt(2) times.
    width = 2 * (intervals["mean_r1"]["high"] - intervals["mean_r1"]["low"])
    assert width == pytest.approx(2 * (expected[1] - expected[0]), rel=0.05)
    assert bootstrap_intervals(ranks, resamples=4000) == intervals


def test_mcnemar_by_hand():
    a, b = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 0, 1, 1, 1, 1, 1, 0])
    assert mcnemar(a, b) == {"only_a": 1, "only_b": 4, "p": pytest.approx(2 * 6 / 32)}
    assert mcnemar(a, a)["p"] == 1


def test_sign_flips_of_single_queries_are_mcnemars_test():
    difference = np.repeat([1, -1, 0], [14, 4, 30])[:, None].astype(float)
    p = sign_flip_test(difference, flips=20_000)[0]
    assert p == pytest.approx(binomtest(14, 18).pvalue, abs=0.01)
    assert sign_flip_test(np.zeros((5, 1)))[0] == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])


def test_the_references_claim_is_no_evidence():
    claim = verdict_from_counts(17, 18, 5000)
    assert claim["verdict"] == "no evidence of a difference (17 vs 18 hits of 5,000; p = 1.00)"
    assert claim["low"] < 0 < claim["high"]


def test_counts_that_do_differ():
    better = verdict_from_counts(100, 180, 5000)
    assert better["verdict"].startswith("better by 1.60 points (95 % 0.9")
    assert better["verdict"].endswith("; 100 vs 180 hits of 5,000; p < 0.001)")
    worse = verdict_from_counts(180, 100, 5000)
    assert worse["verdict"].startswith("worse by 1.60 points (95 % 0.9")
    assert (worse["low"], worse["high"]) == pytest.approx((-better["high"], -better["low"]))
    with pytest.raises(ValueError, match="expected 0 <= hits <= n with n > 0, found 9 hits of 5"):
        verdict_from_counts(1, 9, 5)


def test_a_difference_needs_both_test_and_interval():
    assert verdict_in_words(0.1, -0.01, 0.2, 0.01, "e").startswith("no evidence")
    assert verdict_in_words(0.1, 0.01, 0.2, 0.06, "e") == "no evidence of a difference (e; p = 0.060)"
    expected = "better by 10.00 points (95 % 1.00 to 20.00; e; p = 0.040)"
    assert verdict_in_words(0.1, 0.01, 0.2, 0.04, "e") == expected


def test_a_truly_better_run_is_found_with_its_size():
    a, b = clustered_pair(np.random.default_rng(5), 0.2, 0.3, images=1000)
    result = compare_runs(a, b, resamples=1000)
    main = result["metrics"]["mean_r1"]
    assert main["low"] < 0.1 < main["high"]
    assert main["p"] < 0.01
    assert result["verdict"].startswith("better by ")
    assert f"{result['r1']['t2i']['hits_a']:,} vs" in result["verdict"]
    assert compare_runs(b, a, resamples=1000)["verdict"].startswith("worse by ")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for metric in ("i2t_r1", "t2i_r1"):
        assert result["metrics"][metric]["p"] <= result["metrics"][metric]["p_holm"] <= 0.05


def test_a_run_against_itself():
    a, _ = clustered_pair(np.random.default_rng(5), 0.2, 0.3)
    result = compare_runs(a, a, resamples=200)
    assert result["verdict"] == (
        f"no evidence of a difference (R@1 i2t {(a.i2t_N == 1).sum()} vs {(a.i2t_N == 1).sum()} hits of 200,"
        f" t2i {(a.t2i_M == 1).sum()} vs {(a.t2i_M == 1).sum()} hits of 1,000; p = 1.00)"
    )
    assert all(m["difference"] == m["low"] == m["high"] == 0 for m in result["metrics"].values())


PLACE = {"dataset": "flickr8k", "split": "test"}


@pytest.mark.parametrize(
    ("provenance_b", "message"),
    [
        (PLACE | {"dataset": "flickr30k"}, r"dataset differs \(flickr8k vs flickr30k\)"),
        (PLACE | {"split": "val"}, r"split differs \(test vs val\)"),
        (PLACE | {"fingerprint": "f00"}, "fingerprint is given for the second only, unknown for the first"),
        (None, "dataset is given for the first only.*split is given for the first only"),
    ],
)
def test_other_provenance_is_not_comparable(sample, provenance_b, message):
    ranks = retrieval_ranks(*sample())
    result = compare_runs(ranks, ranks, provenance_a=PLACE, provenance_b=provenance_b, resamples=100)
    assert result.keys() == {"comparable", "verdict"}
    assert result["comparable"] is False
    assert re.fullmatch(f"not comparable: .*{message}.*", result["verdict"])


def test_other_queries_are_not_comparable(sample):
    image, text, image_of_text = sample()
    ranks = retrieval_ranks(image, text, image_of_text)
    fewer = retrieval_ranks(image, text[:-1], image_of_text[:-1])
    for other, reason in (
        (fewer, "i2t gallery differs (150 vs 149); number of captions differs (150 vs 149)"),
        (replace(ranks, gallery_t2i=31), "t2i gallery differs (30 vs 31)"),
        (replace(ranks, image_of_text_M=image_of_text[::-1]), "captions belong to different images"),
    ):
        assert compare_runs(ranks, other)["verdict"] == f"not comparable: {reason}"
    paired = paired_ranks(image, text, image_of_text)
    assert "ranking differs (standard vs paired)" in compare_runs(ranks, paired)["verdict"]
    same = compare_runs(ranks, ranks, provenance_a=PLACE, provenance_b=dict(PLACE), resamples=100)
    assert same["comparable"]


def false_positives(recall: float, runs: int) -> float:
    rng = np.random.default_rng(7)
    found = 0
    for run in range(runs):
        a, b = clustered_pair(rng, recall, recall)
        difference_N = np.bincount(a.image_of_text_M, weights=a.t2i_M - b.t2i_M)
        found += sign_flip_test(difference_N[:, None], flips=500, seed=run)[0] <= 0.05
    return found / runs


@pytest.mark.slow
@pytest.mark.parametrize("recall", [0.02, 0.2, 0.8])
def test_false_positive_rate(recall):
    assert false_positives(recall, runs=2000) <= 0.06


def test_false_positive_rate_reduced():
    assert false_positives(0.2, runs=200) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.slow
def test_interval_of_the_difference_covers_it():
    rng = np.random.default_rng(3)
    covered = 0
    for run in range(400):
        a, b = clustered_pair(rng, 0.2, 0.25)
        main = compare_runs(a, b, resamples=500, seed=run)["metrics"]["mean_r1"]
        covered += main["low"] <= 0.05 <= main["high"]
    assert covered / 400 >= 0.92


def test_seeds_mean_and_deviation(sample):
    image, text, image_of_text = sample(images=100, noise=2)
    rng = np.random.default_rng(0)
    runs = [retrieval_ranks(image, text + rng.standard_normal(text.shape), image_of_text) for _ in range(4)]
    summary = summarise_seeds(runs, resamples=500)
    r1 = [recall_at_k(run.t2i_M, 1) for run in runs]
    found = summary["t2i_r1"]
    assert found["values"] == pytest.approx(r1)
    assert found["mean"] == pytest.approx(np.mean(r1))
    assert found["sd"] == pytest.approx(np.std(r1, ddof=1))
    alone = bootstrap_intervals(runs[0], resamples=500)["t2i_r1"]
    assert found["low"] < found["mean"] < found["high"]
    assert found["high"] - found["low"] > 0.5 * (alone["high"] - alone["low"])


def test_equal_seeds_leave_the_queries_uncertainty(sample):
    ranks = retrieval_ranks(*sample(images=100, noise=2))
    found = summarise_seeds([ranks, ranks], resamples=2000)["t2i_r1"]
    alone = bootstrap_intervals(ranks, resamples=2000)["t2i_r1"]
    assert found["sd"] == 0
    assert (found["low"], found["high"]) == pytest.approx((alone["low"], alone["high"]), abs=0.01)


def test_seeds_stay_within_what_a_metric_can_be(sample):
    perfect = retrieval_ranks(*sample(noise=0))
    worse = retrieval_ranks(*sample(noise=3))
    summary = summarise_seeds([perfect, worse], resamples=100)
    assert summary["t2i_r1"]["high"] == 1
    assert summary["rsum"]["high"] <= 6
    assert summary["i2t_median_rank"]["low"] >= 1


def test_seeds_refuse(sample):
    ranks = retrieval_ranks(*sample())
    with pytest.raises(ValueError, match="expected the ranks of two seeds or more, found 1"):
        summarise_seeds([ranks])
    with pytest.raises(ValueError, match="expected ranks over the same queries"):
        summarise_seeds([ranks, retrieval_ranks(*sample(seed=1))])
