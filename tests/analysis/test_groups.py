"""Groups of queries: the rules that sort captions by length and noun, and the recall of each group."""

import numpy as np
import pytest

from mmlib.analysis.diagnosis import length_bins, object_words, recall_by_group


def test_length_bins_are_quartiles_named_by_their_range():
    captions = [" ".join(["w"] * n) + " ." for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    bins = {name: np.flatnonzero(member_M).tolist() for name, member_M in length_bins(captions).items()}
    assert bins == {"1–2 words": [0, 1], "3–4 words": [2, 3], "5–6 words": [4, 5], "7–8 words": [6, 7]}


def test_equal_lengths_share_one_bin():
    bins = length_bins(["a dog .", "a cat !", "one, two"])
    assert {name: member_M.tolist() for name, member_M in bins.items()} == {"2 words": [True] * 3}


def test_object_words_are_nouns_most_frequent_first():
    captions = [
        "A black dog is running through the grass .",
        "the dog jumps over a ball.",
        "A dog and another dog in the grass",
        "A cat is on the building",
        "the black cat near two buildings, smiling.",
    ]
    found = object_words(captions, minimum=1)
    assert list(found) == ["dog", "cat", "grass", "ball", "building", "buildings"]
    assert found["dog"].tolist() == [True, True, True, False, False]
    assert list(object_words(captions, minimum=2)) == ["dog", "cat", "grass"]
    assert list(object_words(captions, minimum=1, limit=1)) == ["dog"]
    assert object_words(captions, minimum=9) == {}


def test_recall_by_group_counts_and_clusters():
    group_Q = np.array(["dog", "cat", "dog", "dog"])
    rows = recall_by_group([1, 2, 1, 9], {name: group_Q == name for name in ("cat", "dog")})
    assert [(r["group"], r["n"], r["hits"]) for r in rows] == [("cat", 1, 0), ("dog", 3, 2)]
    assert rows[1]["value"] == pytest.approx(2 / 3)
    ranks, image, every = np.repeat([1, 2], [50, 50]), np.repeat(np.arange(20), 5), {"all": np.arange(100)}
    plain, clustered = (recall_by_group(ranks, every, cluster_Q=c)[0] for c in (None, image))
    assert clustered["low"] < plain["low"] < plain["high"] < clustered["high"]
