"""What every tokenizer does, and how one comes back from the JSON that is saved with a run.

An evaluation restores the tokenizer of its run (`restore_tokenizer`), and so never depends on what the
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
        size: number of token ids, padding included.
        state: what `restore_tokenizer` needs, as JSON types: the arguments of the class, and `kind`.
        padding_id: what fills a row behind its caption.
        unknown_id: what stands for everything that the vocabulary lacks; None: it lacks nothing.
        context_length: most tokens that the encoder this tokenizer belongs to can read; None: no limit.
    """

    kind: str
    size: int
    state: dict
    padding_id: int = 0
    unknown_id: int | None = None
    context_length: int | None = None

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


def whole_characters(text: str) -> str:
    """`text` as every library takes it: halves of a UTF-16 pair joined, single ones replaced by U+FFFD.

    JSON files may hold such halves (`"\\ud83d"`), which are no characters and have no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


MUCH = 0.05  # share of tokens or captions that calls for a warning
UNCUT = 1_000_000  # more tokens than any caption has


def count_losses(tokenizer: Tokenizer, captions: Sequence[str], max_tokens: int) -> dict:
    """Counts of a tokenizer's losses on captions that it was not learned from.

    Returns:
        `tokenizer` and `max_tokens`; `captions`, their `tokens` before cutting, special ones included, how
        many of these are `unknown`, how many captions are longer than `max_tokens` (`cut`), and the
        number of tokens of the `longest`.
    """
    tokens = unknown = cut = longest = 0
    for start in range(0, len(captions), CHUNK):
        chunk = [whole_characters(caption) for caption in captions[start : start + CHUNK]]
        for ids in tokenizer.token_ids(chunk, UNCUT):
            tokens += len(ids)
            unknown += list(ids).count(tokenizer.unknown_id)
            cut += len(ids) > max_tokens
            longest = max(longest, len(ids))
    return {
        "tokenizer": tokenizer.kind,
        "max_tokens": max_tokens,
        "captions": len(captions),
        "tokens": tokens,
        "unknown": unknown,
        "cut": cut,
        "longest": longest,
    }


def loss_shares(losses: dict) -> tuple[float, float]:
    """Shares of unknown tokens and of cut captions, each in 0..1."""
    return losses["unknown"] / max(losses["tokens"], 1), losses["cut"] / max(losses["captions"], 1)


def losses_warning(losses: dict) -> str:
    """What to do where much is lost, `""` where it is not."""
    unknown, cut = loss_shares(losses)
    warnings = []
    if unknown > MUCH:
        own = losses["tokenizer"] == "encoder"
        other = "another text_encoder" if own else "tokenizer: bpe, which knows every text"
        warnings.append(
            f"{100 * unknown:.1f} % of the validation captions' tokens are unknown to the tokenizer"
            f" {losses['tokenizer']!r}, and all unknown tokens look the same to the model: take {other}"
        )
    if cut > MUCH:
        warnings.append(
            f"{100 * cut:.1f} % of the validation captions are cut at max_tokens {losses['max_tokens']}:"
            f" raise max_tokens (the longest has {losses['longest']:,}), as far as the text encoder can read"
        )
    return "".join(f"Warning: {warning}. " for warning in warnings).rstrip()
