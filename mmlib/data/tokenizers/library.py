"""The `tokenizers` library, set up once for the tokenizers that are made of it."""

import os

from tokenizers import Tokenizer as LibraryTokenizer

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
