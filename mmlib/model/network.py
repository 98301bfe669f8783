"""The multimodal memory network: both modalities end in one central latent, compared by cosine.

As published (`MemoryNetwork`):

Image → ViT → image memory ┐
                           ├→ fusion (presence bits, type embeddings) → central memory → feedback → latent
Caption → text → text memory ┘

An absent modality enters the fusion as a zero vector with presence bit 0, so images alone,
captions alone, and pairs all pass through the same weights.

With a memory that is read sharply (`CosineMemoryNetwork`) both encoders read one `CosineMemory`, and nothing
else follows.  Without a memory the two encoders stand alone (`DualEncoder`), to measure what one is worth.

An encoder around a pretrained backbone ends in a trained head (`build_head`).

Shapes: B items, D latent width, S slots, H heads, E = D / H, K slots written at once, F feature channels,
P positions, Q queries.
"""

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WRITE_RATE = 0.1  # eta of the gated step, as in the reference experiment
CENTRAL_WRITE_TOP, MODALITY_WRITE_TOP = 8, 4  # slots changed by one test-time write (reference)
COSINE_TEMPERATURE = 0.05  # of a cosine memory's first reads; half of the entropy is gone at 128 slots
MODALITIES = ("image", "text")
LEAST_DEVIATION = 0.1  # of a channel, over the mean deviation of all
QUERIES = 4  # of the attention pooling: a few, so that one vector can hold several things of a picture


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
        """Like `forward`, with the attention of each head on the slots, (B, H, S) if `weights`.

        The slots are the same for every item, so the batch is passed as one sequence of B queries:
        the same numbers as B sequences of one query, with the slots projected once.
        """
        slots_1SD = self.slots_SD.unsqueeze(0)
        attended_1BD, weight_1HBS = self.attention(
            item_BD.unsqueeze(0), slots_1SD, slots_1SD, need_weights=weights, average_attn_weights=False
        )
        return self.norm(attended_1BD[0] + item_BD), weight_1HBS[0].transpose(0, 1) if weights else None

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


class CosineMemory(nn.Module):
    """`slots` learned keys and values; an item reads the values whose keys point where its query does.

    The published memory cannot learn what to read: its keys start near 0, so every item reads every slot
    alike, and even attention gives the keys hardly any gradient.  Here queries and keys have unit length and
    a small temperature, so that reads differ between items from the first step on; and what is read is added
    to the item with a gain that starts at 0, so that a memory that is worth nothing costs nothing.

    Args:
        slots: S.
        width: D.
        heads: H; must divide D.  Each has its own part of queries, keys and values.
    """

    def __init__(self, slots: int, width: int, heads: int):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key_SHE = nn.Parameter(torch.randn(slots, heads, width // heads))
        self.value_SHE = nn.Parameter(torch.randn(slots, heads, width // heads))
        self.output = nn.Linear(width, width, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(COSINE_TEMPERATURE)))
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, item_BD: torch.Tensor) -> torch.Tensor:
        """item + gain · read, (B, D)."""
        read_BHE = torch.einsum("bhs,she->bhe", self.attention(item_BD), self.value_SHE)
        return item_BD + self.gain * self.output(read_BHE.flatten(1))

    def attention(self, item_BD: torch.Tensor) -> torch.Tensor:
        """What each head reads of each slot, (B, H, S); sums to 1 over the slots."""
        query_BHE = self.query(item_BD).view(-1, *self.key_SHE.shape[1:])
        cosine_BHS = torch.einsum(
            "bhe,she->bhs", F.normalize(query_BHE, dim=-1), F.normalize(self.key_SHE, dim=-1)
        )
        return (cosine_BHS / self.log_temperature.exp()).softmax(-1)


class DualEncoder(nn.Module):
    """Two encoders whose vectors are compared as they are: the network without its memory.

    Args:
        image_encoder: pixels (B, 3, H, W), or features of a frozen backbone → (B, D).
        text_encoder: token ids (B, L), or features, and lengths (B,) → (B, D).
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder

    def forward(
        self, image: torch.Tensor, tokens: torch.Tensor, length_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of B images and of B captions, each read alone, (B, D) and (B, D)."""
        return self.embed_images(image), self.embed_captions(tokens, length_B)

    def embed_images(self, image: torch.Tensor, write: bool = False) -> torch.Tensor:
        """Latent of images alone, (B, D), not normalised.

        `write` then writes the batch into the slots (test time, `memory_write=True` only); what is
        returned was read before the write.
        """
        return self._embed("image", self.image_encoder(image), write)

    def embed_captions(
        self, tokens: torch.Tensor, length_B: torch.Tensor, write: bool = False
    ) -> torch.Tensor:
        """Latent of captions alone, (B, D), not normalised; `write` as in `embed_images`."""
        return self._embed("text", self.text_encoder(tokens, length_B), write)

    def _embed(self, modality: str, encoded_BD: torch.Tensor, write: bool) -> torch.Tensor:
        return encoded_BD

    def slot_reads(self, modality: str, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """How images or captions read the slots, for analysis.

        Args:
            modality: `image` or `text`.
            inputs: of its encoder.

        Returns:
            For each memory that they read, attention of each item on its slots, (B, H, S): `image` or
            `text` (their modality's own memory) and `central_image` or `central_text`.  Empty without a
            memory.
        """
        encoder = self.image_encoder if modality == "image" else self.text_encoder
        with torch.no_grad():
            return self._reads(modality, encoder(*inputs))

    def _reads(self, modality: str, encoded_BD: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}


class CosineMemoryNetwork(DualEncoder):
    """Two encoders and one memory that both read.

    Args:
        image_encoder, text_encoder: as of `DualEncoder`.
        config: `latent_dim` (D), `memory_slots` (S) and `num_heads` of the reads, which divide D.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, config: Any):
        super().__init__(image_encoder, text_encoder)
        self.central_memory = CosineMemory(config.memory_slots, config.latent_dim, config.num_heads)

    def _embed(self, modality: str, encoded_BD: torch.Tensor, write: bool) -> torch.Tensor:
        return self.central_memory(encoded_BD)

    def _reads(self, modality: str, encoded_BD: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"central_{modality}": self.central_memory.attention(encoded_BD)}


class MemoryNetwork(DualEncoder):
    """The network of the reference experiment on any two encoders; every size is a parameter.

    Args:
        image_encoder, text_encoder: as of `DualEncoder`.
        config: `latent_dim` (D, width of everything), `num_heads` of the reads, which divide it, `dropout`
            of fusion and feedback, `memory_slots` (S of the central memory; each modality has S // 2),
            `feedback_steps` (rounds of z ← z + f(z), z ← central read of z) and `memory_write` (build the
            networks of the test-time write).
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, config: Any):
        super().__init__(image_encoder, text_encoder)
        D, S, heads = config.latent_dim, config.memory_slots, config.num_heads
        modality_top, central_top = (MODALITY_WRITE_TOP, CENTRAL_WRITE_TOP) if config.memory_write else (0, 0)
        self.modality_memory = nn.ModuleDict(
            {m: MemoryBlock(S // 2, D, heads, modality_top) for m in MODALITIES}
        )
        self.type_2D = nn.Parameter(torch.randn(2, D) * 0.02)
        self.fusion = nn.Sequential(
            nn.Linear(2 * D + 2, 2 * D), nn.LayerNorm(2 * D), nn.ReLU(), nn.Dropout(config.dropout),
            nn.Linear(2 * D, D), nn.LayerNorm(D),
        )  # fmt: skip
        self.central_memory = MemoryBlock(S, D, heads, central_top)
        self.feedback = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.ReLU(), nn.Dropout(config.dropout))
        self.feedback_steps = config.feedback_steps

    def _embed(self, modality: str, encoded_BD: torch.Tensor, write: bool) -> torch.Tensor:
        item_BD = self.modality_memory[modality](encoded_BD)
        latent_BD = self.centre({modality: item_BD})
        if write:
            self.modality_memory[modality].write(item_BD)
            self.central_memory.write(latent_BD)
        return latent_BD

    def centre(self, item_BD: dict[str, torch.Tensor]) -> torch.Tensor:
        """Fusion, central memory read and feedback, (B, D), for items of one modality or of both."""
        z_BD = self.central_memory(self._fuse(item_BD))
        for _ in range(self.feedback_steps):
            z_BD = self.central_memory(z_BD + self.feedback(z_BD))
        return z_BD

    def _fuse(self, item_BD: dict[str, torch.Tensor]) -> torch.Tensor:
        present = next(iter(item_BD.values()))
        absent_BD = torch.zeros_like(present)
        parts = [item_BD.get(m, absent_BD) + type_D for m, type_D in zip(MODALITIES, self.type_2D)]
        bits_2 = present.new_tensor([m in item_BD for m in MODALITIES])
        return self.fusion(torch.cat([*parts, bits_2.expand(present.shape[0], 2)], dim=-1))

    def _reads(self, modality: str, encoded_BD: torch.Tensor) -> dict[str, torch.Tensor]:
        """The central memory's is the first read after fusion."""
        item_BD, modality_BHS = self.modality_memory[modality].read(encoded_BD, weights=True)
        _, central_BHS = self.central_memory.read(self._fuse({modality: item_BD}), weights=True)
        return {modality: modality_BHS, f"central_{modality}": central_BHS}


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
        query_BQD = self.query_QD.expand(feature_BPF.shape[0], -1, -1)
        read_BQD, _ = self.attention(query_BQD, position_BPD, position_BPD, need_weights=False)
        joined_BE = self.dropout(self.read_norm(read_BQD)).flatten(1)
        return self.out_norm(self.project(joined_BE))


def build_head(feature_shape: tuple[int, ...], width: int, heads: int, dropout: float) -> nn.Module:
    """The head for features of this shape: of positions (P, F) attention, of one vector (F,) a projection."""
    if len(feature_shape) == 2:
        return AttentionHead(feature_shape[1], width, heads, dropout)
    parts = {
        "standardise": Standardise(feature_shape[0]),
        "dropout": nn.Dropout(dropout),
        "project": nn.Linear(feature_shape[0], width),
        "out_norm": nn.LayerNorm(width),
    }
    return nn.Sequential(OrderedDict(parts))
