"""The figures that come from ranks: against a plain hit rate, exact chance, the paired ceiling."""

import json
from math import comb

import numpy as np
import pytest

from mmlib.metrics import paired_ranks, recall_interval, retrieval_ranks, summarise
from mmlib.metrics.summary import chance_recall


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_the_share_of_queries_with_a_positive_among_the_first_k(sample, k):
    image, text, image_of_text = sample(noise=3)
    summary = summarise(retrieval_ranks(image, text, image_of_text))
    unit_ND, unit_MD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    sim_NM = unit_ND.astype(float) @ unit_MD.astype(float).T
    positive_NM = np.arange(30)[:, None] == image_of_text
    for direction, sim, positive in (("i2t", sim_NM, positive_NM), ("t2i", sim_NM.T, positive_NM.T)):
        first = [sorted(range(len(row)), key=lambda i, row=row: -row[i])[:k] for row in sim]
        hits = sum(any(positive[query, i] for i in found) for query, found in enumerate(first))
        assert 0 < hits < len(sim)
        assert summary[direction][f"r{k}"]["value"] == pytest.approx(hits / len(sim))


def test_every_field_by_hand():
    image = np.eye(3)
    text = np.array([[2.0, 1, 0], [1, 2, 0], [0, 2, 1], [0, 0, 1]])
    summary = summarise(retrieval_ranks(image, text, [0, 0, 1, 2]), ks=(1, 2))
    i2t, t2i = summary["i2t"], summary["t2i"]  # ranks: i2t 1, tie, 1; t2i 1, 2, 1, 1
    assert (i2t["n"], i2t["gallery"], t2i["n"], t2i["gallery"]) == (3, 4, 4, 3)
    assert i2t["tied"] == 1  # captions 1 and 2 are as near to image 1 as each other
    assert (i2t["r1"]["hits"], i2t["r2"]["hits"], t2i["r1"]["hits"], t2i["r2"]["hits"]) == (2, 3, 3, 4)
    assert i2t["r1"]["best_case"] == 1
    assert (i2t["median_rank"], i2t["mean_rank"], i2t["mrr"]) == pytest.approx((1, 4 / 3, 2.5 / 3))
    assert (t2i["median_rank"], t2i["mean_rank"], t2i["mrr"]) == pytest.approx((1, 1.25, 3.5 / 4))
    assert summary["rsum"] == pytest.approx(2 / 3 + 1 + 3 / 4 + 1)
    assert summary["mean_r1"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert summary["ceiling"] is None
    assert summary["protocol"] == "standard"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_intervals_hold_the_value_and_know_their_clusters(sample):
    ranks = retrieval_ranks(*sample(noise=3))
    summary = summarise(ranks)
    for direction in ("i2t", "t2i"):
        for k in (1, 5, 10):
            recall = summary[direction][f"r{k}"]
            assert recall["low"] <= recall["value"] <= recall["high"]
            assert recall["hits"] == round(recall["value"] * summary[direction]["n"])
    assert summary["i2t"]["r1"]["low"] == recall_interval(ranks.i2t_N <= 1)[0]
    assert summary["t2i"]["r1"]["low"] == recall_interval(ranks.t2i_M <= 1, ranks.image_of_text_M)[0]


def test_chance_of_uneven_captions_is_the_mean_of_exact_hypergeometrics():
    image_of_text = np.repeat(np.arange(4), [1, 2, 3, 6])
    rng = np.random.default_rng(0)
    ranks = retrieval_ranks(rng.standard_normal((4, 8)), rng.standard_normal((12, 8)), image_of_text)
    for k in (1, 3, 10, 50):
        k_i2t = min(k, 12)
        expected = np.mean([1 - comb(12 - c, k_i2t) / comb(12, k_i2t) for c in (1, 2, 3, 6)])
        assert chance_recall(ranks, "i2t", k) == pytest.approx(expected)
        assert chance_recall(ranks, "t2i", k) == pytest.approx(min(k, 4) / 4)


def test_chance_is_what_random_embeddings_reach():
    rng = np.random.default_rng(1)
    image_of_text = np.repeat(np.arange(300), 5)
    ranks = retrieval_ranks(rng.standard_normal((300, 32)), rng.standard_normal((1500, 32)), image_of_text)
    for direction in ("i2t", "t2i"):
        recall = summarise(ranks, ks=(30,))[direction]["r30"]
        assert recall["low"] < recall["chance"] < recall["high"]


def test_one_image_is_always_found():
    summary = summarise(retrieval_ranks(np.ones((1, 4)), np.ones((2, 4)), [0, 0]))
    for direction in ("i2t", "t2i"):
        assert summary[direction]["r1"]["value"] == 1
        assert summary[direction]["r1"]["chance"] == 1
        assert summary[direction]["r1"]["low"] < 0.5  # one image proves little


def test_paired_ceiling_is_what_a_perfect_model_reaches():
    image_of_text = np.repeat(np.arange(10), 5)
    perfect = np.eye(10)
    summary = summarise(paired_ranks(perfect, perfect[image_of_text], image_of_text))
    # Its five captions of an image tie, so the worst case is below the ceiling, the best above.
    assert summary["ceiling"] == {
        "i2t_r1": 0.2, "i2t_r5": 1, "i2t_r10": 1, "t2i_r1": 0, "t2i_r5": 1, "t2i_r10": 1,
    }  # fmt: skip
    assert summary["t2i"]["r1"]["value"] == 0
    assert summary["t2i"]["r1"]["best_case"] == 1
    assert summary["t2i"]["r5"]["value"] == 1
    rng = np.random.default_rng(0)
    nearly = perfect[image_of_text] + 0.01 * rng.standard_normal((50, 10))
    assert summarise(paired_ranks(perfect, nearly, image_of_text))["i2t"]["r1"]["value"] == 0.2


def test_paired_ceiling_of_uneven_captions():
    image_of_text = np.repeat(np.arange(3), [1, 2, 5])
    rng = np.random.default_rng(0)
    text = np.eye(3)[image_of_text] + 0.01 * rng.standard_normal((8, 3))
    summary = summarise(paired_ranks(np.eye(3), text, image_of_text), ks=(1, 2, 5))
    for direction in ("i2t", "t2i"):
        for k in (1, 2, 5):
            assert summary[direction][f"r{k}"]["value"] == summary["ceiling"][f"{direction}_r{k}"]
