"""Closed vocabularies over lower-cased text: characters, or words and punctuation."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from mmlib.data.tokenizers.base import Tokenizer, whole_characters

REFERENCE_CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,!?'-"  # 33: REFERENCE §1
PADDING, UNKNOWN = "<pad>", "<unk>"


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
