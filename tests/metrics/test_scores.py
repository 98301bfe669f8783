"""Distinct rows: the same as sorting whole rows, whatever their first bytes share."""

import numpy as np
import pytest

from mmlib.metrics.scores import distinct_rows


def rows_of(kind: str, width: int) -> np.ndarray:
    rng = np.random.default_rng(width)
    row_RD = rng.standard_normal((300, width)).astype(np.float32)
    if kind == "copies":
        row_RD = row_RD[rng.integers(0, 60, 300)]
    elif kind == "equal beginnings":
        row_RD[:, : width // 2 + 1] = 0.5
    elif kind == "few values":
        row_RD = np.sign(row_RD) + np.float32(0)
    return np.ascontiguousarray(row_RD)


@pytest.mark.parametrize("kind", ["all distinct", "copies", "equal beginnings", "few values"])
@pytest.mark.parametrize("width", [1, 2, 3, 17])
def test_distinct_rows_are_those_of_numpy(kind, width):
    row_RD = rows_of(kind, width)
    as_bytes_R = row_RD.view(np.dtype((np.void, 4 * width)))[:, 0]
    _, first, distinct = np.unique(as_bytes_R, return_index=True, return_inverse=True)
    first_U, distinct_R = distinct_rows(row_RD[:, :2], lambda rows: row_RD[rows])
    np.testing.assert_array_equal(first_U, first)
    np.testing.assert_array_equal(distinct_R, distinct)
