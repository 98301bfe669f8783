"""Retrieval ranks in both directions: every figure of this project is computed from them.

Scores are cosines in float64.  In float32 equal embeddings get unequal scores, an ulp apart, where BLAS adds
in another order (the last columns of a matrix, another chunk, another device), and rounding decides which
one wins.  In float64 that noise is a millionth of `TIE`, and real embeddings hardly ever lie closer than it.

Shapes: N images, M captions, D embedding width, R rows, P (image, caption) pairs that are right, Q queries
of one direction.  Under `standard` there are N image queries and M caption queries; under `paired` there are
M of each.
"""

import io
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mmlib.arrays import read_npz
from mmlib.files import explained, write_bytes_atomic

RANKINGS = ("standard", "paired")
TIE = 1e-9  # cosines that differ by no more are equal; in float64 those of equal directions differ by 1e-15
ROWS, COLUMNS = 1024, 2048  # images and captions scored at a time


@dataclass(frozen=True, eq=False)
class RetrievalRanks:
    """1-based rank of the best positive of every query, both directions, ties against the model.

    Attributes:
        i2t_N: int64, rank per image query (`paired`: per caption, whose image row is the query).
        t2i_M: int64, rank per caption query.
        ties_i2t_N, ties_t2i_M: int64, non-positives that score exactly as the best positive;
            `rank - ties` is the rank if every tie went the model's way.
        image_of_text_M: int64, the image of each caption.
        gallery_i2t, gallery_t2i: items ranked for one query.
        protocol: how positives were counted, one of `RANKINGS`.

    Raises:
        ValueError: shapes that do not fit each other, anything but whole numbers, images without a
            caption, ranks outside 1..gallery or ties outside 0..rank - 1.
    """

    i2t_N: np.ndarray
    t2i_M: np.ndarray
    ties_i2t_N: np.ndarray
    ties_t2i_M: np.ndarray
    image_of_text_M: np.ndarray
    gallery_i2t: int
    gallery_t2i: int
    protocol: str = "standard"

    def __post_init__(self):
        if self.protocol not in RANKINGS:
            raise ValueError(f"protocol: expected one of {RANKINGS}, found {self.protocol!r}")
        for name in ("i2t_N", "t2i_M", "ties_i2t_N", "ties_t2i_M", "image_of_text_M"):
            value = getattr(self, name)
            if getattr(value, "ndim", None) != 1 or value.dtype.kind not in "iu":
                found = f"shape {value.shape} of {value.dtype}" if hasattr(value, "dtype") else f"{value!r}"
                raise ValueError(
                    f"{name}: expected whole numbers, one a query, found {found}; recompute them"
                )
            object.__setattr__(self, name, value.astype(np.int64, copy=False))
        texts = len(self.t2i_M)
        images = queries = len(self.i2t_N)
        if self.protocol == "paired":
            images, queries = min(texts, 1 + int(self.image_of_text_M.max(initial=0))), texts
        checked_map(self.image_of_text_M, images, texts)
        for direction, rank_Q, ties_Q, expected, gallery in (
            ("i2t", self.i2t_N, self.ties_i2t_N, queries, self.gallery_i2t),
            ("t2i", self.t2i_M, self.ties_t2i_M, texts, self.gallery_t2i),
        ):
            if not len(rank_Q) == len(ties_Q) == expected:
                raise ValueError(
                    f"{direction}: expected {expected} ranks and ties for this image_of_text_M, found"
                    f" {len(rank_Q)} and {len(ties_Q)}; keep ranks with the map they came from"
                )
            low, high = rank_Q.min(), rank_Q.max()
            is_tied = (ties_Q >= 0) & (ties_Q < rank_Q)
            if type(gallery) is not int or low < 1 or high > gallery or not is_tied.all():
                raise ValueError(
                    f"{direction}: expected ranks in 1..{gallery!r} and ties in 0..rank - 1, found ranks"
                    f" {low}..{high}, ties {ties_Q.min()}..{ties_Q.max()}; recompute them"
                )

    @property
    def images(self) -> int:
        """N, the number of distinct images."""
        return int(self.image_of_text_M.max()) + 1

    def of(self, direction: str) -> np.ndarray:
        """Ranks of one direction, `i2t` or `t2i`."""
        return self.i2t_N if direction == "i2t" else self.t2i_M

    def gallery(self, direction: str) -> int:
        """Items that were ranked for one query of this direction."""
        return self.gallery_i2t if direction == "i2t" else self.gallery_t2i

    def best_case(self, direction: str) -> np.ndarray:
        """Ranks of one direction if every tie went the model's way."""
        return self.of(direction) - (self.ties_i2t_N if direction == "i2t" else self.ties_t2i_M)

    def image_of_query(self, direction: str) -> np.ndarray:
        """The image that each query shows or describes: queries of one image are not independent."""
        if direction == "i2t" and self.protocol == "standard":
            return np.arange(len(self.i2t_N))
        return self.image_of_text_M

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz`, whole or not at all, in a folder that is made if it is missing.

        Raises:
            OSError: the disk is full or the folder cannot be written; `path` is as it was.
        """
        buffer, path = io.BytesIO(), Path(path)
        np.savez_compressed(buffer, **vars(self))
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RetrievalRanks":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, no ranks file, or inconsistent.
        """
        try:
            values = read_npz(Path(path))
            names = {field.name for field in fields(cls)}
            if values.keys() != names:
                raise ValueError(f"the arrays {', '.join(values)[:200] or 'none'}")
            # Scalars come back as arrays without dimensions.
            return cls(**{key: value if value.ndim else value.item() for key, value in values.items()})
        except ValueError as error:
            raise ValueError(
                f"{path}: expected a ranks file as written by RetrievalRanks.save, found"
                f" {error.__cause__ or error}; evaluate the run again"
            ) from error


def retrieval_ranks(image_ND, text_MD, image_of_text_M) -> RetrievalRanks:
    """Ranks under the `standard` protocol: unique images, any caption of the image is a hit.

    Two images and four captions, two of each image::

                           caption 0   1     2     3
        image                    0     0     1     1
        image 0  (1, 0)         .60   .45   .32   .60    best own .60, and caption 3 ties: rank 2
        image 1  (0, 1)         .80   .89   .95   .80    best own .95: rank 1
        rank of own image        2     2     1     1     no ties

    Scores are made `ROWS` images by `COLUMNS` captions at a time and dropped, so that a gallery of any
    size takes little memory; arrays on the disk (`numpy.memmap`) are read as they are needed.

    Args:
        image_ND: `(N, D)` image embeddings, tensor or array of any float dtype, any row length.
        text_MD: `(M, D)` caption embeddings, on the same device.
        image_of_text_M: `(M,)` integers in 0..N-1; every image has at least one caption.

    Raises:
        ValueError: shapes or dtypes that do not fit; empty input; NaN, infinite or zero
            rows; an index out of range; images without a caption.
    """
    image, text, image_of_text_M = _checked(image_ND, text_MD, image_of_text_M)
    i2t, t2i = ranks_of_pairs(image, text, image_of_text_M, np.arange(len(text)))
    return RetrievalRanks(i2t[0], t2i[0], i2t[1], t2i[1], image_of_text_M, len(text), len(image))


def paired_ranks(image_ND, text_MD, image_of_text_M) -> RetrievalRanks:
    """Ranks under the `paired` protocol: M image rows against M captions, one to one.

    Every image stands in the gallery once per caption, and only the caption of the same row is
    right: the other captions of the image count as wrong.  Hence the ceilings of
    `mmlib.metrics.protocols`.  The equal image rows always tie; ties count against the model, so
    with c captions per image a t2i rank here is exactly c times the standard one.  `best_case`
    gives the other end of what tie breaking can make of it.

    Arguments and errors are those of `retrieval_ranks`.
    """
    _, text, image_of_text_M = _checked(image_ND, text_MD, image_of_text_M)
    image, row_M = UnitRows(image_ND[image_of_text_M], "image_ND"), np.arange(len(text))
    i2t, t2i = ranks_of_pairs(image, text, row_M, row_M)
    return RetrievalRanks(i2t[0], t2i[0], i2t[1], t2i[1], image_of_text_M, len(text), len(text), "paired")


def ranks_of_pairs(image: "UnitRows", text: "UnitRows", image_P, text_P):
    """Rank of the best right item of every image and every caption, and the wrong items that tie with it.

    A tie counts against the model: rank = 1 + (wrong items whose score is that of the best right item or
    higher).

    Args:
        image, text: embeddings of both sides, on one device.
        image_P, text_P: int64 arrays, the pairs that are right, each once.

    Returns:
        `(rank_N, ties_N), (rank_M, ties_M)`, int64 arrays; what stands in no pair has a rank without meaning.
    """
    import torch

    sizes, device = (len(image), len(text)), image.device
    pair_P2 = torch.from_numpy(np.stack([image_P, text_P], axis=1)).to(device)
    score_P = torch.cat([(image[p[:, 0]] * text[p[:, 1]]).sum(1) for p in pair_P2.split(COLUMNS)])
    best, higher, at_least = [], [], []
    for side, size in enumerate(sizes):
        lowest = torch.full((size,), -torch.inf, dtype=score_P.dtype, device=device)
        best.append(lowest.scatter_reduce(0, pair_P2[:, side], score_P, "amax"))
        higher.append(torch.zeros(size, dtype=torch.int64, device=device))
        at_least.append(torch.zeros(size, dtype=torch.int64, device=device))
    for top in range(0, sizes[0], ROWS):
        image_nD = image[top : top + ROWS]
        pair_p2 = pair_P2[(pair_P2[:, 0] >= top) & (pair_P2[:, 0] < top + ROWS)]
        for left in range(0, sizes[1], COLUMNS):
            score_nm = image_nD @ text[left : left + COLUMNS].T
            here_p2 = pair_p2[(pair_p2[:, 1] >= left) & (pair_p2[:, 1] < left + COLUMNS)]
            score_nm[here_p2[:, 0] - top, here_p2[:, 1] - left] = -torch.inf  # wrong items alone are counted
            for side, start in enumerate((top, left)):
                part = slice(start, start + score_nm.shape[side])
                best_q = best[side][part].unsqueeze(1 - side)
                higher[side][part] += (score_nm > best_q + TIE).sum(1 - side)
                at_least[side][part] += (score_nm >= best_q - TIE).sum(1 - side)
    higher, at_least = ([count.cpu().numpy() for count in both] for both in (higher, at_least))
    return tuple((1 + least, least - more) for least, more in zip(at_least, higher))


class UnitRows:
    """Rows of an embedding matrix at unit length: `rows[10:20]` is a float64 tensor (10, D).

    Args:
        embedding: `(R, D)` tensor or array of any float dtype; a tensor stays on its device.
        name: what error messages call it.

    Raises:
        ValueError: not a float matrix, empty, NaN or infinite values, a row of zeros.
    """

    def __init__(self, embedding, name: str):
        import torch

        if not isinstance(embedding, torch.Tensor):
            embedding = np.asarray(embedding)
        of_floats = getattr(embedding, "is_floating_point", lambda: embedding.dtype.kind == "f")
        if not of_floats():
            raise ValueError(
                f"{name}: expected a floating-point dtype, found {embedding.dtype}; convert the embeddings"
                " to float32"
            )
        if embedding.ndim != 2 or 0 in embedding.shape:
            raise ValueError(
                f"{name}: expected a matrix (rows, width) with at least one row and column, found shape"
                f" {tuple(embedding.shape)}; pass one embedding per row"
            )
        self._embedding, self.width = embedding, embedding.shape[1]
        starts = range(0, len(embedding), COLUMNS)
        length_R = torch.cat([self._read(slice(start, start + COLUMNS)).norm(dim=1) for start in starts])
        self.device = length_R.device
        bad_R = ~(length_R.isfinite() & (length_R > 0))
        if bad_R.any():
            first = bad_R.nonzero()[:5, 0].tolist()
            raise ValueError(
                f"{name}: expected finite, non-zero rows, found {int(bad_R.sum())} of {len(bad_R)} rows NaN,"
                f" infinite or zero (first: {first}); look for a diverged model, leave empty items out"
            )

    def __len__(self) -> int:
        return len(self._embedding)

    def __getitem__(self, rows):
        row_rD = self._read(rows)
        return row_rD / row_rD.norm(dim=1, keepdim=True)

    def _read(self, rows):
        import torch

        if isinstance(self._embedding, torch.Tensor):
            return self._embedding[rows].detach().double()
        rows = rows if isinstance(rows, slice) else np.asarray(rows)  # a tensor of one would be a number
        return torch.from_numpy(np.array(self._embedding[rows], dtype=np.float64))


def _checked(image_ND, text_MD, image_of_text_M):
    """Inputs as rows of unit length and an int64 map, or a ValueError."""
    image, text = UnitRows(image_ND, "image_ND"), UnitRows(text_MD, "text_MD")
    if image.width != text.width:
        raise ValueError(
            f"image_ND and text_MD: expected one embedding width, found {image.width} and {text.width};"
            " take both from the same model"
        )
    return image, text, checked_map(image_of_text_M, len(image), len(text))


def checked_map(image_of_text_M, images: int, texts: int) -> np.ndarray:
    """`image_of_text_M` as an int64 array.

    Raises:
        ValueError: not `texts` integers in 0..images-1, or an image without any caption.
    """
    if hasattr(image_of_text_M, "cpu"):
        image_of_text_M = image_of_text_M.cpu()
    image_of_text_M = np.asarray(image_of_text_M)
    if image_of_text_M.shape != (texts,) or image_of_text_M.dtype.kind not in "iu":
        raise ValueError(
            f"image_of_text_M: expected {texts} integers, one image index per caption, found shape"
            f" {image_of_text_M.shape} of {image_of_text_M.dtype}"
        )
    image_of_text_M = image_of_text_M.astype(np.int64)
    low, high = int(image_of_text_M.min()), int(image_of_text_M.max())
    if low < 0 or high >= images:
        raise ValueError(
            f"image_of_text_M: expected image indices in 0..{images - 1}, found {low}..{high};"
            " they count rows of image_ND from 0"
        )
    missing = np.flatnonzero(np.bincount(image_of_text_M, minlength=images) == 0)
    if len(missing):
        raise ValueError(
            f"image_of_text_M: expected a caption for every image, found {len(missing)} of {images} images"
            f" without one (first: {missing[:5].tolist()}); leave them out of image_ND and renumber the map"
        )
    return image_of_text_M
