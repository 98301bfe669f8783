"""Losses of the cosine similarities between the images and captions of a batch.

All are called alike, `loss(image_BD, text_BD, image_id_B, rows)`, and can be shared between processes.
To add one: a class with `cost` and a line in `LOSSES` here, and its name in `LossConfig.loss`.

Shapes: B pairs of the whole batch, R ≤ B pairs (queries) that this process answers for, D width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mmlib.config import LossConfig

# Clamp of a learned 1/temperature at 100: Radford et al. 2021 (CLIP), section 2.5.
LOG_MAX_SCALE = math.log(100.0)


class Loss(nn.Module):
    """A loss of both directions, image → caption and caption → image, query by query.

    A subclass gives `cost`, the cost of each query of one direction.

    Args:
        identity_positives: captions of one image are never each other's negatives.
        share: factor of each direction in the sum over both.
        temperature: what similarities are divided by, fixed, or the first one of a learned temperature.
        learned: learn log(1/temperature).
    """

    log_max = math.inf  # of log(1/temperature)

    def __init__(
        self, identity_positives: bool, share: float, temperature: float | None = None, learned: bool = False
    ):
        super().__init__()
        self.identity_positives, self.share = identity_positives, share
        self.log_scale = None
        if temperature is not None:
            self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned)

    @property
    def temperature(self) -> float | None:
        """What similarities are divided by, where a loss does that."""
        return None if self.log_scale is None else math.exp(-min(self.log_scale.item(), self.log_max))

    def set_progress(self, epochs_done: float) -> None:
        """Tells how many epochs, with fractions, lie behind; most losses are the same throughout."""

    def scale(self) -> torch.Tensor | float:
        """Factor of the cosine similarities, 1/temperature."""
        if self.log_scale is None:
            return 1.0
        with torch.no_grad():  # the weight itself: a clamp in the graph has no gradient to return by
            self.log_scale.clamp_(max=self.log_max)
        return self.log_scale.exp()

    def cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        """Cost of each query, (R,).

        Args:
            sim_RB: scaled similarities of the queries with the whole batch.
            positive_RB: which items are positives of the query.
            own_R: index of each query's own pair.
        """
        raise NotImplementedError

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
        rows = slice(None) if rows is None else rows
        is_whole = rows.indices(len(image_BD)) == (0, len(image_BD), 1)
        with torch.autocast(image_BD.device.type, enabled=False):
            image_BD, text_BD, scale = _unit(image_BD), _unit(text_BD), self.scale()
            pair_B = torch.arange(len(image_BD), device=image_BD.device)
            identity_B = image_id_B if self.identity_positives else pair_B
            positive_RB = identity_B[rows, None] == identity_B[None, :]

            i2t_RB = (scale * image_BD[rows]) @ text_BD.T
            t2i_RB = i2t_RB.T if is_whole else (scale * text_BD[rows]) @ image_BD.T
            i2t_R, t2i_R = (self.cost(sim_RB, positive_RB, pair_B[rows]) for sim_RB in (i2t_RB, t2i_RB))
            return self.share * (i2t_R.sum() / len(pair_B) + t2i_R.sum() / len(pair_B))


def _unit(x_BD: torch.Tensor) -> torch.Tensor:
    return F.normalize(x_BD.to(torch.promote_types(x_BD.dtype, torch.float32)), dim=-1)


class InfoNCE(Loss):
    """Cross-entropy of cosine similarities over a temperature, both directions, averaged.

    In nats: ln B for B unrelated pairs.  van den Oord et al. 2018 (InfoNCE); the symmetric form is
    Radford et al. 2021, section 2.3.

    Args:
        temperature: the fixed temperature, or the first one of a learned temperature.
        learned: learn log(1/temperature), with 1/temperature clamped to 100; a fixed one may be higher.
        identity_positives: every caption of a row's image is a positive of it, and each positive is
            weighed against captions of other images alone (SINCERE: Feeney & Hughes 2023).
            Targets that are uniform over all of them (Khosla et al. 2020, L_out) would not do: rows
            of one image are alike, which makes that loss the very same as without the option.
            Off, only the pair itself is positive and the rest are negatives, even another caption of
            the same image (REFERENCE §3.8).
        label_smoothing: ε; the target of a positive is 1 − ε on itself plus ε spread evenly over
            itself and its negatives (Szegedy et al. 2016, section 7).  The other positives of the row
            have no part in it, as they have none in the softmax of this one.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learned: bool = False,
        identity_positives: bool = True,
        label_smoothing: float = 0.0,
    ):
        super().__init__(identity_positives, 0.5, temperature, learned)
        self.log_max = LOG_MAX_SCALE if learned else math.inf
        self.label_smoothing = label_smoothing

    def cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        """Mean over positives p of -log(e^p / (e^p + sum over the row's negatives n of e^n))."""
        # The lowest number, not -inf: a row without negatives then costs 0 and has a gradient of 0.
        lowest = torch.finfo(sim_RB.dtype).min
        negatives_R1 = sim_RB.masked_fill(positive_RB, lowest).logsumexp(1, keepdim=True)
        cost_RB = F.softplus(negatives_R1 - sim_RB)
        if self.label_smoothing:
            sum_R1 = sim_RB.masked_fill(positive_RB, 0).sum(1, keepdim=True)
            mean_RB = (sim_RB + sum_R1) / (1 + (~positive_RB).sum(1, keepdim=True))  # with the negatives
            cost_RB = cost_RB + self.label_smoothing * (sim_RB - mean_RB)
        return (cost_RB * positive_RB).sum(1) / positive_RB.sum(1)


class SigmoidLoss(Loss):
    """−1/B · Σ_i Σ_j log σ(z_ij (t x_i·y_j + b)), z = +1 for positives and −1 for the rest.

    Zhai et al. 2023 (SigLIP), section 3.2 and Algorithm 1, cosine similarities x_i·y_j and t = exp(t').
    A pair (i, j) is met twice, as image i's caption and as caption j's image; each time half of its cost
    is counted, which makes the total that of the paper.

    Args:
        temperature: 1/t, fixed, or the first one of a learned temperature (SigLIP: 0.1).
        learned: learn t', without a clamp.
        bias: first value of b, which is always learned (SigLIP: −10): most pairs are negatives, and a
            bias of 0 would make the first steps a correction of that alone.
        identity_positives: captions of one image are positives of each of its rows.
            Off, only the pair itself is, and the rest are negatives.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learned: bool = True,
        bias: float = -10.0,
        identity_positives: bool = True,
    ):
        super().__init__(identity_positives, 0.5, temperature, learned)
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        logit_RB = sim_RB + self.bias
        return -F.logsigmoid(torch.where(positive_RB, logit_RB, -logit_RB)).sum(1)


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
    """

    def __init__(
        self, margin: float = 0.2, hardest_after_epochs: float = 1.0, identity_positives: bool = True
    ):
        super().__init__(identity_positives, share=1.0)
        self.margin, self.hardest_after_epochs = margin, hardest_after_epochs
        self.set_progress(0.0)

    def set_progress(self, epochs_done: float) -> None:
        """Takes the hardest negatives from `hardest_after_epochs` on, the mean over all before."""
        self.hardest = epochs_done >= self.hardest_after_epochs

    def cost(self, sim_RB: torch.Tensor, positive_RB: torch.Tensor, own_R: torch.Tensor) -> torch.Tensor:
        own_R1 = sim_RB.gather(1, own_R[:, None])
        cost_RB = F.relu(self.margin + sim_RB - own_R1).masked_fill(positive_RB, 0)
        if self.hardest:
            return cost_RB.amax(1)
        return cost_RB.sum(1) / (~positive_RB).sum(1).clamp(min=1)


# Every loss by its name in the config.
LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "infonce": lambda c: InfoNCE(c.temperature, c.learn_temperature, c.identity_positives, c.label_smoothing),
    "sigmoid": lambda c: SigmoidLoss(
        c.temperature, c.learn_temperature, c.sigmoid_bias, c.identity_positives
    ),
    "triplet": lambda c: TripletLoss(c.margin, c.hardest_after_epochs, c.identity_positives),
}


def build_loss(config: LossConfig) -> Loss:
    """The loss that the config asks for."""
    return LOSSES[config.loss](config)


def load_learned(loss: Loss, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Goes on with what the parent's loss has learned; what is fixed here or was fixed there stays.

    A fixed temperature is a parameter of its phase, a learned one goes on from where it is.

    Args:
        loss: of the continued run.
        state: `state_dict()` of the parent's loss.
        config: flat parameters of the parent; those of a loss that are missing have their defaults.
    """
    known = {name: config[name] for name in LossConfig.model_fields if name in config}
    parent = build_loss(LossConfig(**known))
    if type(parent) is not type(loss):
        return
    for (name, own), theirs in zip(loss.named_parameters(), parent.parameters()):
        if own.requires_grad and theirs.requires_grad:
            own.data.copy_(state[name])
