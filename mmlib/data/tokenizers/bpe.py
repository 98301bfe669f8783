"""Byte-level byte-pair encoding (BPE), learned from the training captions with the `tokenizers` library.

Sennrich, Haddow, Birch (2016), "Neural Machine Translation of Rare Words with Subword Units", §3.2; on
bytes: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", §2.2.

Id 0 is padding and every other id is the library's plus one.  The library knows no special token, so
nothing that a caption says (`<pad>`, `<unk>`) can be taken for one; with all 256 bytes among the
tokens nothing is unknown, and case is kept: a caption comes back bit for bit.
"""

import os
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmlib.config import ParameterError
from mmlib.data.tokenizers.base import Tokenizer, whole_characters

# The library's threads are of little use here (one encodes 40,000 captions in about a second), and
# in a process that forks after they ran they warn, or hang the child.  A person's own setting wins.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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


SPECIAL = 1  # padding, id 0
LEAST_VOCABULARY = SPECIAL + 256
MIN_PAIRS = 2  # a pair seen once is no regularity: merging it would learn one caption by heart


class BpeTokenizer(Tokenizer):
    """Byte-level BPE.

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
