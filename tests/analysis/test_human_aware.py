"""Recall that heeds people's ratings, against a loop over all pairs and cases worked by hand."""

import numpy as np
import pytest

from mmlib.analysis.people import human_aware_recall, pair_scores
from mmlib.metrics import retrieval_ranks


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pair_scores_are_cosines_and_equal_rows_score_equally(sample):
    image_ND, text_MD, _ = sample(images=40)
    text_MD[-1] = text_MD[0]
    image_J, text_J = np.array([3, 39, 3, 0]), np.array([0, 7, len(text_MD) - 1, 5])
    score_J = pair_scores(image_ND, text_MD, image_J, text_J)
    np.testing.assert_allclose(score_J, (unit(image_ND)[image_J] * unit(text_MD)[text_J]).sum(1), atol=1e-6)
    assert score_J[0] == score_J[2]
    assert pair_scores(image_ND, text_MD, image_J[:0], text_J[:0]).shape == (0,)


@pytest.mark.parametrize("threshold", [4.0, 3.0])
def test_recall_is_that_of_a_loop_over_all_pairs(sample, threshold):
    image_ND, text_MD, map_M = sample(images=25, captions=3, noise=3.0)
    rng = np.random.default_rng(1)
    pair_image_P, pair_text_P = rng.integers(0, 25, 120), rng.integers(0, 75, 120)
    ratings_P3 = rng.integers(2, 5, (120, 3))
    ranks = retrieval_ranks(image_ND, text_MD, map_M)
    found = human_aware_recall(
        image_ND, text_MD, ranks, np.repeat(pair_image_P, 3), np.repeat(pair_text_P, 3), ratings_P3.ravel(),
        threshold=threshold, ks=(1, 5),
    )  # fmt: skip

    right_NM = np.arange(25)[:, None] == map_M
    ratings = {}
    for pair, rating_3 in zip(zip(pair_image_P, pair_text_P), ratings_P3):
        ratings.setdefault(pair, []).extend(rating_3)
    added = 0
    for (n, m), values in ratings.items():
        if sum(values) >= threshold * len(values) and not right_NM[n, m]:
            right_NM[n, m] = True
            added += 1
    assert found["pairs"] == added > 0
    score_NM = unit(image_ND) @ unit(text_MD).T
    for direction, score, right in (("i2t", score_NM, right_NM), ("t2i", score_NM.T, right_NM.T)):
        part = found[direction]
        for k in (1, 5):
            hits = sum(right[q, np.argsort(-score[q])[:k]].any() for q in range(len(score)))
            assert part[f"r{k}"]["hits"] == hits
            assert part[f"r{k}"]["value"] == hits / len(score)
            assert part[f"r{k}"]["low"] < hits / len(score) < part[f"r{k}"]["high"]
            assert part[f"r{k}"]["standard_hits"] == (ranks.of(direction) <= k).sum() <= hits
    assert found["i2t"]["judged"] == len(set(pair_image_P))
    assert found["t2i"]["judged"] == len(set(pair_text_P))
    own_NM = np.arange(25)[:, None] == map_M
    assert found["t2i"]["extended"] == (right_NM & ~own_NM).any(0).sum()


def test_without_judgements_it_is_the_standard(sample):
    image_ND, text_MD, map_M = sample()
    ranks = retrieval_ranks(image_ND, text_MD, map_M)
    found = human_aware_recall(image_ND, text_MD, ranks, none := np.zeros(0, int), none, none)
    assert found["pairs"] == found["i2t"]["judged"] == found["t2i"]["extended"] == 0
    for direction in ("i2t", "t2i"):
        assert all(found[direction][f"r{k}"]["hits"] == (ranks.of(direction) <= k).sum() for k in (1, 5, 10))
