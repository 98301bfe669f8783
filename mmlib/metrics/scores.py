"""Cosine scores in float32.

Shapes: N rows of a side, U and V distinct rows, Q queries, G gallery items, D embedding width.

Two things here are easy to get wrong and invisible in a result:

Ties.  Two gallery items with the same embedding must get the same score, to the last bit, or
which of them wins is decided by rounding.  A matrix product does not promise that: BLAS computes
the last columns of a matrix with another kernel than the rest, in another order of additions,
and equal columns come out an ulp apart.  So equal rows are merged *before* the product, and
items with one embedding share one column of scores: their tie holds whatever their position, the
chunk size or the device.  Distinct rows whose true cosines agree to 7 digits remain distinct
questions to float32, as with every evaluator.

Precision.  Inside autocast, or where a trainer allowed TF32 or bfloat16 products, float32 inputs
are multiplied with 8 to 11 bits of mantissa, which ties or swaps close scores.  Both are switched
off around the product and put back after it.
"""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

MAX_SCORES = 2**26  # scores held at a time: 256 MiB in float32


class Rows:
    """Embeddings of one side, of which equal ones are one distinct row.

    Attributes:
        distinct_N: int64 array, which distinct row each of the N rows is.
        copies_U: int64 array, how many rows each distinct one stands for.
        width: D.
        device: a `torch.device`.
        span: distinct rows to hold at a time.
    """

    distinct_N: np.ndarray
    copies_U: np.ndarray
    span: int

    def __len__(self) -> int:
        return len(self.distinct_N)

    def block(self, start: int, stop: int):
        """Distinct rows from `start` to `stop` at unit length, fewer at the end; float32."""
        raise NotImplementedError

    def take(self, index_u: np.ndarray):
        """Some distinct rows at unit length, float32 (u, D)."""
        raise NotImplementedError

    def of_several(self, start: int, stop: int) -> list:
        """Which distinct rows from `start` to `stop` stand for several rows, and for how many.

        Returns:
            For each number of rows above one: that number, and places from `start` on as a tensor.
        """
        import torch

        copies_u = self.copies_U[start:stop]
        if copies_u.max(initial=1) == 1:
            return []
        places = (
            (number, np.flatnonzero(copies_u == number)) for number in np.unique(copies_u[copies_u > 1])
        )
        return [(int(number), torch.from_numpy(place).to(self.device)) for number, place in places]


class UnitRows(Rows):
    """`Rows` in memory.

    Args:
        unit_UD: the distinct rows at unit length, float32 tensor.
        distinct_N: int64 tensor on its device.
    """

    def __init__(self, unit_UD, distinct_N):
        self.unit_UD, self.row_of_item_N = unit_UD, distinct_N
        self.distinct_N = distinct_N.cpu().numpy()
        self.copies_U = np.bincount(self.distinct_N, minlength=len(unit_UD))
        self.width, self.device, self.span = unit_UD.shape[1], unit_UD.device, len(unit_UD)

    def block(self, start: int, stop: int):
        return self.unit_UD[start:stop]

    def take(self, index_u: np.ndarray):
        import torch

        return self.unit_UD[torch.from_numpy(index_u).to(self.device)]


def unit_rows(embedding, name: str) -> UnitRows:
    """Distinct rows of an embedding matrix at unit length.

    Args:
        embedding: `(R, D)` tensor or array of any float dtype; a tensor stays on its device.
        name: what error messages call it.

    Raises:
        ValueError: not a float matrix, empty, NaN or infinite values, a row of zeros.
    """
    import torch

    if not isinstance(embedding, torch.Tensor):
        array = np.asarray(embedding)
        if array.dtype.kind != "f":
            raise ValueError(not_float(name, array.dtype))
        # A copy: the array may be a read-only memory map, which a tensor cannot share.
        embedding = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    elif not embedding.is_floating_point():
        raise ValueError(not_float(name, embedding.dtype))
    row_RD = embedding.detach().to(torch.float32)
    if row_RD.ndim != 2 or 0 in row_RD.shape:
        raise ValueError(
            f"{name}: expected a matrix (rows, width) with at least one row and column, found shape"
            f" {tuple(row_RD.shape)}; pass one embedding per row"
        )
    largest_R = row_RD.abs().amax(dim=1)  # NaN wins over every number in amax
    refuse_rows(
        ~torch.isfinite(largest_R), name, "NaN or infinite", "look for a diverged or overflowing model"
    )
    refuse_rows(largest_R == 0, name, "all zero", "a zero embedding has no direction: leave the item out")
    # Dividing by the largest entry keeps squares in range.  Adding 0 turns -0 into 0, which
    # compare equal as numbers but not as bytes.
    row_RD = (row_RD / largest_R[:, None]).add_(0.0)
    as_array_RD = np.ascontiguousarray(row_RD.cpu().numpy())
    first_U, distinct_R = distinct_rows(as_array_RD[:, :2], lambda rows: as_array_RD[rows])
    row_UD = row_RD[torch.from_numpy(first_U).to(row_RD.device)]
    unit_UD = torch.nn.functional.normalize(row_UD, dim=1, out=row_UD)
    return UnitRows(unit_UD, torch.from_numpy(distinct_R).to(row_RD.device))


def distinct_rows(
    head_R2: np.ndarray, rows_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """First position of every distinct row, in the order of their bytes, and which of them row r is.

    What `numpy.unique` of whole rows gives, and much faster: the first eight bytes decide the order
    of nearly all embeddings; whole rows are compared only where these agree.

    Args:
        head_R2: the first two columns, float32 (one where there is but one).
        rows_of: the rows at some positions, or as many bytes in place of each as tell them apart.
    """
    rows, width = head_R2.shape
    head_R = head_R2.copy().view(">u8" if width > 1 else ">u4")[:, 0].astype(np.uint64)
    order_R = np.argsort(head_R, kind="stable")
    new_R = np.ones(rows, dtype=bool)  # is this row, in order, unlike the one before it?
    new_R[1:] = np.diff(head_R[order_R]) != 0
    starts = np.flatnonzero(new_R)
    lengths = np.diff(starts, append=rows)
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1]):
        group = order_R[start : start + length]
        whole = np.ascontiguousarray(rows_of(group))
        as_bytes = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize)))[:, 0]
        _, which = np.unique(as_bytes, return_inverse=True)
        by_bytes = np.argsort(which, kind="stable")
        order_R[start : start + length] = group[by_bytes]
        new_R[start + 1 : start + length] = np.diff(which[by_bytes]) != 0
    distinct_R = np.empty(rows, dtype=np.int64)
    distinct_R[order_R] = np.cumsum(new_R) - 1
    return order_R[new_R], distinct_R


def score_blocks(query: UnitRows, gallery: UnitRows, chunk: int):
    """Yields the first query's index and `score_qG`, cosines of up to `chunk` queries with all items.

    Args:
        query, gallery: from `unit_rows`; equal gallery rows get equal scores, to the last bit.
        chunk: queries at a time; fewer where the gallery is so large that `MAX_SCORES` would be
            exceeded.
    """
    step = max(1, min(chunk, MAX_SCORES // len(gallery)))
    for start in range(0, len(query), step):
        with full_float32(query.device.type):
            query_qD = query.unit_UD[query.row_of_item_N[start : start + step]]
            score_qV = query_qD @ gallery.unit_UD.T
        yield start, score_qV[:, gallery.row_of_item_N]


@contextmanager
def full_float32(device_type: str):
    """No gradients, no autocast, no TF32 or bfloat16 products; settings restored on leaving."""
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def refuse_rows(bad_R, name: str, what: str, advice: str) -> None:
    count = int(bad_R.sum())
    if count:
        first = bad_R.nonzero()[:5, 0].tolist()
        raise ValueError(
            f"{name}: expected finite, non-zero rows, found {count} of {len(bad_R)} rows {what}"
            f" (first: {first}); {advice}"
        )


def not_float(name: str, dtype) -> str:
    return f"{name}: expected a floating-point dtype, found {dtype}; convert the embeddings to float32"
