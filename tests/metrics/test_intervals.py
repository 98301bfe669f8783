"""The exact interval against scipy and published values; clusters widen it, never narrow it."""

import numpy as np
import pytest
from scipy.stats import binomtest

from mmlib.metrics import recall_interval
from mmlib.metrics.summary import exact_binomial_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 1000), (17, 5000), (800, 1000), (10, 10), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_exact_interval_equals_scipys(hits, n, level):
    expected = binomtest(hits, n).proportion_ci(level, method="exact")
    assert exact_binomial_interval(hits, n, level) == pytest.approx((expected.low, expected.high))
    assert recall_interval(np.arange(n) < hits, level=level) == pytest.approx((expected.low, expected.high))


def test_the_references_claim():
    """17 and 18 hits of 5,000: REFERENCE §3.2 gives 0.20-0.54 and 0.21-0.57 percent."""
    assert exact_binomial_interval(17, 5000) == pytest.approx((0.0020, 0.0054), abs=5e-5)
    assert exact_binomial_interval(18, 5000) == pytest.approx((0.0021, 0.0057), abs=5e-5)


def test_captions_that_agree_count_as_one():
    hit_C = np.arange(200) < 40
    clustered = recall_interval(np.repeat(hit_C, 5), np.repeat(np.arange(200), 5))
    assert clustered == pytest.approx(recall_interval(hit_C))


def test_clusters_never_narrow_the_interval():
    rng = np.random.default_rng(0)
    for recall in (0.0, 0.01, 0.5, 1.0):
        hit = rng.random(1000) < recall
        plain = recall_interval(hit)
        low, high = recall_interval(hit, np.repeat(np.arange(200), 5))
        assert low <= plain[0]
        assert high >= plain[1]


def test_without_hits_only_images_count():
    low, high = recall_interval(np.zeros(50, bool), np.repeat([7, 3], 25))  # labels need not count from 0
    assert (low, high) == pytest.approx(exact_binomial_interval(0, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hit_Q": []}, r"expected 0 <= hits <= n with n > 0, found 0 hits of 0"),
        ({"hit_Q": [True], "level": 95}, "level: expected a confidence level between 0 and 1, found 95"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recall_interval(**arguments)


def test_more_hits_than_queries_are_refused():
    with pytest.raises(ValueError, match="expected 0 <= hits <= n with n > 0, found 3 hits of 2"):
        exact_binomial_interval(3, 2)
