"""The tokenizer of a pretrained text encoder, whole in its state: no folder is needed to restore it."""

import json
from collections.abc import Callable, Iterable, Sequence

from tokenizers import Tokenizer as LibraryTokenizer

from mmlib.data.tokenizers.base import Tokenizer
from mmlib.data.tokenizers.library import from_json


class EncoderTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library with the ids that its encoder was trained on.

    Special tokens stand where the encoder wants them, and cut captions keep them.  Padding is on the
    right whatever the encoder's own habit: the lengths say where it begins.

    Args:
        content: JSON of the library's tokenizer (`tokenizer.json`).
        padding_id: the encoder's own.
        context_length: most tokens that the encoder can read; None: not known.
        clean: how open_clip prepares text for it (`lower`, `whitespace` or `canonicalize`); None: not
            at all.
        blank_id: a special token that open_clip blanks out with 0 (CLIPA's separator); None: none.
    """

    kind = "encoder"

    def __init__(
        self,
        content: str,
        padding_id: int,
        context_length: int | None = None,
        clean: str | None = None,
        blank_id: int | None = None,
    ):
        self._library = from_json(content)
        self._content = self._library.to_str()
        self.padding_id = padding_id
        self.unknown_id = _unknown_id(self._library, self._content)
        self.context_length = context_length
        self._clean, self._blank_id = clean, blank_id

    @classmethod
    def restored(cls, state: dict) -> "EncoderTokenizer":
        """The tokenizer that `state` was taken from."""
        return cls(
            state["tokenizer"],
            state["padding_id"],
            state["context_length"],
            state["clean"],
            state["blank_id"],
        )

    @property
    def size(self) -> int:
        """Number of token ids, padding included: the largest id and one."""
        return 1 + max(self.padding_id, *self._library.get_vocab(with_added_tokens=True).values())

    @property
    def state(self) -> dict:
        """What `from_state` needs, as JSON types."""
        return {
            "kind": self.kind,
            "tokenizer": self._content,
            "padding_id": self.padding_id,
            "context_length": self.context_length,
            "clean": self._clean,
            "blank_id": self._blank_id,
        }

    def token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The ids of each caption without padding, at most `max_tokens` of them."""
        clean = _clean_function(self._clean)
        # The library leaves the special tokens whole, so where they alone are too many it does not cut.
        self._library.enable_truncation(max_tokens)
        encodings = self._library.encode_batch_fast([clean(caption) for caption in captions])
        ids = [encoding.ids[:max_tokens] for encoding in encodings]
        return ids if self._blank_id is None else [self._blanked(row) for row in ids]

    def _blanked(self, ids: list[int]) -> list[int]:
        ids = [0 if i == self._blank_id else i for i in ids]
        while ids and ids[-1] == self.padding_id:
            ids.pop()
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without padding and special tokens, as the encoder's tokenizer puts it."""
        ids = [int(i) for i in ids]
        while ids and ids[-1] == self.padding_id:
            ids.pop()
        return self._library.decode(ids, skip_special_tokens=True)


def _unknown_id(library: LibraryTokenizer, content: str) -> int | None:
    """The id for what the vocabulary lacks: a token by name (WordPiece, BPE) or a number (Unigram)."""
    model = json.loads(content)["model"]
    if (token := model.get("unk_token")) is not None:
        return library.token_to_id(token)
    return model.get("unk_id")


def _clean_function(clean: str | None) -> Callable[[str], str]:
    if clean is None:
        return str
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn(clean)
