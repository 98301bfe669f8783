"""What is said when a file of a run cannot be written: which, why, and what to do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mmlib import paths


@contextlib.contextmanager
def explained(path: Path, about: str = "", kept: str = "") -> Iterator[None]:
    """Gives a system's error in writing `path` its meaning.

    Args:
        path: of the file.
        about: what follows its name, as its size.
        kept: what is said of the file that was there before.

    Raises:
        OSError: the disk is full or the folder cannot be written; of the same number.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {paths.shown(path)}{about}: {error.strerror}{kept}."
            " Free some space and start again, the run goes on where it stopped",
        ) from error
