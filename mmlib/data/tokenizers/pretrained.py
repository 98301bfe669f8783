"""Where the tokenizer of a pretrained text encoder comes from: transformers or open_clip."""

from typing import Any

from mmlib import paths
from mmlib.config import ParameterError
from mmlib.data.tokenizers.base import Tokenizer
from mmlib.data.tokenizers.clip import VOCABULARY, ClipTokenizer
from mmlib.data.tokenizers.encoder import EncoderTokenizer
from mmlib.files import nearest
from mmlib.hubs import fetching
from mmlib.paths import shown

CLEANINGS = ("lower", "whitespace", "canonicalize")  # open_clip's names
UNLIMITED = 10**6  # transformers writes 10^30 where a tokenizer knows no limit


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

    folder = paths.from_root(name)
    if folder.is_dir():
        tokenizer = _read_folder(AutoTokenizer, folder)
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(
            f"text_encoder hf:{name}: expected the folder {shown(folder)}, found none; put the encoder's"
            " files there (config.json, tokenizer.json, weights) or correct the path"
        )
    else:
        tokenizer = _read_cached(AutoTokenizer, name)
    limit = tokenizer.model_max_length
    return _encoder(tokenizer, f"hf:{name}", limit if limit < UNLIMITED else None)


def from_open_clip(name: str) -> Tokenizer:
    """The tokenizer of `open_clip:<name>`: CLIP's BPE for most, a library tokenizer for the others.

    Args:
        name: a model of open_clip, `hf-hub:<name>` or `local-dir:<folder>`.

    Raises:
        ParameterError: no model of that name.
        FileNotFoundError: the tokenizer's files are not here and cannot be fetched.
        ValueError: a tokenizer that cannot be kept with a run.
    """
    from open_clip import get_model_config, get_tokenizer, list_models
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if name.startswith("local-dir:"):
        name = f"local-dir:{paths.from_root(name.removeprefix('local-dir:'))}"
    elif not name.startswith("hf-hub:") and name not in list_models():
        hint = nearest(name, list_models()) or "; open_clip.list_models() lists them"
        raise ParameterError(f"text_encoder: expected a model of open_clip, found {name!r}{hint}")
    hub = name.startswith("hf-hub:") or (
        name in list_models() and "hf_tokenizer_name" in get_model_config(name)["text_cfg"]
    )
    try:
        with fetching(f"the tokenizer of open_clip:{name}", hub):
            tokenizer = get_tokenizer(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"text_encoder open_clip:{name} has a tokenizer of its own, whose files are not here and could"
            f" not be fetched: {_first_line(error)}; fetch them once where there is a network (python -c"
            f" \"import open_clip; open_clip.get_tokenizer('{name}')\") and copy the cache of Hugging Face"
            " (HF_HOME) here, or take a model with CLIP's own tokenizer, as ViT-B-32"
        ) from error
    if type(tokenizer) is SimpleTokenizer and _is_clips(tokenizer):
        return ClipTokenizer(tokenizer.context_length)
    if type(tokenizer) is not HFTokenizer or tokenizer.tokenizer_mode:
        raise ValueError(
            f"text_encoder open_clip:{name}: expected CLIP's tokenizer or one of the tokenizers library,"
            f" found a {type(tokenizer).__name__} with settings of its own, which cannot be kept with a run;"
            " take another encoder"
        )
    return _encoder(
        tokenizer.tokenizer,
        f"open_clip:{name}",
        tokenizer.context_length,
        clean=_cleaning(tokenizer),
        blank_id=tokenizer.tokenizer.sep_token_id if tokenizer.strip_sep_token else None,
    )


def _read_folder(auto_tokenizer: Any, folder: Any) -> Any:
    try:
        return auto_tokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected a tokenizer (tokenizer.json, tokenizer_config.json) in {shown(folder)}, found none"
            f" that can be read: {_first_line(error)}; put the files of the encoder's distribution there"
        ) from error


def _read_cached(auto_tokenizer: Any, name: str) -> Any:
    try:
        return auto_tokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        pass  # not in the cache
    try:
        with fetching(f"the tokenizer of hf:{name}", hub=True):
            return auto_tokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"text_encoder hf:{name}: expected the encoder's files in the cache of Hugging Face or a network"
            f" to fetch them, found neither: {_first_line(error)}; run `hf download {name} --local-dir"
            f" data/models/{name}` where there is a network, copy the folder here and name it:"
            f" text_encoder hf:data/models/{name}"
        ) from error


def _encoder(tokenizer: Any, source: str, context_length: int | None, **settings: Any) -> EncoderTokenizer:
    """The library's tokenizer inside that of transformers, with its padding."""
    library = getattr(tokenizer, "backend_tokenizer", None)
    if library is None:
        raise ValueError(
            f"text_encoder {source}: expected a tokenizer of the tokenizers library (tokenizer.json), found a"
            f" {type(tokenizer).__name__}, which cannot be kept with a run; take another encoder"
        )
    # An encoder without padding masks it, so that any id will do: its end token, which it surely has.
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padding_id = next(i for i in ids if i is not None)
    return EncoderTokenizer(library.to_str(), padding_id, context_length, **settings)


def _is_clips(tokenizer: Any) -> bool:
    """Whether a SimpleTokenizer is CLIP's own, without further tokens or words left out at random."""
    return (
        tokenizer.vocab_size == VOCABULARY
        and tokenizer.reduction_fn is None
        and _cleaning(tokenizer) == "lower"
    )


def _cleaning(tokenizer: Any) -> str:
    from open_clip.tokenizer import get_clean_fn

    return next(clean for clean in CLEANINGS if get_clean_fn(clean) is tokenizer.clean_fn)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
