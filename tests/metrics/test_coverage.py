"""Does the 95 % interval that a report shows cover the truth?  Simulated, with clustered captions.

Each simulated run has 1,000 images with 5 captions; an image has its own probability of a hit,
beta-distributed around p with intra-image correlation rho.  `make test` runs the reduced form.
"""

import numpy as np
import pytest

from mmlib.metrics import recall_interval
from mmlib.metrics.summary import exact_binomial_interval

IMAGES, CAPTIONS = 1000, 5
IMAGE_OF_TEXT = np.repeat(np.arange(IMAGES), CAPTIONS)


def simulate(recall: float, rho: float, runs: int, captions: int = CAPTIONS):
    """Share of runs whose interval covers `recall`, and its mean width over the exact binomial's."""
    rng = np.random.default_rng(round(1e6 * recall + 1e3 * rho))
    spread = (1 - rho) / rho if rho else None
    covered, width, exact_width = 0, 0.0, 0.0
    for _ in range(runs):
        chance_N = rng.beta(recall * spread, (1 - recall) * spread, IMAGES) if rho else recall
        hit_M = rng.random((captions, IMAGES)) < chance_N
        hit_M = hit_M.T.ravel()
        low, high = recall_interval(hit_M, IMAGE_OF_TEXT if captions > 1 else None)
        exact = exact_binomial_interval(int(hit_M.sum()), len(hit_M))
        covered += low <= recall <= high
        width += high - low
        exact_width += exact[1] - exact[0]
    return covered / runs, width / exact_width


# Found with 2,000 runs each: coverage and mean width over the exact binomial's.
#   p \ rho      0           0.2           0.5           0.9
#   0.3 %   98.8 % 1.14   98.1 % 1.48   97.3 % 1.91   96.9 % 2.41
#   2 %     96.0 % 1.03   96.1 % 1.37   95.3 % 1.77   97.0 % 2.22
#   20 %    95.5 % 1.01   95.4 % 1.35   95.3 % 1.74   96.0 % 2.17
#   80 %    95.2 % 1.01   95.0 % 1.35   95.6 % 1.75   94.5 % 2.17
# sqrt(1 + 4 rho), the least any honest interval needs, is 1, 1.34, 1.73, 2.14; the exact binomial's
# own coverage falls to about 63 % as rho nears 1.
CASES = [(p, rho) for p in (0.003, 0.02, 0.2, 0.8) for rho in (0.0, 0.2, 0.5, 0.9)]


@pytest.mark.slow
@pytest.mark.parametrize(("recall", "rho"), CASES)
def test_coverage_with_clustered_captions(recall, rho):
    coverage, width = simulate(recall, rho, runs=2000)
    assert coverage >= 0.93
    assert width < 1.15 * (1 + (CAPTIONS - 1) * rho) ** 0.5


@pytest.mark.parametrize(("recall", "rho"), [(0.003, 0.5), (0.2, 0.5)])
def test_coverage_reduced(recall, rho):
    coverage, _ = simulate(recall, rho, runs=300)
    assert coverage >= 0.93 - 3 * (0.93 * 0.07 / 300) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("recall", [0.003, 0.02, 0.2, 0.8])
def test_coverage_of_independent_queries(recall):
    coverage, width = simulate(recall, 0.0, runs=2000, captions=1)
    assert coverage >= 0.93
    assert width == 1
