"""Cosine scores in float32, and where a query's positives stand among them.

Shapes: Q queries, G gallery items, D embedding width, P (query, positive) pairs, U distinct rows.

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
# A block is cut to this many scores (32 MiB), which the processor's cache nearly holds, yet not below
# LEAST_QUERIES rows: a product of fewer spends its time on bringing the gallery in.
CACHED_SCORES = 2**23
LEAST_QUERIES = 128


def unit_rows(embedding, name: str):
    """Distinct rows of an embedding matrix at unit length.

    Args:
        embedding: `(R, D)` tensor or array of any float dtype; a tensor stays on its device.
        name: what error messages call it.

    Returns:
        `unit_UD` float32 tensor of the distinct rows, and `distinct_R`, the int64 tensor that
        says which of them row r is.

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
    first_U, distinct_R = _distinct_rows(np.ascontiguousarray(row_RD.cpu().numpy()))
    row_UD = row_RD[torch.from_numpy(first_U).to(row_RD.device)]
    unit_UD = torch.nn.functional.normalize(row_UD, dim=1, out=row_UD)
    return unit_UD, torch.from_numpy(distinct_R).to(row_RD.device)


def _distinct_rows(row_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`distinct_rows` of rows in memory."""
    return distinct_rows(row_RD[:, :2], lambda rows: row_RD[rows])


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


def positive_ranks(query, gallery, query_of_pair_P, item_of_pair_P, chunk: int):
    """Rank of the best positive of every query, and the number of items that tie with it.

    A tie counts against the model: rank = 1 + (non-positives with a score >= the best
    positive's).  `rank - ties` is the rank if every tie went the model's way.

    Args:
        query: `unit_rows` of the Q queries.
        gallery: `unit_rows` of the G items.
        query_of_pair_P: int64 array, ascending; every query has at least one pair.
        item_of_pair_P: int64 array, the positive of each pair.
        chunk: as in `score_blocks`.

    Returns:
        `rank_Q` and `ties_Q`, int64 numpy arrays.
    """
    import torch

    device = query[0].device
    pair_query_P = torch.from_numpy(query_of_pair_P).to(device)
    pair_item_P = torch.from_numpy(item_of_pair_P).to(device)
    pair_column_P = gallery[1][pair_item_P]
    copies_V = torch.bincount(gallery[1], minlength=len(gallery[0]))
    ranks, ties = [], []
    for start, score_qV in _distinct_score_blocks(query, gallery, chunk):
        left, right = np.searchsorted(query_of_pair_P, (start, start + len(score_qV)))
        pair_row_p = pair_query_P[left:right] - start
        positive_p = score_qV[pair_row_p, pair_column_P[left:right]]
        best_q = torch.full((len(score_qV),), -torch.inf, device=device)
        best_q.scatter_reduce_(0, pair_row_p, positive_p, "amax")
        # Only non-positives can score above the best positive; equal to it are also the positive
        # itself and its equals among the query's other positives.
        above_q = items_in(score_qV > best_q[:, None], copies_V)
        equal_q = items_in(score_qV == best_q[:, None], copies_V)
        equal_q.scatter_add_(0, pair_row_p, -(positive_p == best_q[pair_row_p]).long())
        ties.append(equal_q)
        ranks.append(1 + above_q + equal_q)
    return torch.cat(ranks).cpu().numpy(), torch.cat(ties).cpu().numpy()


def score_blocks(query, gallery, chunk: int):
    """Yields the first query's index and `score_qG`, cosines of up to `chunk` queries with all items.

    Args:
        query, gallery: from `unit_rows`; equal gallery rows get equal scores, to the last bit.
        chunk: queries at a time; fewer where the gallery is so large that `MAX_SCORES` would be
            exceeded.
    """
    column_of_item_G = gallery[1]
    for start, score_qV in _distinct_score_blocks(query, gallery, chunk):
        yield start, score_qV[:, column_of_item_G]


def _distinct_score_blocks(query, gallery, chunk: int):
    """`score_blocks` with one column for each distinct gallery row, in the order of `unit_rows`."""
    (query_UD, row_of_query_Q), (item_VD, column_of_item_G) = query, gallery
    items = len(column_of_item_G)
    step = max(1, min(chunk, MAX_SCORES // items, max(LEAST_QUERIES, CACHED_SCORES // items)))
    for start in range(0, len(row_of_query_Q), step):
        with full_float32(query_UD.device.type):
            score_qV = query_UD[row_of_query_Q[start : start + step]] @ item_VD.T
        yield start, score_qV


def items_in(chosen_qV, copies_V):
    """Number of gallery items per query in the chosen columns; column v stands for `copies_V[v]` items."""
    import torch

    if chosen_qV.device.type == "cpu":
        # numpy counts bytes of one row many times faster than a sum over a dimension does.
        count = (np.count_nonzero(chosen_V) for chosen_V in chosen_qV.numpy())
        items_q = torch.from_numpy(np.fromiter(count, np.int64, len(chosen_qV)))
    else:
        items_q = chosen_qV.sum(1)
    several = (copies_V > 1).nonzero()[:, 0]
    if len(several):
        items_q += (chosen_qV[:, several] * (copies_V[several] - 1)).sum(1)
    return items_q


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
