"""Where benchmarks find their peers, and keep run folders, packed images and pictures until they end."""

import atexit
import functools
import importlib
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from mmlib import files

PEERS = Path(__file__).resolve().parent.parent / ".bench"


def peer(module: str) -> ModuleType:
    """A library to measure against, from the folder that `make bench` fills or from the environment.

    Raises:
        ModuleNotFoundError: it is in neither.
    """
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; make bench installs its peers", name=module) from None


@functools.cache
def scratch() -> Path:
    """The folder; from the first call on, this process's run folders and packed images lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="mmlib-benchmarks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files.RUNS, files.CACHE = folder / "runs", folder / "cache"
    return folder


def environment() -> dict[str, str]:
    """What tells a child process to use the same places."""
    return {"MMLIB_RUNS": str(scratch() / "runs"), "MMLIB_CACHE": str(scratch() / "cache")}
