"""Ranks of both directions from one pass over the scores, which are made a tile at a time and dropped.

Whatever the size of the two sides, what is held is a number or two for each row and one tile of
scores; the N x M matrix never exists.  Every tile serves image and caption queries alike.  That takes
two steps, since a query is counted against its best positive: the scores of the positive pairs come
first, and in the tiles they are put in place of what the product gives there.  So a positive is
equal to itself, to the last bit, whatever the shape of a product.

Shapes: U and V distinct rows of the two sides (`mmlib.metrics.scores`: equal rows are one), Q queries
of a side, P (query, positive) pairs, E entries: distinct (row, score to beat); u, v, e those of a tile.
"""

from dataclasses import dataclass

import numpy as np

from mmlib.metrics.scores import MAX_SCORES, full_float32

# A tile on the processor: few enough rows that a byte counts them, and scores that its cache holds.
TILE_ROWS = 240
TILE_SCORES = 2**21
TILE_BYTES = 2**23  # of the columns' embeddings in float32
PAIR_ROWS = 48  # whose positives are scored at a time
LEAST_ROWS = 16  # of a product: BLAS multiplies fewer by another kernel, in another order of additions


@dataclass(frozen=True)
class Queries:
    """Queries of one side and what is right for each.

    Attributes:
        item_Q: int64, which item of its own side a query is.
        query_of_pair_P: int64, places in `item_Q`; every query has at least one pair.
        item_of_pair_P: int64, the positive: an item of the other side.
    """

    item_Q: np.ndarray
    query_of_pair_P: np.ndarray
    item_of_pair_P: np.ndarray

    def own_items(self) -> np.ndarray:
        """(P,) the item of its own side that each pair's query is."""
        return self.item_Q[self.query_of_pair_P]


def ranks_both_ways(first, second, first_queries: Queries, second_queries: Queries, chunk: int):
    """Rank of the best positive of every query, and the number of items that tie with it.

    A tie counts against the model: rank = 1 + (non-positives with a score >= the best
    positive's).  `rank - ties` is the rank if every tie went the model's way.

    Args:
        first, second: `UnitRows` or `MappedRows` of the two sides, on one device.
        first_queries: queries of `first` in the gallery `second`; `second_queries` the other way.
        chunk: rows of `first` scored at a time, at most.

    Returns:
        `(rank_Q, ties_Q)` of the first queries and of the second, int64 numpy arrays.
    """
    import torch

    device, columns_in_all = first.device, len(second.copies_U)
    rows = min(chunk, TILE_ROWS if device.type == "cpu" else MAX_SCORES)
    columns = MAX_SCORES // rows
    if device.type == "cpu":
        columns = min(TILE_SCORES // rows, TILE_BYTES // (4 * first.width))
    columns = max(LEAST_ROWS, columns)

    # A pair is one number: row * V + column.
    key_of_first_P = first.distinct_N[first_queries.own_items()] * columns_in_all
    key_of_first_P += second.distinct_N[first_queries.item_of_pair_P]
    key_of_second_P = first.distinct_N[second_queries.item_of_pair_P] * columns_in_all
    key_of_second_P += second.distinct_N[second_queries.own_items()]
    pair_P, place = np.unique(np.concatenate([key_of_first_P, key_of_second_P]), return_inverse=True)
    pairs = _Pairs(*divmod(pair_P, columns_in_all), first, second, columns)
    of_rows = _Counts(first, first_queries, pairs.score_P[place[: len(key_of_first_P)]])
    of_columns = _Counts(second, second_queries, pairs.score_P[place[len(key_of_first_P) :]])

    tile = torch.empty(rows * min(columns, columns_in_all), device=device)
    for outer in range(0, len(first.copies_U), first.span):
        row_UD = first.block(outer, outer + first.span)
        for left in range(0, columns_in_all, columns):
            column_VD = second.block(left, left + columns)
            columns_of_several = second.of_several(left, left + len(column_VD))
            for top in range(outer, outer + len(row_UD), rows):
                tile_UD = row_UD[top - outer : top - outer + rows]
                score_uv = tile[: len(tile_UD) * len(column_VD)].view(len(tile_UD), len(column_VD))
                with full_float32(device.type):
                    torch.mm(tile_UD, column_VD.T, out=score_uv)
                pairs.put(score_uv, top, left)
                of_rows.add(score_uv, 0, top, columns_of_several)
                of_columns.add(score_uv, 1, left, first.of_several(top, top + len(tile_UD)))
    return of_rows.ranks(), of_columns.ranks()


class _Pairs:
    """The scores of the distinct positive pairs, for tiles of `columns` columns.

    Args:
        row_P, column_P: distinct rows of each side, ascending by row.

    Attributes:
        score_P: float32 array.
    """

    def __init__(self, row_P: np.ndarray, column_P: np.ndarray, first, second, columns: int):
        self.score_P = _pair_scores(row_P, column_P, first, second, columns)
        self._columns = columns
        order_P = np.argsort(column_P // columns, kind="stable")  # so rows ascend within a block of columns
        self._row_P, self._column_P = row_P[order_P], column_P[order_P]
        self._sorted_score_P = self.score_P[order_P]
        self._block_P = self._column_P // columns

    def put(self, score_uv, top: int, left: int) -> None:
        """Puts the scores of the pairs in this tile in place."""
        import torch

        block = left // self._columns
        begin, end = np.searchsorted(self._block_P, (block, block + 1))
        begin, end = begin + np.searchsorted(self._row_P[begin:end], (top, top + len(score_uv)))
        if begin < end:
            row_p, column_p = self._row_P[begin:end] - top, self._column_P[begin:end] - left
            place_p = torch.from_numpy(row_p * score_uv.shape[1] + column_p).to(score_uv.device)
            score_p = torch.from_numpy(self._sorted_score_P[begin:end]).to(score_uv.device)
            score_uv.view(-1)[place_p] = score_p


def _pair_scores(row_P: np.ndarray, column_P: np.ndarray, first, second, columns: int) -> np.ndarray:
    """Cosine of each pair, float32: rows against the columns of their pairs, at most `columns` at a time."""
    import torch

    score_P = np.empty(len(row_P), dtype=np.float32)
    row_U, start_U = np.unique(row_P, return_index=True)
    start_U = np.append(start_U, len(row_P))
    for top in range(0, len(row_U), PAIR_ROWS):
        asked_u = row_U[top : top + PAIR_ROWS]
        row_uD = first.take(_padded(asked_u))
        left, right = start_U[top], start_U[top + len(asked_u)]
        row_p = np.searchsorted(asked_u, row_P[left:right])
        asked_v, column_p = np.unique(column_P[left:right], return_inverse=True)
        for begin in range(0, len(asked_v), columns):
            with full_float32(first.device.type):
                score_uv = row_uD @ second.take(_padded(asked_v[begin : begin + columns])).T
            mine_p = np.flatnonzero((column_p >= begin) & (column_p < begin + columns))
            place_p = row_p[mine_p] * score_uv.shape[1] + column_p[mine_p] - begin
            score_p = score_uv.view(-1)[torch.from_numpy(place_p).to(score_uv.device)]
            score_P[left + mine_p] = score_p.cpu().numpy()
    return score_P


def _padded(index: np.ndarray) -> np.ndarray:
    return np.resize(index, max(LEAST_ROWS, len(index)))


class _Counts:
    """How many items score above each query's best positive, and how many exactly as it does."""

    def __init__(self, side, queries: Queries, score_P: np.ndarray):
        import torch

        best_Q = np.full(len(queries.item_Q), -np.inf, dtype=np.float32)
        np.maximum.at(best_Q, queries.query_of_pair_P, score_P)
        # Queries of one row and one score to beat are one question.
        row_Q = side.distinct_N[queries.item_Q]
        order_Q = np.lexsort((best_Q, row_Q))
        new_Q = np.ones(len(order_Q), dtype=bool)
        new_Q[1:] = (np.diff(row_Q[order_Q]) != 0) | (np.diff(best_Q[order_Q]) != 0)
        self._entry_Q = np.empty(len(order_Q), dtype=np.int64)
        self._entry_Q[order_Q] = np.cumsum(new_Q) - 1
        self._row_E = row_Q[order_Q[new_Q]]
        self._best_E = torch.from_numpy(best_Q[order_Q[new_Q]]).to(side.device)
        # The positive itself, and its equals among the query's other positives, are no ties.
        is_best_P = score_P == best_Q[queries.query_of_pair_P]
        self._own_Q = np.bincount(queries.query_of_pair_P[is_best_P], minlength=len(best_Q))
        self._above_E, self._equal_E = (
            torch.zeros(len(self._row_E), dtype=torch.int64, device=side.device) for _ in range(2)
        )
        self._chosen = torch.empty(0, dtype=torch.bool, device=side.device)

    def add(self, score_uv, axis: int, start: int, several: list) -> None:
        """Counts a tile whose queries lie along `axis`, from distinct row `start` on.

        Args:
            several: rows along the other axis that stand for several items, from `of_several` of their side.
        """
        import torch

        begin, end = np.searchsorted(self._row_E, (start, start + score_uv.shape[axis]))
        # In pieces of about one tile: thousands of queries may share a row.
        step = max(score_uv.shape[axis], TILE_SCORES // score_uv.shape[1 - axis])
        for left in range(begin, end, step):
            right = min(end, left + step)
            row_e = self._row_E[left:right] - start
            whole = right - left == score_uv.shape[axis] and row_e[0] == 0 and (np.diff(row_e) == 1).all()
            score_e = score_uv
            if not whole:
                score_e = score_uv.index_select(axis, torch.from_numpy(row_e).to(score_uv.device))
            best_e = self._best_E[left:right]
            best_e = best_e[:, None] if axis == 0 else best_e
            if len(self._chosen) < score_e.numel():
                self._chosen = torch.empty(score_e.numel(), dtype=torch.bool, device=score_uv.device)
            chosen = self._chosen[: score_e.numel()].view(score_e.shape)
            for compare, count_E in ((torch.gt, self._above_E), (torch.eq, self._equal_E)):
                compare(score_e, best_e, out=chosen)
                count_E[left:right] += _items(chosen, 1 - axis, several)

    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """`rank_Q` and `ties_Q`."""
        # Only non-positives can score above the best positive.
        above_Q, equal_Q = (count.cpu().numpy()[self._entry_Q] for count in (self._above_E, self._equal_E))
        ties_Q = equal_Q - self._own_Q
        return 1 + above_Q + ties_Q, ties_Q


def _items(chosen, axis: int, several: list):
    """Items along `axis` that are chosen; `several` is as in `UnitRows.of_several`."""
    count = _count(chosen, axis)
    for number, rows in several:
        count += (number - 1) * _count(chosen.index_select(axis, rows), axis)
    return count


def _count(chosen, axis: int):
    """Number of true values along an axis, int64."""
    import torch

    if chosen.device.type != "cpu":
        return chosen.sum(axis)
    # numpy counts bytes many times faster than a sum over a dimension does.
    array = chosen.numpy()
    if axis == 1:
        counts = (np.count_nonzero(row) for row in array)
        return torch.from_numpy(np.fromiter(counts, np.int64, len(array)))
    return torch.from_numpy(np.add.reduce(array.view(np.uint8), axis=0, dtype=np.uint8).astype(np.int64))
