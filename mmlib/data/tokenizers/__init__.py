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

from mmlib.data.tokenizers.base import Tokenizer
from mmlib.data.tokenizers.build import KINDS, build_tokenizer, encoder_tokenizer
from mmlib.data.tokenizers.losses import count_losses, loss_shares, losses_warning

__all__ = [
    "KINDS",
    "Tokenizer",
    "build_tokenizer",
    "count_losses",
    "encoder_tokenizer",
    "loss_shares",
    "losses_warning",
]
