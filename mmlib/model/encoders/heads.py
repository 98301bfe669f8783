"""Heads: from features to the latent's width.

Shapes: B items, F feature channels, P positions, Q queries, D latent width.
"""

import torch
from torch import nn

LEAST_DEVIATION = 0.1  # of a channel, over the mean deviation of all
QUERIES = 4  # of the attention pooling: a few, so that one vector can hold several things of a picture


class Standardise(nn.Module):
    """Features minus their mean over their deviation, channel by channel, as some of them have it.

    The features of a backbone differ in scale from channel to channel; a head that sees them as they are
    learns from the few large ones.  The identity until `fit` was called.

    Args:
        features: F.
    """

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("deviation_F", torch.ones(features))

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """Takes mean and deviation from features (…, F), such as those of some training items."""
        rows_RF = features.reshape(-1, features.shape[-1]).float()
        self.mean_F.copy_(rows_RF.mean(0))
        deviation_F = rows_RF.std(0)
        # A channel that hardly ever changes must not become the loudest where it does.
        floor = LEAST_DEVIATION * deviation_F.mean() + torch.finfo(torch.float32).tiny
        self.deviation_F.copy_(deviation_F.clamp(min=floor))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(…, F) → (…, F)."""
        return (features - self.mean_F) / self.deviation_F


class PooledHead(nn.Module):
    """One vector per item: standardised features, dropout, Linear, LayerNorm.

    Args:
        features: F.
        width: D.
        dropout: probability.
    """

    def __init__(self, features: int, width: int, dropout: float):
        super().__init__()
        self.standardise = Standardise(features)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(features, width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, feature_BF: torch.Tensor) -> torch.Tensor:
        """(B, F) → (B, D)."""
        return self.out_norm(self.project(self.dropout(self.standardise(feature_BF))))


class AttentionHead(nn.Module):
    """Learned queries attend to an item's positions; what they read is joined and brought to D.

    Attention pooling as in Set Transformer (Lee et al. 2019, §3.2, PMA), with one layer.

    Args:
        features: F.
        width: D.
        heads: of the attention; must divide D.
        dropout: of positions and of what was read, probability.
    """

    def __init__(self, features: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.standardise = Standardise(features)
        self.dropout = nn.Dropout(dropout)
        self.position = nn.Linear(features, width)
        self.query_QD = nn.Parameter(torch.randn(QUERIES, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.read_norm = nn.LayerNorm(width)
        self.project = nn.Linear(QUERIES * width, width)
        self.out_norm = nn.LayerNorm(width)

    def forward(self, feature_BPF: torch.Tensor) -> torch.Tensor:
        """(B, P, F) → (B, D)."""
        position_BPD = self.position(self.dropout(self.standardise(feature_BPF)))
        query_BQD = self.query_QD.expand(len(feature_BPF), -1, -1)
        read_BQD, _ = self.attention(query_BQD, position_BPD, position_BPD, need_weights=False)
        joined_BE = self.dropout(self.read_norm(read_BQD)).flatten(1)
        return self.out_norm(self.project(joined_BE))


def build_head(feature_shape: tuple[int, ...], width: int, heads: int, dropout: float) -> nn.Module:
    """The head for features of this shape, (F,) or (P, F)."""
    if len(feature_shape) == 1:
        return PooledHead(feature_shape[0], width, dropout)
    return AttentionHead(feature_shape[1], width, heads, dropout)
