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
from functools import cached_property

import numpy as np

MAX_SCORES = 2**26  # scores held at a time: 256 MiB in float32
SPAN_BYTES = 2**26  # of rows at unit length in float32 that are held at a time
BLOCK_BYTES = 2**21  # of rows in float32 that are brought to unit length at a time


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
    """`Rows` in memory: of the embeddings as they were given, brought to unit length when asked for.

    Args:
        row_RD: float32 tensor.
        first_U: int64 tensor on its device, a row of each distinct one.
        distinct_N: int64 tensor on its device.
    """

    def __init__(self, row_RD, first_U, distinct_N):
        self._row_RD, self._first_U, self.row_of_item_N = row_RD, first_U, distinct_N
        self.distinct_N = distinct_N.cpu().numpy()
        self.copies_U = np.bincount(self.distinct_N, minlength=len(first_U))
        self.width, self.device = row_RD.shape[1], row_RD.device
        self.span = max(1, SPAN_BYTES // (4 * self.width))

    @cached_property
    def unit_UD(self):
        """All distinct rows at unit length, float32 tensor."""
        return self.block(0, len(self._first_U))

    def items(self, index_N) -> "UnitRows":
        """`Rows` of which item n is this one's item `index_N[n]` (int64 tensor on the device)."""
        return UnitRows(self._row_RD, self._first_U, self.row_of_item_N[index_N])

    def block(self, start: int, stop: int):
        return self._unit(self._first_U[start:stop])

    def take(self, index_u: np.ndarray):
        import torch

        return self._unit(self._first_U[torch.from_numpy(index_u).to(self.device)])

    def _unit(self, first_u):
        import torch

        unit_uD = torch.empty(len(first_u), self.width, device=self.device)
        step = max(1, BLOCK_BYTES // (4 * self.width))
        for start in range(0, len(first_u), step):
            block_BD = scaled(self._row_RD[first_u[start : start + step]])
            torch.nn.functional.normalize(block_BD, dim=1, out=unit_uD[start : start + step])
        return unit_uD


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
        array = np.asarray(array, dtype=np.float32, order="C")
        # A tensor cannot share what may not be written to, as a read-only memory map.
        embedding = torch.from_numpy(array if array.flags.writeable else array.copy())
    elif not embedding.is_floating_point():
        raise ValueError(not_float(name, embedding.dtype))
    row_RD = embedding.detach().to(torch.float32)
    if row_RD.ndim != 2 or 0 in row_RD.shape:
        raise ValueError(
            f"{name}: expected a matrix (rows, width) with at least one row and column, found shape"
            f" {tuple(row_RD.shape)}; pass one embedding per row"
        )
    # NaN wins over every number in amax and amin.
    largest_R = torch.maximum(row_RD.amax(dim=1), -row_RD.amin(dim=1))
    refuse_bad_rows(largest_R, name)

    def as_array(rows) -> np.ndarray:
        return scaled(row_RD[torch.from_numpy(rows).to(row_RD.device)]).cpu().numpy()

    head_R2 = (row_RD[:, :2] / largest_R[:, None]).add_(0.0).cpu().numpy()
    first_U, distinct_R = distinct_rows(head_R2, as_array)
    first_U, distinct_R = (torch.from_numpy(index).to(row_RD.device) for index in (first_U, distinct_R))
    return UnitRows(row_RD, first_U, distinct_R)


def scaled(row_RD):
    """Rows as they are compared: divided by their largest entries, which keeps squares in range.

    Adding 0 turns -0 into 0, which compare equal as numbers but not as bytes.
    """
    return (row_RD / row_RD.abs().amax(dim=1, keepdim=True)).add_(0.0)


def refuse_bad_rows(largest_R, name: str) -> None:
    """Raises ValueError where the largest absolute entry of a row is NaN, infinite or 0."""
    refuse_rows(~largest_R.isfinite(), name, "NaN or infinite", "look for a diverged or overflowing model")
    refuse_rows(largest_R == 0, name, "all zero", "a zero embedding has no direction: leave the item out")


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
