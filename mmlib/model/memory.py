"""A block of learned memory slots that an item reads by attention, and may write at test time.

Shapes: B items, S slots, D width, H heads, K slots written at once.
"""

import torch
from torch import nn
from torch.nn import functional as F

WRITE_RATE = 0.1  # eta of the gated step, as in the reference experiment


class MemoryBlock(nn.Module):
    """`slots` learned vectors; reading is attention with the item as query and the slots as keys and values.

    Args:
        slots: S, number of slots.
        width: D.
        heads: attention heads; must divide D.
        write_top: K, how many of the most similar slots one write changes; 0 leaves the writing
            networks out (they get no gradient in training, so they would be dead weight).
    """

    def __init__(self, slots: int, width: int, heads: int, write_top: int = 0):
        super().__init__()
        self.slots_SD = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.write_top = min(write_top, slots)
        if write_top:
            self.write_gate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
            self.write_content = nn.Sequential(
                nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width)
            )

    def forward(self, item_BD: torch.Tensor) -> torch.Tensor:
        """LayerNorm(attended + item), (B, D)."""
        return self.read(item_BD)[0]

    def read(self, item_BD: torch.Tensor, weights: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Like `forward`, with the attention on the slots, mean over heads, (B, S) if `weights`.

        The slots are the same for every item, so the batch is passed as one sequence of B queries:
        the same numbers as B sequences of one query, with the slots projected once.
        """
        slots_1SD = self.slots_SD.unsqueeze(0)
        attended_1BD, weight_1BS = self.attention(
            item_BD.unsqueeze(0), slots_1SD, slots_1SD, need_weights=weights
        )
        return self.norm(attended_1BD[0] + item_BD), weight_1BS[0] if weights else None

    @torch.no_grad()
    def write(self, content_BD: torch.Tensor) -> torch.Tensor:
        """Moves the K slots most similar to the batch's mean one gated step towards new content.

        slot <- slot·(1 − eta·g) + eta·g·u, with g (sigmoid) and u two small networks of [slot, content].

        Returns:
            Indices of the slots written, (K,).

        Raises:
            RuntimeError: the block was built without writing networks.
        """
        if not self.write_top:
            raise RuntimeError("this memory block cannot be written: build the model with memory_write=True")
        content_D = content_BD.mean(0)
        similarity_S = F.cosine_similarity(self.slots_SD, content_D.unsqueeze(0), dim=-1)
        top_K = similarity_S.topk(self.write_top).indices
        slot_KD = self.slots_SD[top_K]
        pair_KE = torch.cat([slot_KD, content_D.expand_as(slot_KD)], dim=-1)
        gate_KD = torch.sigmoid(self.write_gate(pair_KE))
        step_KD = WRITE_RATE * gate_KD
        self.slots_SD[top_K] = slot_KD * (1 - step_KD) + step_KD * self.write_content(pair_KE)
        return top_K
