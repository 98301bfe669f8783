"""Files that a library may have to fetch: said when it takes long, given up when nobody answers."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds of silence after which a server counts as not there
SOON = 1.0  # seconds after which it is said what is waited for


@contextlib.contextmanager
def fetching(what: str, hub: bool) -> Iterator[None]:
    """Surrounds a library that looks for files in its cache and downloads what is missing.

    What takes longer than `SOON` is said.  A server that is silent for `PATIENCE` is given up; a slow one is
    not.  The hub of Hugging Face is asked first whether it answers, since its client tries for a minute to
    reach it, and also for what lies in its cache; if it does not, the cache alone is read.

    Args:
        what: is looked for, as `weights 'default' of timm:resnet50`.
        hub: whether it is on that hub.

    Raises:
        ConnectionError: the hub does not answer, and what is wanted is not in the cache.
    """
    said = threading.Timer(
        SOON, logger.warning, ("looking for %s in the library's cache, or downloading it", what)
    )
    said.daemon = True
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout or PATIENCE)  # urlopen, which torch and open_clip use, has none
    said.start()
    try:
        silent = _silent_hub() if hub else None
        with _offline() if silent else contextlib.nullcontext():
            yield
    except OSError as error:
        if silent:
            raise ConnectionError(silent) from error
        raise
    finally:
        said.cancel()
        socket.setdefaulttimeout(timeout)


def _silent_hub() -> str | None:
    """Why the hub cannot be reached; None if it can, or is not to be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # those of its HTTP client, which changes with its versions
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__} {error}".strip()
    return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
