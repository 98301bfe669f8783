"""Where things live: the repository's root and the folders under it.

Nothing in mmlib depends on the working directory: papermill starts a notebook's kernel in the
shell's folder, Jupyter and nbval in the notebook's own.  A relative path in a parameter is
therefore read from `ROOT`, never from `os.getcwd()`.

`MMLIB_ROOT` (environment) moves the root, for a copy that is installed away from its repository;
`MMLIB_RUNS`, `MMLIB_REPORTS` and `MMLIB_CACHE` move only the run folders, the reports and the packed
images, so that tests never touch a person's.
"""

import os
from pathlib import Path

ROOT = Path(os.environ.get("MMLIB_ROOT") or Path(__file__).resolve().parent.parent).resolve()
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
RUNS = Path(os.environ.get("MMLIB_RUNS") or ROOT / "runs").resolve()
REPORTS = Path(os.environ.get("MMLIB_REPORTS") or ROOT / "reports").resolve()
PUBLISHED = ROOT / "reports" / "published"  # committed; changed by `make publish` alone
CACHE = Path(os.environ.get("MMLIB_CACHE") or ROOT / "data" / "cache").resolve()


def from_root(path: str | os.PathLike) -> Path:
    """`path` as an absolute path: `~` expanded, relative paths read from the repository's root."""
    return (ROOT / Path(path).expanduser()).resolve()


def shown(path: str | os.PathLike) -> str:
    """`path` for a person to read: relative to the root when it lies under it, absolute otherwise."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
