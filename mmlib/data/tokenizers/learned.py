"""What every tokenizer does and loses; those learned from the training captions: characters, words, BPE.

An evaluation restores the tokenizer of its run (`restore_tokenizer`), and so never depends on what the
code would build today.

Shapes: B captions, L positions.
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

# The library's threads are of little use here (one encodes 40,000 captions in about a second), and
# in a process that forks after they ran they warn, or hang the child.  A person's own setting wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHUNK = 8192  # captions encoded at once: what a library returns for each takes kilobytes
MUCH = 0.05  # share of tokens or captions that calls for a warning
UNCUT = 1_000_000  # more tokens than any caption has
REFERENCE_CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?'-"  # 33: REFERENCE §1
PADDING, UNKNOWN = "<pad>", "<unk>"
SPECIAL = 1  # padding, id 0
MIN_PAIRS = 2  # a pair seen once is no regularity: merging it would learn one caption by heart


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
            ValueError: `max_tokens` is more than the encoder can read.
        """
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


class ClosedTokenizer(Tokenizer):
    """A closed vocabulary over lower-cased text.

    Attributes:
        kind: `char-reference` (33 fixed characters; 0 is both padding and unknown), `char` (the
            characters of the training captions; padding 0, unknown 1) or `word` (words and
            punctuation of the training captions, most frequent first; padding 0, unknown 1).
        vocabulary: the tokens in the order of their ids, the special ones first.
    """

    def __init__(self, kind: str, vocabulary: Sequence[str]):
        self.kind = kind
        self.vocabulary = tuple(vocabulary)
        self._id = {token: i for i, token in enumerate(self.vocabulary)}
        self.unknown_id = self._id.get(UNKNOWN, 0)
        self.size = len(self.vocabulary)
        self.state = {"kind": kind, "vocabulary": list(vocabulary)}

    def token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The ids of each caption without padding, at most `max_tokens` of them."""
        get, unknown = self._id.get, self.unknown_id
        return [[get(token, unknown) for token in split_text(self.kind, c)[:max_tokens]] for c in captions]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without padding; unknown tokens read `<unk>`.

        Lossless for `char` up to case; `word` puts one space between tokens; `char-reference` cannot
        tell unknown from padding, and leaves out both.
        """
        glue = " " if self.kind == "word" else ""
        return glue.join(self.vocabulary[i] for i in ids if i != self.padding_id)


def split_text(kind: str, caption: str) -> list[str]:
    """The caption in lower case as words and punctuation marks (`word`), or as characters."""
    text = caption.lower()
    return re.findall(r"[^\W_]+|[^\w\s]|_", text) if kind == "word" else list(text)


def learn_closed(kind: str, training_captions: Iterable[str], min_count: int) -> ClosedTokenizer:
    """The vocabulary of the training captions: characters in their own order, words by frequency.

    Args:
        kind: `char`, `char-reference` (which learns nothing) or `word`.
        training_captions: of the training split, and of no other.
        min_count: `word` only: words seen less often are unknown.
    """
    if kind == "char-reference":
        return ClosedTokenizer(kind, [PADDING, *REFERENCE_CHARACTERS])
    count = Counter(
        token for caption in training_captions for token in split_text(kind, whole_characters(caption))
    )
    if kind == "char":
        return ClosedTokenizer(kind, [PADDING, UNKNOWN, *sorted(count)])
    frequent = sorted((token for token, n in count.items() if n >= min_count), key=lambda t: (-count[t], t))
    return ClosedTokenizer(kind, [PADDING, UNKNOWN, *frequent])


def from_json(content: str) -> LibraryTokenizer:
    """The library's tokenizer from its JSON, without the cutting and padding that the JSON may ask for.

    Raises:
        ValueError: no such JSON.
    """
    try:
        library = LibraryTokenizer.from_str(content)
    except Exception as error:  # the library raises Exception itself
        raise ValueError(
            f"expected the JSON of a tokenizer (tokenizer.json), found {content[:60]!r}: {error}; get the"
            " file again"
        ) from error
    library.no_truncation()
    library.no_padding()
    return library


class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding (BPE) by the `tokenizers` library.

    Sennrich, Haddow, Birch (2016), "Neural Machine Translation of Rare Words with Subword Units", §3.2; on
    bytes: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", §2.2.

    Id 0 is padding and every other id is the library's plus one.  The library knows no special token, so
    nothing that a caption says (`<pad>`, `<unk>`) can be taken for one; with all 256 bytes among the
    tokens nothing is unknown, and case is kept: a caption comes back bit for bit.

    Args:
        tokenizer: JSON of the library's tokenizer, whose ids begin at 0.
    """

    kind = "bpe"

    def __init__(self, tokenizer: str):
        self._library = from_json(tokenizer)
        self.size = SPECIAL + self._library.get_vocab_size()
        self.state = {"kind": self.kind, "tokenizer": tokenizer}

    def token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The ids of each caption without padding, at most `max_tokens` of them."""
        encodings = self._library.encode_batch_fast(captions, add_special_tokens=False)
        return [[SPECIAL + i for i in encoding.ids[:max_tokens]] for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without padding.

        Lossless; where a cut went through a character, the rest of it reads U+FFFD.
        """
        return self._library.decode([int(i) - SPECIAL for i in ids if i != self.padding_id])


def learn_bpe(training_captions: Iterable[str], vocabulary: int) -> BpeTokenizer:
    """BPE of the training captions; the same captions in any order give the same tokens and ids.

    Args:
        training_captions: of the training split, and of no other.
        vocabulary: token ids, padding and 256 bytes included.  There are fewer where the captions run out
            of pairs that occur twice.
    """
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - SPECIAL,
        min_frequency=MIN_PAIRS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(map(whole_characters, training_captions), trainer)
    return BpeTokenizer(library.to_str())


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
        "tokenizer": tokenizer.kind, "max_tokens": max_tokens, "captions": len(captions), "tokens": tokens,
        "unknown": unknown, "cut": cut, "longest": longest,
    }  # fmt: skip


def loss_shares(losses: dict) -> tuple[float, float]:
    """Shares of unknown tokens and of cut captions, each in 0..1."""
    return losses["unknown"] / max(losses["tokens"], 1), losses["cut"] / max(losses["captions"], 1)


def losses_warning(losses: dict) -> str:
    """What to do where much is lost, `""` where it is not."""
    unknown, cut = loss_shares(losses)
    warning = ""
    if unknown > MUCH:
        own = losses["tokenizer"] == "encoder"
        other = "another text_encoder" if own else "tokenizer: bpe, which knows every text"
        warning = (
            f"Warning: {100 * unknown:.1f} % of the validation captions' tokens are unknown to the tokenizer"
            f" {losses['tokenizer']!r}, and all unknown tokens look the same to the model: take {other}. "
        )
    if cut > MUCH:
        warning += (
            f"Warning: {100 * cut:.1f} % of the validation captions are cut at max_tokens"
            f" {losses['max_tokens']}: raise max_tokens (the longest has {losses['longest']:,}), as far as"
            " the text encoder can read. "
        )
    return warning.rstrip()
