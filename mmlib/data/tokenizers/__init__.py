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
from mmlib.data.tokenizers.learned import (
    BpeTokenizer,
    ClosedTokenizer,
    Tokenizer,
    count_losses,
    learn_bpe,
    learn_closed,
    loss_shares,
    losses_warning,
)
from mmlib.data.tokenizers.pretrained import ClipTokenizer, EncoderTokenizer, encoder_tokenizer

KINDS = {
    "char": ClosedTokenizer, "char-reference": ClosedTokenizer, "word": ClosedTokenizer, "bpe": BpeTokenizer,
    "clip": ClipTokenizer, "encoder": EncoderTokenizer,
}  # fmt: skip


def build_tokenizer(
    kind: str,
    training_captions: Iterable[str],
    min_count: int = 1,
    bpe_vocabulary: int = 4096,
    text_encoder: str | None = None,
) -> Tokenizer:
    """A tokenizer of `kind`, what it learns learned from the training captions alone.

    Args:
        kind: one of `KINDS`.
        training_captions: of the training split, and of no other.
        min_count: `word` only: words seen less often are unknown.
        bpe_vocabulary: `bpe` only: token ids, padding included; fewer where the captions are few.
        text_encoder: `encoder` only: whose tokenizer, as `encoder_tokenizer` takes it.

    Raises:
        ParameterError: unknown kind, `encoder` without a pretrained text encoder, or a value that
            the kind cannot work with.
        FileNotFoundError, ValueError, ModuleNotFoundError: from `encoder_tokenizer`.
    """
    match kind:
        case "char" | "char-reference" | "word":
            return learn_closed(kind, training_captions, min_count)
        case "bpe":
            return learn_bpe(training_captions, bpe_vocabulary)
        case "clip":
            return ClipTokenizer()
        case "encoder":
            return encoder_tokenizer(text_encoder or "none")
    raise ParameterError(f"tokenizer: expected one of {', '.join(KINDS)}, found {kind!r}")


def restore_tokenizer(state: dict) -> Tokenizer:
    """The tokenizer that `state` was taken from.

    Raises:
        ValueError: an unknown kind, a state that lacks a part, or a library here whose vocabulary is another
            than the one at the time.
    """
    if state.get("kind") not in KINDS:
        raise ValueError(f"tokenizer state: expected one of {', '.join(KINDS)}, found {state.get('kind')!r}")
    tokenizer = KINDS[state["kind"]]
    parts = inspect.signature(tokenizer).parameters
    if missing := [part for part in parts if part not in state]:
        raise ValueError(
            f"expected a tokenizer state of kind {state['kind']!r} with {missing[0]!r}, found none; the run's"
            " tokenizer.json is incomplete, take that of a whole copy of the run"
        )
    return tokenizer(**{part: state[part] for part in parts})
