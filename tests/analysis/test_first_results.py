"""Error analysis on cases one can check by eye, and against full matrices."""

import numpy as np
import pytest

from mmlib.analysis.diagnosis import calibration, changed_queries, first_results, hubness
from mmlib.metrics.ranks import UnitRows


def test_a_hub_is_found():
    query = UnitRows(np.array([[1.0, 0.1], [1, -0.1], [1, 0.2], [-1, 0]]), "query")
    gallery = UnitRows(np.array([[1.0, 0], [-1, 0], [0, -1]]), "gallery")
    first = first_results(query, gallery, np.arange(3), np.arange(3), k=1)
    assert first["count_G"].tolist() == [3, 1, 0]
    found = hubness(first["count_G"], queries=4)
    assert (found["largest"], found["largest_item"], found["k"], found["gallery"]) == (3, 0, 1, 3)
    assert found["never"] == pytest.approx(1 / 3)
    assert found["expected"] == pytest.approx(4 / 3)
    assert found["never_by_chance"] == pytest.approx((2 / 3) ** 4)
    assert found["skewness"] > 0
    every = first_results(query, gallery, np.arange(3), np.arange(3), k=9)  # all retrieve all
    assert hubness(every["count_G"], queries=4) | {"skewness": 0, "k": 3, "never": 0} == hubness(
        every["count_G"], queries=4
    )


@pytest.mark.parametrize("scores", [200, 2**25])
def test_margins_and_negatives_equal_those_of_the_full_matrix(sample, monkeypatch, scores):
    monkeypatch.setattr("mmlib.analysis.diagnosis.MOST_SCORES", scores)
    image, text, image_of_text = sample()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image.astype(float), text.astype(float))]
    sim_NM = unit[0] @ unit[1].T
    own_NM = np.arange(30)[:, None] == image_of_text
    rows = UnitRows(image, "image"), UnitRows(text, "text")
    i2t = first_results(*rows, image_of_text, np.arange(150))
    t2i = first_results(*rows[::-1], np.arange(150), image_of_text)
    assert i2t["hardest_Q"] == pytest.approx(np.where(own_NM, -2, sim_NM).max(1))
    assert t2i["hardest_Q"] == pytest.approx(np.where(own_NM, -2, sim_NM).max(0))
    ordered = np.sort(sim_NM, axis=1)
    assert i2t["margin_Q"] == pytest.approx(ordered[:, -1] - ordered[:, -2])


def test_calibration_bins_hold_equally_many_queries():
    margin = np.array([0.4, 0.1, 0.3, 0.2])
    rows = calibration(margin, [1, 2, 1, 5], bins=2)
    assert [(r["margin_low"], r["margin_high"], r["n"], r["hits"]) for r in rows] == [
        (0.1, 0.2, 2, 0),
        (0.3, 0.4, 2, 2),
    ]
    assert rows[0]["low"] == 0
    assert rows[1]["high"] == 1
    assert len(calibration(margin, [1, 2, 1, 5], bins=9)) == 4


def test_changed_queries_come_largest_change_first():
    changed = changed_queries([1, 5, 9, 1, 3], [1, 1, 1, 7, 2])
    assert changed["gained"].tolist() == [2, 1]
    assert changed["lost"].tolist() == [3]
