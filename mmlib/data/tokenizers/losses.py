"""What a tokenizer loses of captions: tokens that it does not know, and captions that it cuts.

A word vocabulary learned from captions in Chinese, which has no spaces, knows hardly any of the next
caption's words.  Such a run trains and validates without an error, so its losses are counted and shown.
"""

from collections.abc import Sequence

from mmlib.data.tokenizers.base import CHUNK, Tokenizer, whole_characters

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
