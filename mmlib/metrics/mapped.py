"""Ranks against a gallery that stays on the disk: embeddings of a memory-mapped file, a block at a time.

What is held of N rows of width D are a few numbers for each row and one block of them, never N x D
values.  The ranks are those of `mmlib.metrics.scores`, ties included: equal rows share one column
here too, wherever in the file they are.

Shapes: N rows of the file, U distinct ones, D embedding width, B rows of a block; u is a part of U.
"""

import hashlib

import numpy as np

from mmlib.metrics.scores import (
    Rows,
    distinct_rows,
    not_float,
    refuse_bad_rows,
    scaled,
    unit_rows,
)

MAPPED_BYTES = 2**26  # in float32, from which on a memory map is read in blocks
BLOCK_BYTES = 2**23  # of a block of rows in float32


def rows_of(embedding, name: str) -> Rows:
    """`MappedRows` of a large memory map, `unit_rows` of anything else; errors are those of `unit_rows`."""
    shape = getattr(embedding, "shape", ())
    large = len(shape) == 2 and 0 not in shape and 4 * shape[0] * shape[1] >= MAPPED_BYTES
    if large and isinstance(embedding, np.memmap):
        return MappedRows(embedding, name)
    return unit_rows(embedding, name)


class MappedRows(Rows):
    """`Rows` of a memory-mapped embedding matrix, read as they are asked for.

    Args:
        embedding: (N, D), any float dtype.
        name: what error messages call it.

    Raises:
        ValueError: as `unit_rows`.
    """

    def __init__(self, embedding: np.memmap, name: str):
        import torch

        if embedding.dtype.kind != "f":
            raise ValueError(not_float(name, embedding.dtype))
        self._embedding = embedding
        rows, self.width = embedding.shape
        self.device = torch.device("cpu")
        self.span = max(1, BLOCK_BYTES // (4 * self.width))
        largest_N = torch.empty(rows)
        head_N2 = np.empty((rows, min(2, self.width)), dtype=np.float32)
        for start in range(0, rows, self.span):
            row_BD = self._read(slice(start, start + self.span))
            largest_N[start : start + len(row_BD)] = row_BD.abs().amax(dim=1)
            head_N2[start : start + len(row_BD)] = scaled(row_BD)[:, :2].numpy()
        refuse_bad_rows(largest_N, name)
        self._first_U, self.distinct_N = distinct_rows(head_N2, self._digests)
        self.copies_U = np.bincount(self.distinct_N, minlength=len(self._first_U))

    def block(self, start: int, stop: int):
        return self._unit(self._first_U[start:stop])

    def take(self, index_u: np.ndarray):
        return self._unit(self._first_U[index_u])

    def _unit(self, row_u: np.ndarray):
        import torch

        return torch.nn.functional.normalize(scaled(self._read(row_u)), dim=1)

    def _read(self, rows):
        """Rows as a float32 tensor: a copy, for a tensor cannot share a read-only map."""
        import torch

        return torch.from_numpy(np.array(self._embedding[rows], dtype=np.float32, order="C"))

    def _digests(self, row_R: np.ndarray) -> np.ndarray:
        """16 bytes for each of some rows, equal if and only if the rows are: all rows may be asked for."""
        digest_R = np.empty((len(row_R), 16), dtype=np.uint8)
        for start in range(0, len(row_R), self.span):
            block_BD = scaled(self._read(row_R[start : start + self.span])).numpy()
            for place, row in enumerate(block_BD, start=start):
                digest_R[place] = np.frombuffer(hashlib.blake2b(row, digest_size=16).digest(), np.uint8)
        return digest_R
