"""Where shards are: paths, globs, brace patterns and URLs, each as a list of tar files that exist."""

import glob
import os
import posixpath
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmlib import paths
from mmlib.paths import shown

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True, order=True)
class Place:
    """One shard: an absolute path, or a URL."""

    where: str

    @property
    def is_url(self) -> bool:
        """Whether it has to be fetched."""
        return self.where.startswith(("http://", "https://"))

    @property
    def name(self) -> str:
        """Its file name, without folder, query and fragment."""
        return posixpath.basename(urllib.parse.urlsplit(self.where).path if self.is_url else self.where)

    @property
    def folder(self) -> str:
        """What stands before its file name, with the last slash; for a URL without the query."""
        if not self.is_url:
            return os.path.join(os.path.dirname(self.where), "")
        return urllib.parse.urljoin(self.where, ".")

    def __str__(self) -> str:
        return self.where if self.is_url else shown(self.where)


def find_shards(patterns: Sequence[str], parameter: str) -> list[Place]:
    """The shards that the patterns name, in the order of the patterns, each once.

    A pattern is a path (relative ones are read from the repository's root), a `file:`, `http:` or
    `https:` URL; braces stand for several (`{000..099}`, `{a,b}`), and `*`, `?`, `[…]` in paths
    for the files that match.

    Args:
        patterns: as in `train_shards`.
        parameter: what error messages call them.

    Raises:
        FileNotFoundError: a pattern that no file matches; names it.
        ValueError: another kind of URL.
    """
    from braceexpand import UnbalancedBracesError, braceexpand

    found: dict[Place, None] = {}
    for pattern in patterns:
        try:
            expanded = list(braceexpand(pattern))
        except UnbalancedBracesError as error:
            raise ValueError(f"{parameter}: expected balanced braces in {pattern!r}, found {error}") from None
        for one in expanded:
            found.update(dict.fromkeys(_matches(one, pattern, parameter)))
    return list(found)


def _matches(one: str, pattern: str, parameter: str) -> Iterator[Place]:
    """The shards that a pattern without braces names; at least one."""
    if (match := _SCHEME.match(one)) and not os.path.exists(paths.from_root(one)):
        scheme = match["scheme"].lower()
        if scheme in ("http", "https"):
            yield Place(scheme + one[len(scheme) :])
            return
        if scheme != "file":
            raise ValueError(
                f"{parameter}: expected a path or a URL of http, https or file, found {one!r}; copy the"
                " shards to a disk or behind a web server"
            )
        one = urllib.request.url2pathname(urllib.parse.urlsplit(one).path)
    path = paths.from_root(one)
    if path.is_file():
        yield Place(str(path))
        return
    matching = sorted(match for match in glob.glob(str(path)) if os.path.isfile(match))
    if not matching:
        inside = f"; it is a folder, add /train-*.tar or the like: {shown(path)}" if path.is_dir() else ""
        part = "" if one == pattern else f" (for {one!r} of it)"
        raise FileNotFoundError(
            f"{parameter}: expected tar files that match {pattern!r}, found none{part}{inside};"
            f" relative paths are read from {paths.ROOT}"
        )
    yield from (Place(str(Path(match))) for match in matching)
