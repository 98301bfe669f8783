"""What every tokenizer does, and how one comes back from the JSON that is saved with a run.

An evaluation restores the tokenizer of its run (`from_state`), and so never depends on what the
code would build today.

Shapes: B captions, L positions.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

CHUNK = 8192  # captions encoded at once: what a library returns for each takes kilobytes


class Tokenizer(ABC):
    """Captions to token ids and back.

    Attributes:
        kind: one of `mmlib.data.tokenizers.KINDS`.
        padding_id: what fills a row behind its caption.
        unknown_id: what stands for everything that the vocabulary lacks; None: it lacks nothing.
        context_length: most tokens that the encoder this tokenizer belongs to can read; None: no limit.
    """

    kind: str
    padding_id: int = 0
    unknown_id: int | None = None
    context_length: int | None = None

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of token ids, padding included."""

    @property
    @abstractmethod
    def state(self) -> dict:
        """What `from_state` needs, as JSON types, `kind` among them."""

    @abstractmethod
    def token_ids(self, captions: Sequence[str], max_tokens: int) -> Sequence[Sequence[int]]:
        """The ids of each caption without padding, at most `max_tokens` of them."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of one row of token ids, without padding."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the state: equal if and only if all captions encode alike."""
        return hashlib.sha256(json.dumps(self.state).encode()).hexdigest()[:16]

    def encode(self, captions: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and lengths of captions; longer captions are cut.

        Args:
            captions: B texts.
            max_tokens: L, special tokens included.

        Returns:
            Ids (B, L) int64, filled up with `padding_id` on the right, and lengths (B,) int64.

        Raises:
            ValueError: `max_tokens` is less than 1, or more than the encoder can read.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, found {max_tokens}")
        if self.context_length and max_tokens > self.context_length:
            raise ValueError(
                f"max_tokens: expected at most {self.context_length}, which is all that the text encoder"
                f" reads, found {max_tokens}; lower max_tokens"
            )
        tokens_BL = np.full((len(captions), max_tokens), self.padding_id, dtype=np.int64)
        length_B = np.zeros(len(captions), dtype=np.int64)
        for start in range(0, len(captions), CHUNK):
            chunk = [whole_characters(caption) for caption in captions[start : start + CHUNK]]
            for b, ids in enumerate(self.token_ids(chunk, max_tokens), start):
                tokens_BL[b, : len(ids)] = ids
                length_B[b] = len(ids)
        return tokens_BL, length_B

    @staticmethod
    def from_state(state: dict) -> "Tokenizer":
        """The tokenizer that `state` was taken from.

        Raises:
            ValueError: an unknown kind, a state that lacks a part, or a library here whose
                vocabulary is another than the one at the time.
        """
        from mmlib.data.tokenizers.build import restore

        return restore(state)


def whole_characters(text: str) -> str:
    """`text` as every library takes it: halves of a UTF-16 pair joined, single ones replaced by U+FFFD.

    JSON files may hold such halves (`"\\ud83d"`), which are no characters and have no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
