"""Tokenizers behind one small interface: a batch of captions → token ids and lengths, and back.

| kind | learned from | special ids | `decode(encode(text))` |
|---|---|---|---|
| `char-reference` | nothing: 33 fixed characters | 0 padding and unknown | known characters, lower case |
| `char` | training captions | 0 padding, 1 unknown | lower case; unknown ones read `<unk>` |
| `word` | training captions | 0 padding, 1 unknown | lower case, one space between tokens |
| `bpe` | training captions | 0 padding; nothing is unknown | the text, bit for bit |
| `clip` | nothing: CLIP's 49,408 tokens | start, end; 0 padding | lower case, spaces around tokens |
| `encoder` | nothing: a pretrained text encoder's | the encoder's | what the encoder's makes of it |

`open_clip` and `transformers` are loaded by the kinds that need them, and by no other.
"""

import inspect
from collections.abc import Iterable

from mmlib.config import ParameterError
from mmlib.data.tokenizers.base import Tokenizer, count_losses, loss_shares, losses_warning
from mmlib.data.tokenizers.learned import BpeTokenizer, ClosedTokenizer, learn_bpe, learn_closed
from mmlib.files import nearest

__all__ = [
    "KINDS",
    "Tokenizer",
    "build_tokenizer",
    "count_losses",
    "encoder_tokenizer",
    "loss_shares",
    "losses_warning",
    "restore_tokenizer",
]

CLOSED = ("char", "char-reference", "word")
KINDS = (*CLOSED, "bpe", "clip", "encoder")


def build_tokenizer(
    kind: str,
    training_captions: Iterable[str],
    min_count: int = 1,
    bpe_vocabulary: int = 4096,
    text_encoder: str | None = None,
) -> Tokenizer:
    """A tokenizer of `kind`, what it learns learned from the training captions alone.

    Args:
        kind: one of `KINDS`; see `mmlib.data.tokenizers`.
        training_captions: of the training split, and of no other.
        min_count: `word` only: words seen less often are unknown.
        bpe_vocabulary: `bpe` only: token ids, padding included; fewer where the captions are few.
        text_encoder: `encoder` only: whose tokenizer, as `encoder_tokenizer` takes it.

    Raises:
        ParameterError: unknown kind, `encoder` without a pretrained text encoder, or a value that
            the kind cannot work with.
        FileNotFoundError, ValueError, ModuleNotFoundError: from `encoder_tokenizer`.
    """
    if _checked_kind("tokenizer", kind) in CLOSED:
        return learn_closed(kind, training_captions, min_count)
    if kind == "bpe":
        return learn_bpe(training_captions, bpe_vocabulary)
    if kind == "clip":
        from mmlib.data.tokenizers.pretrained import ClipTokenizer

        return ClipTokenizer()
    return encoder_tokenizer(text_encoder or "none")


def encoder_tokenizer(text_encoder: str) -> Tokenizer:
    """The tokenizer of a pretrained text encoder.

    Its weights do not matter here: an architecture reads the same tokens with all of them.

    Args:
        text_encoder: `hf:<name or folder>` or `open_clip:<name>`; folders from the repository's root.

    Returns:
        Of kind `encoder`, or of kind `clip` where the encoder reads CLIP's tokens.

    Raises:
        ParameterError: another text encoder, or a name that open_clip does not know.
        FileNotFoundError: the tokenizer's files are not here and cannot be fetched; says what to put where.
        ValueError: a tokenizer that cannot be kept with a run.
        ModuleNotFoundError: transformers is not installed.
    """
    library, _, name = text_encoder.partition(":")
    if library not in ("hf", "open_clip") or not name:
        raise ParameterError(
            "tokenizer 'encoder': expected text_encoder hf:<name or folder> or open_clip:<name>, found"
            f" {text_encoder!r}; name one, or take the tokenizer word, bpe, clip or char"
        )
    from mmlib.data.tokenizers.pretrained import from_open_clip, from_transformers

    return (from_transformers if library == "hf" else from_open_clip)(name)


def restore_tokenizer(state: dict) -> Tokenizer:
    """The tokenizer that `state` was taken from.

    Raises:
        ValueError: an unknown kind, a state that lacks a part, or a library here whose vocabulary is another
            than the one at the time.
    """
    kind = _checked_kind("tokenizer state", state.get("kind"))
    if kind in CLOSED:
        tokenizer = ClosedTokenizer
    elif kind == "bpe":
        tokenizer = BpeTokenizer
    elif kind == "clip":
        from mmlib.data.tokenizers.pretrained import ClipTokenizer as tokenizer
    else:
        from mmlib.data.tokenizers.pretrained import EncoderTokenizer as tokenizer
    parts = inspect.signature(tokenizer).parameters
    if missing := [part for part in parts if part not in state]:
        raise ValueError(
            f"expected a tokenizer state of kind {kind!r} with {missing[0]!r}, found only {', '.join(state)};"
            " the run's tokenizer.json is incomplete, take the one of a whole copy of the run"
        )
    return tokenizer(**{part: state[part] for part in parts})


def _checked_kind(what: str, kind: object) -> str:
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise ParameterError(
            f"{what}: expected one of {known}, found {kind!r}{nearest(str(kind).lower(), KINDS)}"
        )
    return kind
