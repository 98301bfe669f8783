"""Standard streams that cannot fail a command."""

import contextlib
import os
from typing import TextIO

from mmlib.files import printable


class Output:
    """A standard stream whose prints never fail.

    Once a write fails, the rest is dropped, whether Python or a library writes it.

    Attributes:
        error: why text was lost; None if nothing was, or if the reader of a pipe went away (as `head`
            does), which is its own choice.

    Args:
        stream: as `sys.stdout`; None, as Python has it for a closed one, shows nothing.
        moves: control characters that pass, as the carriage return of a progress bar.
    """

    def __init__(self, stream: TextIO | None, moves: str = ""):
        if stream is None:  # takes the free descriptor too, which no file that is saved may get
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self._stream = stream
        self._moves = moves
        self.error: Exception | None = None

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes what the terminal can show of `text`; returns the length of the text."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = "".join(c if c in self._moves else printable(c) for c in text)
        self._attempt(self._stream.write, shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Hands what was written to the system."""
        self._attempt(self._stream.flush)

    def _attempt(self, do, *arguments) -> None:
        try:
            do(*arguments)
        except (OSError, ValueError) as error:  # a ValueError of a stream that was closed
            if self.error is None and not isinstance(error, BrokenPipeError):
                self.error = error
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
