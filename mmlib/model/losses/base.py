"""What all losses share: cosine similarities of some rows of a batch with the whole batch.

Shapes: B pairs of the whole batch, R ≤ B pairs that this process answers for, D width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Loss(nn.Module):
    """A loss of both directions, image → caption and caption → image, row by row.

    A subclass gives `_cost`, the cost of each query of one direction, and may give `_scale`, a factor
    of the similarities.

    Args:
        identity_positives: captions of one image are never each other's negatives.
        share: factor of each direction in the sum over both.
    """

    temperature: float | None = None  # what similarities are divided by, where a loss does that

    def __init__(self, identity_positives: bool, share: float):
        super().__init__()
        self.identity_positives = identity_positives
        self.share = share

    def set_progress(self, epochs_done: float) -> None:
        """Tells how many epochs, with fractions, lie behind; most losses are the same throughout."""

    def forward(
        self,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        image_id_B: torch.Tensor,
        rows: slice | None = None,
    ) -> torch.Tensor:
        """The loss of `rows` over B: the values of slices that make up the batch sum to its mean.

        Only the similarities of these rows are computed.  Computed in float32 whatever the precision
        of the embeddings (float64 stays): at bf16 a similarity has three decimal digits, which a
        temperature of 0.07 magnifies fourteen times.

        Args:
            image_BD: image embeddings of the whole batch, any norm.
            text_BD: caption embeddings, row b the caption of image row b.
            image_id_B: which image each row shows, to find captions of the same image.
            rows: pairs that this process answers for; None: all.

        Raises:
            ValueError: the three do not have the same number of rows.
        """
        if not len(image_BD) == len(text_BD) == len(image_id_B):
            raise ValueError(
                "a batch needs as many captions and image ids as images: found"
                f" {len(image_BD)} images, {len(text_BD)} captions, {len(image_id_B)} ids"
            )
        with torch.autocast(image_BD.device.type, enabled=False):
            image_BD, text_BD = (_normalised(x) for x in (image_BD, text_BD))
            pair_B = torch.arange(len(image_BD), device=image_BD.device)
            identity_B = image_id_B if self.identity_positives else pair_B
            rows = slice(None) if rows is None else rows
            positive_RB = identity_B[rows, None] == identity_B[None, :]
            return self.share * sum(
                self._cost(sim_RB, positive_RB, pair_B[rows]).sum() / len(pair_B)
                for sim_RB in self._similarities(image_BD, text_BD, rows)
            )

    def _similarities(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of `rows` with all captions, and captions of `rows` with all images, scaled."""
        scale = self._scale()
        if rows.indices(len(image_BD)) == (0, len(image_BD), 1):
            sim_BB = _times(scale, image_BD) @ text_BD.T
            return sim_BB, sim_BB.T
        return (
            _times(scale, image_BD[rows]) @ text_BD.T,
            _times(scale, text_BD[rows]) @ image_BD.T,
        )

    def _scale(self) -> torch.Tensor | None:
        """Factor of the cosine similarities; None for 1."""
        return None

    def _cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        """Cost of each query, (R,).

        Args:
            sim_RB: scaled similarities of the queries with the whole batch.
            positive_RB: which items are positives of the query.
            own_R: index of each query's own pair.
        """
        raise NotImplementedError


def log_scale_parameter(temperature: float, learned: bool) -> nn.Parameter:
    """log(1/temperature), learned or not.

    Raises:
        ValueError: the temperature is not greater than 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be greater than 0, found {temperature}")
    return nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned)


def _normalised(x_BD: torch.Tensor) -> torch.Tensor:
    return F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=-1)


def _times(scale: torch.Tensor | None, x_RD: torch.Tensor) -> torch.Tensor:
    return x_RD if scale is None else scale * x_RD
