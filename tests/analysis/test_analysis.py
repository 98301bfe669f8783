"""Error analysis on cases one can check by eye, and against full matrices."""

import numpy as np
import pytest

from mmlib.analysis.diagnose import (
    calibration,
    changed_queries,
    hubness,
    similarity_distributions,
    top1_margin,
)
from mmlib.analysis.groups import recall_by_group
from mmlib.metrics import retrieval_ranks


def test_a_hub_is_found():
    query = np.array([[1.0, 0.1], [1, -0.1], [1, 0.2], [-1, 0]])
    gallery = np.array([[1.0, 0], [-1, 0], [0, -1]])
    found = hubness(query, gallery, k=1, chunk=3)
    assert found["count_G"].tolist() == [3, 1, 0]
    assert found["largest"] == 3
    assert found["never"] == pytest.approx(1 / 3)
    assert found["skewness"] > 0
    assert hubness(query, gallery, k=3)["skewness"] == 0  # all retrieve all
    with pytest.raises(ValueError, match=r"k: expected 1\.\.3, the size of the gallery, found 4"):
        hubness(query, gallery, k=4)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_similarities_and_margins_equal_those_of_the_full_matrix(sample, chunk):
    image, text, image_of_text = sample()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image.astype(float), text.astype(float))]
    sim_NM = unit[0] @ unit[1].T
    own_NM = np.arange(30)[:, None] == image_of_text
    found = similarity_distributions(image, text, image_of_text, chunk=chunk)
    assert found["positive_M"] == pytest.approx(sim_NM[image_of_text, np.arange(150)], abs=1e-6)
    assert found["hardest_i2t_N"] == pytest.approx(np.where(own_NM, -2, sim_NM).max(1), abs=1e-6)
    assert found["hardest_t2i_M"] == pytest.approx(np.where(own_NM, -2, sim_NM).max(0), abs=1e-6)
    ordered = np.sort(sim_NM, axis=1)
    assert top1_margin(image, text, chunk=chunk) == pytest.approx(ordered[:, -1] - ordered[:, -2], abs=1e-6)
    hit = found["positive_M"] > found["hardest_t2i_M"]
    np.testing.assert_array_equal(hit, retrieval_ranks(image, text, image_of_text).t2i_M == 1)


def test_equal_items_leave_no_margin():
    assert (
        top1_margin(np.random.default_rng(0).standard_normal((5, 64)), np.ones((7, 64))).tolist() == [0] * 5
    )


def test_negatives_and_margins_need_two_items():
    with pytest.raises(ValueError, match="expected two images or more, found 1"):
        similarity_distributions(np.ones((1, 2)), np.ones((1, 2)), [0])
    with pytest.raises(ValueError, match="expected two items or more for a margin, found 1"):
        top1_margin(np.ones((1, 2)), np.ones((1, 2)))


def test_calibration_bins_hold_equally_many_queries():
    margin = np.array([0.4, 0.1, 0.3, 0.2])
    rows = calibration(margin, [True, False, True, False], bins=2)
    assert [(r["margin_low"], r["margin_high"], r["n"], r["hits"]) for r in rows] == [
        (0.1, 0.2, 2, 0),
        (0.3, 0.4, 2, 2),
    ]
    assert rows[0]["low"] == 0
    assert rows[1]["high"] == 1
    with pytest.raises(ValueError, match=r"found shapes \(4,\), \(1,\) and 2 bins"):
        calibration(margin, [True], bins=2)
    with pytest.raises(ValueError, match="and 5 bins"):
        calibration(margin, margin > 0, bins=5)


def test_recall_by_group_counts_and_clusters():
    rows = recall_by_group([1, 2, 1, 9], np.array(["dog", "cat", "dog", "dog"]))
    assert [(r["group"], r["n"], r["hits"]) for r in rows] == [("cat", 1, 0), ("dog", 3, 2)]
    assert rows[1]["value"] == pytest.approx(2 / 3)
    ranks, image = np.repeat([1, 2], [50, 50]), np.repeat(np.arange(20), 5)
    plain, clustered = (recall_by_group(ranks, np.zeros(100), cluster_Q=c)[0] for c in (None, image))
    assert clustered["low"] < plain["low"] < plain["high"] < clustered["high"]
    with pytest.raises(ValueError, match=r"group_Q: expected a group per query, shape \(1,\), found \(2,\)"):
        recall_by_group([1], [1, 2])


def test_changed_queries_come_largest_change_first():
    changed = changed_queries([1, 5, 9, 1, 3], [1, 1, 1, 7, 2])
    assert changed["gained"].tolist() == [2, 1]
    assert changed["lost"].tolist() == [3]
    with pytest.raises(ValueError, match=r"same queries, found shapes \(1,\) and \(2,\)"):
        changed_queries([1], [1, 2])
