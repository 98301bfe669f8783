"""Tokenizers behind one small interface: a batch of captions → token ids and lengths, and back.

A tokenizer is a vocabulary and a rule that splits text; it is saved with a run as plain JSON
(`state`) and restored from it (`from_state`), so an evaluation never depends on what the code
would build today.  Vocabularies are learned from training captions only.

Shapes: B captions, L positions.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

REFERENCE_CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?'-"  # 33: REFERENCE §1
PADDING, UNKNOWN = "<pad>", "<unk>"
KINDS = ("char", "char-reference", "word")


class Tokenizer:
    """A closed vocabulary over lower-cased text.

    Attributes:
        kind: `char-reference` (33 fixed characters; 0 is both padding and unknown), `char` (the
            characters of the training captions; padding 0, unknown 1) or `word` (words and
            punctuation of the training captions, most frequent first; padding 0, unknown 1).
        vocabulary: the tokens in the order of their ids, the special ones first.
    """

    def __init__(self, kind: str, vocabulary: Sequence[str]):
        if kind not in KINDS:
            raise ValueError(f"tokenizer: expected one of {', '.join(KINDS)}, found {kind!r}")
        self.kind = kind
        self.vocabulary = tuple(vocabulary)
        self._id = {token: i for i, token in enumerate(self.vocabulary)}
        self._unknown = self._id.get(UNKNOWN, 0)

    @property
    def size(self) -> int:
        """Number of token ids, padding included."""
        return len(self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over kind and vocabulary: equal if and only if all captions encode alike."""
        return hashlib.sha256(json.dumps(self.state).encode()).hexdigest()[:16]

    @property
    def state(self) -> dict:
        """What `from_state` needs, as JSON types."""
        return {"kind": self.kind, "vocabulary": list(self.vocabulary)}

    @classmethod
    def from_state(cls, state: dict) -> "Tokenizer":
        """The tokenizer that `state` was taken from."""
        return cls(state["kind"], state["vocabulary"])

    def split(self, caption: str) -> list[str]:
        """The caption as tokens, known or not."""
        text = caption.lower()
        return re.findall(r"[^\W_]+|[^\w\s]|_", text) if self.kind == "word" else list(text)

    def encode(self, captions: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (B, max_tokens) int64, padded with 0, and lengths (B,) int64; longer captions are cut."""
        tokens_BL = np.zeros((len(captions), max_tokens), dtype=np.int64)
        length_B = np.zeros(len(captions), dtype=np.int64)
        for b, caption in enumerate(captions):
            ids = [self._id.get(token, self._unknown) for token in self.split(caption)[:max_tokens]]
            tokens_BL[b, : len(ids)] = ids
            length_B[b] = len(ids)
        return tokens_BL, length_B

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without padding; unknown tokens read `<unk>`.

        Lossless for `char` up to case; `word` puts one space between tokens; `char-reference` cannot
        tell unknown from padding, and leaves out both.
        """
        glue = " " if self.kind == "word" else ""
        return glue.join(self.vocabulary[i] for i in ids if self.vocabulary[i] != PADDING)


def build_tokenizer(kind: str, training_captions: Iterable[str], min_count: int = 1) -> Tokenizer:
    """A tokenizer of `kind`, its vocabulary learned from the training captions.

    Args:
        kind: see `Tokenizer`.
        training_captions: of the training split, and of no other.
        min_count: `word` only: words seen less often are unknown.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "char-reference":
        return Tokenizer(kind, [PADDING, *REFERENCE_CHARACTERS])
    splitter = Tokenizer(kind, [])
    count = Counter(token for caption in training_captions for token in splitter.split(caption))
    if kind == "char":
        return Tokenizer(kind, [PADDING, UNKNOWN, *sorted(count)])
    frequent = sorted((token for token, n in count.items() if n >= min_count), key=lambda t: (-count[t], t))
    return Tokenizer(kind, [PADDING, UNKNOWN, *frequent])
