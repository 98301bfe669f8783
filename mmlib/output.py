"""Standard streams that cannot fail a command, how far long work is, quiet libraries, text in Markdown."""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from tqdm import tqdm

from mmlib.files import printable

LINE_SECONDS = 30  # between the lines that say how far long work is, where no terminal shows a bar
_MARKUP = re.compile(r"[\\`*\[\]<>~$]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|^#")


def progress(work: Iterable | None = None, show: Callable[[dict], None] | None = None, **options) -> tqdm:
    """The work, or a bar to `update`, that says how far it is.

    In a terminal that is a bar; in a file or a notebook, a line each `LINE_SECONDS`, so that short work
    leaves nothing there.  Lines go to the error stream; from a notebook's kernel to the other one, which
    those who run notebooks pass on.

    Args:
        work: is iterated over; None if the caller updates.
        show: shows how far it is, by `tqdm.format_dict`, in place of bar and lines.
        options: of tqdm; `desc`, `unit` and `total` are in the lines.
    """
    if show is None and sys.stderr is not None and sys.stderr.isatty():
        return tqdm(work, **options)
    if show is None:
        show, options = _write_line, options | {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS}
    return _Shown(work, show, **options)


class _Shown(tqdm):
    """A bar that a function shows."""

    monitor_interval = 0  # no thread of its own

    def __init__(self, work, show, **options):
        self._show = show
        super().__init__(work, **options | {"file": io.StringIO(), "miniters": 1, "leave": False})

    def display(self, msg=None, pos=None) -> None:
        """Shows how far it is; tqdm asks for it."""
        if msg is None:
            self._show(self.format_dict)


def _write_line(bar: dict) -> None:
    if bar["n"]:
        look = bar | {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"}
        ipython = sys.modules.get("IPython")
        in_kernel = ipython and hasattr(ipython.get_ipython(), "kernel")
        print(tqdm.format_meter(**look), file=sys.stdout if in_kernel else sys.stderr, flush=True)


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keeps remarks of libraries, up to this level, to itself while the block lasts."""
    root, nothing, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(nothing)  # else a library's first remark sets up logging for the whole process
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(nothing)


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


def plain_text(text: str) -> str:
    """Foreign text for Markdown: one line, shown as it is, neither link, image, HTML nor emphasis."""
    line = re.sub(r"\s*\n\s*", " ", printable(text.strip()))
    return _MARKUP.sub(r"\\\g<0>", line)


def table_lines(rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown, a line a row, of which the first names the columns; of foreign text as well."""
    lines = [[plain_text(str(value)).replace("|", "\\|") for value in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines]
