"""CLIP's tokenizer as open_clip ships it: 49,408 lower-case BPE tokens, nothing to learn or download.

Radford et al. (2021), "Learning Transferable Visual Models From Natural Language Supervision", §2.4.

A caption is start token, text, end token; one that is cut keeps its end token, from which CLIP reads
the embedding.  Padding is 0, as in CLIP, where 0 is also the token `!` inside a word: the length, not
the id, tells padding from text.
"""

import gzip
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

from mmlib.data.tokenizers.base import Tokenizer

VOCABULARY = 49_408  # 2 x 256 bytes (inside a word and at its end), 48,894 merges, start and end


class ClipTokenizer(Tokenizer):
    """CLIP's BPE.

    Args:
        context_length: most tokens that its text encoder can read; None: no limit.
    """

    kind = "clip"

    def __init__(self, context_length: int | None = None):
        from open_clip.tokenizer import SimpleTokenizer

        self._library = SimpleTokenizer()
        self.context_length = context_length

    @classmethod
    def restored(cls, state: dict) -> "ClipTokenizer":
        """The tokenizer that `state` was taken from.

        Raises:
            ValueError: the installed open_clip has other merges.
        """
        if state["merges_sha256"] != merges_sha256():
            raise ValueError(
                f"expected CLIP's merges with SHA-256 {state['merges_sha256']}, found {merges_sha256()} in"
                " the installed open_clip: token ids would mean other text; install the open_clip of the"
                " run's environment.json"
            )
        return cls(state["context_length"])

    @property
    def size(self) -> int:
        """Number of token ids, padding included."""
        return self._library.vocab_size

    @property
    def state(self) -> dict:
        """What `from_state` needs, as JSON types: the vocabulary itself comes with open_clip."""
        return {
            "kind": self.kind,
            "merges_sha256": merges_sha256(),
            "context_length": self.context_length,
        }

    def token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The ids of each caption without padding; the last one is always the end token."""
        start, end = self._library.sot_token_id, self._library.eot_token_id
        text = (self._library.encode(caption) for caption in captions)
        return [[*[start, *ids][: max_tokens - 1], end] for ids in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text between start and end token, in lower case, words and marks a space apart."""
        ids = [int(i) for i in ids]
        start, end = self._library.sot_token_id, self._library.eot_token_id
        # What follows the last end token is padding.
        last = len(ids) - 1 - ids[::-1].index(end) if end in ids else len(ids)
        return self._library.decode(ids[1 if ids[:1] == [start] else 0 : last]).strip()


@cache
def merges_sha256() -> str:
    """SHA-256 of the merges that open_clip ships, unpacked."""
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe()) as file:
        return hashlib.sha256(file.read()).hexdigest()
