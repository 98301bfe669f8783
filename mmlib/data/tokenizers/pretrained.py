"""Tokenizers of pretrained text encoders: CLIP's BPE, and those of transformers and open_clip."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data.tokenizers.learned import Tokenizer, from_json
from mmlib.files import fetching, nearest, shown


class ClipTokenizer(Tokenizer):
    """CLIP's BPE.

    Args:
        context_length: most tokens that its text encoder can read; None: no limit.
        merges_sha256: of the merges that a run was trained with.

    Raises:
        ValueError: the installed open_clip has other merges.
    """

    kind = "clip"

    def __init__(self, context_length: int | None = None, merges_sha256: str | None = None):
        from open_clip.tokenizer import SimpleTokenizer

        if merges_sha256 not in (None, _merges_sha256()):
            raise ValueError(
                f"expected CLIP's merges with SHA-256 {merges_sha256}, found {_merges_sha256()} in the"
                " installed open_clip: token ids would mean other text; install the open_clip of the run's"
                " environment.json"
            )
        self._library = SimpleTokenizer()
        self.size, self.context_length = self._library.vocab_size, context_length
        self.state = {
            "kind": self.kind, "merges_sha256": _merges_sha256(), "context_length": context_length,
        }  # fmt: skip

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
def _merges_sha256() -> str:
    """SHA-256 of the merges that open_clip ships, unpacked."""
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe()) as file:
        return hashlib.sha256(file.read()).hexdigest()


class EncoderTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library with the ids that its encoder was trained on.

    Special tokens stand where the encoder wants them, and cut captions keep them.  Padding is on the
    right whatever the encoder's own habit: the lengths say where it begins.

    Args:
        tokenizer: JSON of the library's tokenizer (`tokenizer.json`).
        padding_id: the encoder's own.
        context_length: most tokens that the encoder can read; None: not known.
        clean: how open_clip prepares text for it (`lower`, `whitespace` or `canonicalize`); None: not
            at all.
        blank_id: a special token that open_clip blanks out with 0 (CLIPA's separator); None: none.
    """

    kind = "encoder"

    def __init__(
        self,
        tokenizer: str,
        padding_id: int,
        context_length: int | None = None,
        clean: str | None = None,
        blank_id: int | None = None,
    ):
        self._library = from_json(tokenizer)
        self.state = {
            "kind": self.kind, "tokenizer": self._library.to_str(), "padding_id": padding_id,
            "context_length": context_length, "clean": clean, "blank_id": blank_id,
        }  # fmt: skip
        self.padding_id, self.context_length = padding_id, context_length
        self._clean, self._blank_id = clean, blank_id
        # What the vocabulary lacks is a token by name (WordPiece, BPE) or a number (Unigram).
        model = json.loads(self.state["tokenizer"])["model"]
        unknown = model.get("unk_token")
        self.unknown_id = model.get("unk_id") if unknown is None else self._library.token_to_id(unknown)
        self.size = 1 + max(padding_id, *self._library.get_vocab(with_added_tokens=True).values())

    def token_ids(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """The ids of each caption without padding, at most `max_tokens` of them."""
        if self._clean:
            from open_clip.tokenizer import get_clean_fn

            captions = [get_clean_fn(self._clean)(caption) for caption in captions]
        # The library leaves the special tokens whole, so where they alone are too many it does not cut.
        self._library.enable_truncation(max_tokens)
        rows = [encoding.ids[:max_tokens] for encoding in self._library.encode_batch_fast(list(captions))]
        if self._blank_id is None:
            return rows
        return [self._unpadded(0 if i == self._blank_id else i for i in row) for row in rows]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without padding and special tokens, as the encoder's tokenizer puts it."""
        return self._library.decode(self._unpadded(ids), skip_special_tokens=True)

    def _unpadded(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        while ids and ids[-1] == self.padding_id:
            ids.pop()
        return ids


CLEANINGS = ("lower", "whitespace", "canonicalize")  # open_clip's names
UNLIMITED = 10**6  # transformers writes 10^30 where a tokenizer knows no limit


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
    return (from_transformers if library == "hf" else from_open_clip)(name)


def from_transformers(name: str) -> EncoderTokenizer:
    """The tokenizer of `hf:<name>`: a folder with `tokenizer.json`, else a name in transformers' cache.

    A name that is not in the cache is fetched where there is a network.

    Raises:
        FileNotFoundError: neither a folder nor a name whose files are here or can be fetched.
        ValueError: files that make no tokenizer of the `tokenizers` library.
        ModuleNotFoundError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"text_encoder hf:{name} needs the library transformers, found none; install it with"
            " pip install 'mmlib[hf]'"
        ) from error

    folder = files.from_root(name)
    is_here = folder.is_dir()
    try:
        if is_here:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        else:
            with fetching(f"the tokenizer of hf:{name}", hub=True):
                tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"text_encoder hf:{name}: expected the encoder's files (config.json, tokenizer.json, weights) in"
            f" the folder {shown(folder)}, in the cache of Hugging Face or on a network, found none to read:"
            f" {_first_line(error)}; run `hf download {name} --local-dir data/models/{name}` where there is a"
            f" network, copy the folder here and name it: text_encoder hf:data/models/{name}"
        ) from error
    limit = tokenizer.model_max_length
    return _encoder(tokenizer, f"hf:{name}", limit if limit < UNLIMITED else None)


def from_open_clip(name: str) -> Tokenizer:
    """The tokenizer of `open_clip:<name>`: CLIP's BPE for most, a library tokenizer for the others.

    Raises:
        ParameterError: no model of that name.
        FileNotFoundError: the tokenizer's files are not here and cannot be fetched.
        ValueError: a tokenizer that cannot be kept with a run.
    """
    from open_clip import list_models
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn

    if name not in list_models():
        hint = nearest(name, list_models()) or "; open_clip.list_models() lists them"
        raise ParameterError(f"text_encoder: expected a model of open_clip, found {name!r}{hint}")
    tokenizer = own_open_clip_tokenizer(name)
    clean = next(clean for clean in CLEANINGS if get_clean_fn(clean) is tokenizer.clean_fn)
    if type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None and clean == "lower":
        return ClipTokenizer(tokenizer.context_length)
    if type(tokenizer) is not HFTokenizer or tokenizer.tokenizer_mode:
        raise _not_kept(f"open_clip:{name}", tokenizer)
    blank_id = tokenizer.tokenizer.sep_token_id if tokenizer.strip_sep_token else None
    return _encoder(tokenizer.tokenizer, f"open_clip:{name}", tokenizer.context_length, clean, blank_id)


def own_open_clip_tokenizer(name: str) -> Any:
    """open_clip's own tokenizer of a model that it knows: texts to token ids (B, context length).

    Raises:
        FileNotFoundError: the tokenizer's files are not here and cannot be fetched.
    """
    from open_clip import get_model_config, get_tokenizer

    try:
        if "hf_tokenizer_name" in get_model_config(name)["text_cfg"]:
            with fetching(f"the tokenizer of open_clip:{name}", hub=True):
                return get_tokenizer(name)
        return get_tokenizer(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"open_clip:{name} has a tokenizer of its own, whose files are not here and could not be fetched:"
            f" {_first_line(error)}; fetch them once where there is a network and copy the cache of Hugging"
            " Face (HF_HOME) here, or take a model with CLIP's own tokenizer, as ViT-B-32"
        ) from error


def _encoder(
    tokenizer: Any,
    source: str,
    context_length: int | None,
    clean: str | None = None,
    blank_id: int | None = None,
) -> EncoderTokenizer:
    """The library's tokenizer inside that of transformers, with its padding."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise _not_kept(source, tokenizer)
    # An encoder without padding masks it, so that any id will do: its end token, which it surely has.
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padding_id = next(i for i in ids if i is not None)
    content = tokenizer.backend_tokenizer.to_str()
    return EncoderTokenizer(content, padding_id, context_length, clean, blank_id)


def _not_kept(source: str, tokenizer: Any) -> ValueError:
    return ValueError(
        f"text_encoder {source}: expected CLIP's tokenizer or one of the tokenizers library (tokenizer.json),"
        f" found a {type(tokenizer).__name__} with settings of its own, which cannot be kept with a run; take"
        " another encoder"
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
