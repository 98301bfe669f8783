"""The triplet loss of VSE++: a margin between the right pair and the hardest negative of the batch.

Shapes: R queries, B pairs of the whole batch.
"""

import torch
from torch.nn import functional as F

from mmlib.model.losses.base import Loss


class TripletLoss(Loss):
    """Per pair: max over captions [m + s(i, c') − s(i, c)]₊ + max over images [m + s(i', c) − s(i, c)]₊.

    Faghri et al. 2018 (VSE++), eq. 6, s the cosine similarity.  Both directions are summed as there;
    the batch is averaged, where their code sums it: for plain SGD, the rate for a batch of B is
    B times theirs.  A row without negatives costs 0.

    Hardest negatives of an untrained network lead many runs to the one point where all embeddings are
    equal.  So the first epochs take the mean over all negatives in place of their maximum: eq. 5
    (VSE0), which sums them, over their number, so that the loss keeps its scale.

    Args:
        margin: m, of cosine similarities (VSE++: 0.2).
        hardest_after_epochs: epochs, fractions allowed, before the hardest negative alone counts.
        identity_positives: captions of the same image are never negatives.  Off, they are.

    Raises:
        ValueError: the margin is not greater than 0, or the epochs are below 0.
    """

    def __init__(
        self, margin: float = 0.2, hardest_after_epochs: float = 1.0, identity_positives: bool = True
    ):
        super().__init__(identity_positives, share=1.0)
        if margin <= 0:
            raise ValueError(f"margin must be greater than 0, found {margin}")
        if hardest_after_epochs < 0:
            raise ValueError(f"hardest_after_epochs must be 0 or more, found {hardest_after_epochs}")
        self.margin = margin
        self.hardest_after_epochs = hardest_after_epochs
        self.set_progress(0.0)

    def set_progress(self, epochs_done: float) -> None:
        """Takes the hardest negatives from `hardest_after_epochs` on, the mean over all before."""
        self.hardest = epochs_done >= self.hardest_after_epochs

    def _cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        own_R1 = sim_RB.gather(1, own_R[:, None])
        cost_RB = F.relu(self.margin + sim_RB - own_R1).masked_fill(positive_RB, 0)
        if self.hardest:
            return cost_RB.amax(1)
        return cost_RB.sum(1) / (~positive_RB).sum(1).clamp(min=1)
