"""A folder of its own for run folders, packed images and pictures, gone when the process ends."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from mmlib import paths


@functools.cache
def scratch() -> Path:
    """The folder; from the first call on, this process's run folders and packed images lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="mmlib-benchmarks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths.RUNS, paths.CACHE = folder / "runs", folder / "cache"
    return folder


def environment() -> dict[str, str]:
    """What tells a child process to use the same places."""
    return {"MMLIB_RUNS": str(scratch() / "runs"), "MMLIB_CACHE": str(scratch() / "cache")}
