"""Two light text encoders over token ids, trained from scratch: recurrent, and a mean of word vectors.

Shapes: B captions, L tokens, D width.  Padding has no part in either.
"""

import torch
from torch import nn

from mmlib.model.encoders.base import Encoder
from mmlib.model.encoders.transformer import real_positions

TOKEN_DEVIATION = 0.1  # of the first token vectors


class GRUEncoder(Encoder):
    """Word vectors read by a GRU in both directions; mean and maximum over positions, LayerNorm, Linear.

    The backward GRU reads each caption's own tokens from the last to the first: the same numbers as
    packed sequences, without lengths on the host.

    Args:
        vocabulary: number of token ids, padding included.
        width: D, also of the word vectors and of each direction's state.
        dropout: of word vectors and of what is pooled, probability.
    """

    def __init__(self, vocabulary: int, width: int, dropout: float):
        super().__init__()
        self.width = width
        self.token = _token_vectors(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.ahead = nn.GRU(width, width, batch_first=True)
        self.back = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        real_BL, length_B = real_positions(tokens_BL, length_B)
        x_BLD = self.dropout(self.token(tokens_BL))
        place_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        mirror_BL = torch.where(real_BL, length_B[:, None] - 1 - place_L, place_L)
        ahead_BLD, _ = self.ahead(x_BLD)
        back_BLD, _ = self.back(_gather(x_BLD, mirror_BL))
        state_BLE = torch.cat([ahead_BLD, _gather(back_BLD, mirror_BL)], dim=-1)
        mean_BE = (state_BLE * real_BL[..., None]).sum(1) / length_B[:, None]
        lowest = torch.finfo(state_BLE.dtype).min
        highest_BE = state_BLE.masked_fill(~real_BL[..., None], lowest).amax(1)
        return self.project(self.dropout(self.norm(torch.cat([mean_BE, highest_BE], dim=-1))))


def _token_vectors(vocabulary: int, width: int) -> nn.Embedding:
    """Small first vectors: those of torch's own size are hardly moved by an adaptive optimizer's steps."""
    token = nn.Embedding(vocabulary, width)
    nn.init.normal_(token.weight, std=TOKEN_DEVIATION)
    return token


def _gather(x_BLD: torch.Tensor, place_BL: torch.Tensor) -> torch.Tensor:
    return x_BLD.gather(1, place_BL[..., None].expand_as(x_BLD))


class WordsEncoder(Encoder):
    """Mean of the token vectors, LayerNorm, and a feed-forward network; the order of words is lost.

    Args:
        vocabulary: number of token ids, padding included.
        width: D, also of the token vectors.
        mlp_ratio: hidden width over D.
        dropout: of the mean and of the hidden layer, probability.
    """

    def __init__(self, vocabulary: int, width: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.width = width
        self.token = _token_vectors(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * width, width),
        )

    def forward(self, tokens_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and the number of real tokens of each (B,) → (B, D)."""
        real_BL, length_B = real_positions(tokens_BL, length_B)
        mean_BD = (self.token(tokens_BL) * real_BL[..., None]).sum(1) / length_B[:, None]
        return self.feed_forward(self.norm(mean_BD))
