"""Ranks against a gallery that stays on the disk: embeddings of a memory-mapped file, a block at a time.

What is held of N rows of width D are a few numbers for each row and one block of them, never N x D
values.  The ranks are those of `mmlib.metrics.scores`, ties included: equal rows share one column
here too, wherever in the file they are.

Shapes: N rows of the file, V distinct ones, Q queries, D embedding width, P (query, positive) pairs,
B rows of a block; lower-case letters are parts of these.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from mmlib.metrics.scores import (
    distinct_rows,
    full_float32,
    items_in,
    not_float,
    positive_ranks,
    refuse_rows,
    unit_rows,
)

MAPPED_BYTES = 2**26  # in float32, from which on a memory map is read in blocks
BLOCK_BYTES = 2**23  # of a block of rows in float32
BLOCK_SCORES = 2**22  # held at a time
LEAST_ROWS = 16  # of a product


def rows_of(embedding, name: str):
    """`MappedRows` of a large memory map, `unit_rows` of anything else; errors are those of `unit_rows`."""
    shape = getattr(embedding, "shape", ())
    large = len(shape) == 2 and 0 not in shape and 4 * shape[0] * shape[1] >= MAPPED_BYTES
    if large and isinstance(embedding, np.memmap):
        return MappedRows(embedding, name)
    return unit_rows(embedding, name)


def row_count(rows) -> int:
    """N of what `rows_of` returned."""
    return len(rows if isinstance(rows, MappedRows) else rows[1])


class MappedRows:
    """The rows of a memory-mapped embedding matrix, of which each distinct one is a column of scores.

    Args:
        embedding: (N, D), any float dtype.
        name: what error messages call it.

    Attributes:
        width: D.
        column_N: int64, the column of each row.
        copies_V: int64 tensor, how many rows each column stands for.

    Raises:
        ValueError: as `unit_rows`.
    """

    def __init__(self, embedding: np.memmap, name: str):
        import torch

        if embedding.dtype.kind != "f":
            raise ValueError(not_float(name, embedding.dtype))
        self._embedding, self._name = embedding, name
        rows, self.width = embedding.shape
        self._block = max(1, BLOCK_BYTES // (4 * self.width))
        largest_N = torch.empty(rows)
        head_N2 = np.empty((rows, min(2, self.width)), dtype=np.float32)
        for start in range(0, rows, self._block):
            row_BD = self._read(slice(start, start + self._block))
            largest_N[start : start + len(row_BD)] = row_BD.abs().amax(dim=1)
            head_N2[start : start + len(row_BD)] = _scaled(row_BD)[:, :2].numpy()
        refuse_rows(
            ~torch.isfinite(largest_N), name, "NaN or infinite", "look for a diverged or overflowing model"
        )
        refuse_rows(largest_N == 0, name, "all zero", "a zero embedding has no direction: leave the item out")
        self._first_V, self.column_N = distinct_rows(head_N2, self._digests)
        self.copies_V = torch.from_numpy(np.bincount(self.column_N, minlength=len(self._first_V)))

    def __len__(self) -> int:
        return len(self.column_N)

    def unit_blocks(self) -> Iterator[tuple[int, object]]:
        """Yields the first column and `unit_BD`, the distinct rows from it on at unit length."""
        import torch

        for start in range(0, len(self._first_V), self._block):
            row_BD = _scaled(self._read(self._first_V[start : start + self._block]))
            yield start, torch.nn.functional.normalize(row_BD, dim=1)

    def query_blocks(self, row_Q: np.ndarray) -> Iterator[tuple[int, tuple]]:
        """Yields the first place in `row_Q` and `unit_rows` of those rows, a block of them at a time."""
        for start in range(0, len(row_Q), self._block):
            rows = np.array(self._embedding[row_Q[start : start + self._block]])
            yield start, unit_rows(rows, self._name)

    def _read(self, rows):
        """Rows as a float32 tensor: a copy, for a tensor cannot share a read-only map."""
        import torch

        return torch.from_numpy(np.array(self._embedding[rows], dtype=np.float32, order="C"))

    def _digests(self, row_R: np.ndarray) -> np.ndarray:
        """16 bytes for each of some rows, equal if and only if the rows are: all rows may be asked for."""
        digest_R = np.empty((len(row_R), 16), dtype=np.uint8)
        for start in range(0, len(row_R), self._block):
            block_BD = _scaled(self._read(row_R[start : start + self._block])).numpy()
            for place, row in enumerate(block_BD, start=start):
                digest_R[place] = np.frombuffer(hashlib.blake2b(row, digest_size=16).digest(), np.uint8)
        return digest_R


def _scaled(row_BD):
    """Rows as `unit_rows` compares them."""
    return (row_BD / row_BD.abs().amax(dim=1, keepdim=True)).add_(0.0)


def ranks_of(
    query, row_Q: np.ndarray, gallery, query_of_pair_P: np.ndarray, item_of_pair_P: np.ndarray, chunk: int
):
    """`positive_ranks` of the rows `row_Q` of `query`; both sides are what `rows_of` returned."""
    import torch

    if not isinstance(query, MappedRows):
        unit_UD, distinct_N = query
        query = (unit_UD, distinct_N[torch.from_numpy(row_Q).to(distinct_N.device)])
        return _ranks_against(query, gallery, query_of_pair_P, item_of_pair_P, chunk)
    parts = []
    for start, block in query.query_blocks(row_Q):
        left, right = np.searchsorted(query_of_pair_P, (start, start + len(block[1])))
        pairs = query_of_pair_P[left:right] - start, item_of_pair_P[left:right]
        parts.append(_ranks_against(block, gallery, *pairs, chunk))
    return tuple(np.concatenate(part) for part in zip(*parts))


def _ranks_against(query, gallery, query_of_pair_P: np.ndarray, item_of_pair_P: np.ndarray, chunk: int):
    """`positive_ranks` of queries in memory, where the gallery may be `MappedRows`.

    The gallery is read twice: the scores of the positives are known before any is counted.
    """
    import torch

    if not isinstance(gallery, MappedRows):
        return positive_ranks(query, gallery, query_of_pair_P, item_of_pair_P, chunk)
    query_UD, row_of_query_Q = query
    queries = len(row_of_query_Q)
    pairs = _Pairs(query_of_pair_P, gallery.column_N[item_of_pair_P])
    positive_P = _positive_scores(query, gallery, pairs)
    pair_query_P = torch.from_numpy(query_of_pair_P)
    best_Q = torch.full((queries,), -torch.inf)
    best_Q.scatter_reduce_(0, pair_query_P, positive_P, "amax")

    above_Q, equal_Q = (torch.zeros(queries, dtype=torch.int64) for _ in range(2))
    for first, unit_BD in gallery.unit_blocks():
        copies_B = gallery.copies_V[first : first + len(unit_BD)]
        step = max(1, min(chunk, BLOCK_SCORES // len(unit_BD)))
        for start in range(0, queries, step):
            with full_float32("cpu"):
                score_qB = query_UD[row_of_query_Q[start : start + step]] @ unit_BD.T
            stop = start + len(score_qB)
            query_p, column_p, place_p = pairs.within(first, len(unit_BD), start, stop)
            # As it was when the best was chosen, to the last bit, whatever the shape of the product.
            score_qB[query_p - start, column_p] = positive_P[place_p]
            best_q = best_Q[start:stop, None]
            above_Q[start:stop] += items_in(score_qB > best_q, copies_B)
            equal_Q[start:stop] += items_in(score_qB == best_q, copies_B)
    # Only non-positives can score above the best positive; equal to it are also the positive itself
    # and its equals among the query's other positives.
    equal_Q.scatter_add_(0, pair_query_P, -(positive_P == best_Q[pair_query_P]).long())
    return (1 + above_Q + equal_Q).numpy(), equal_Q.numpy()


class _Pairs:
    """(query, column) pairs, found by block of columns."""

    def __init__(self, query_of_pair_P: np.ndarray, column_P: np.ndarray):
        self._order_P = np.argsort(column_P, kind="stable")
        self._column_P, self._query_P = column_P[self._order_P], query_of_pair_P[self._order_P]

    def __len__(self) -> int:
        return len(self._order_P)

    def within(self, first: int, columns: int, start: int = 0, stop: int | None = None) -> tuple:
        """Query, column from `first` on, and place among all pairs, of those in a block of both."""
        left, right = np.searchsorted(self._column_P, (first, first + columns))
        query_p = self._query_P[left:right]
        mine_p = np.flatnonzero((query_p >= start) & (query_p < (np.inf if stop is None else stop)))
        column_p = self._column_P[left:right][mine_p] - first
        return query_p[mine_p], column_p, self._order_P[left:right][mine_p]


def _positive_scores(query, gallery: MappedRows, pairs: _Pairs):
    """Cosine of each pair, (P,) float32: queries against the blocks that their positives are in."""
    import torch

    query_UD, row_of_query_Q = query
    positive_P = torch.empty(len(pairs))
    for first, unit_BD in gallery.unit_blocks():
        query_p, column_p, place_p = pairs.within(first, len(unit_BD))
        step = max(LEAST_ROWS, BLOCK_SCORES // len(unit_BD))
        asked, which_p = np.unique(query_p, return_inverse=True)
        for start in range(0, len(asked), step):
            row_q = asked[start : start + step]
            # BLAS multiplies few rows by another kernel, in another order of additions.
            padded_q = torch.from_numpy(np.resize(row_q, max(LEAST_ROWS, len(row_q))))
            with full_float32("cpu"):
                score_qB = query_UD[row_of_query_Q[padded_q]] @ unit_BD.T
            mine_p = np.flatnonzero((which_p >= start) & (which_p < start + step))
            positive_P[place_p[mine_p]] = score_qB[which_p[mine_p] - start, column_p[mine_p]]
    return positive_P
