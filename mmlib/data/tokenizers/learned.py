"""Tokenizers learned from the training captions: characters, words, byte-level BPE."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mmlib.config import ParameterError
from mmlib.data.tokenizers.base import Tokenizer, whole_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

# The library's threads are of little use here (one encodes 40,000 captions in about a second), and
# in a process that forks after they ran they warn, or hang the child.  A person's own setting wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REFERENCE_CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?'-"  # 33: REFERENCE §1
PADDING, UNKNOWN = "<pad>", "<unk>"
SPECIAL = 1  # padding, id 0
LEAST_VOCABULARY = SPECIAL + 256
MIN_PAIRS = 2  # a pair seen once is no regularity: merging it would learn one caption by heart


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


def from_json(content: str) -> "LibraryTokenizer":
    """The library's tokenizer from its JSON, without the cutting and padding that the JSON may ask for.

    Raises:
        ValueError: no such JSON.
    """
    from tokenizers import Tokenizer as LibraryTokenizer

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
        vocabulary: token ids, padding included.  There are fewer where the captions run out of
            pairs that occur twice.

    Raises:
        ParameterError: a vocabulary with no room for padding and the 256 bytes.
    """
    if vocabulary < LEAST_VOCABULARY:
        raise ParameterError(
            f"bpe_vocabulary: expected at least {LEAST_VOCABULARY} (256 bytes and padding), found"
            f" {vocabulary}"
        )
    from tokenizers import Tokenizer as LibraryTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

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
