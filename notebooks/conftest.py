"""`pytest --nbval notebooks/`: fresh run folders, and no comparison of the error stream.

The kernel inherits the environment set here, so that a person's own runs are neither shown nor
touched, and the second pass trains again like the first.
"""

import os
import shutil
import tempfile

_RUNS = tempfile.mkdtemp(prefix="mmlib-nbval-")
os.environ["MMLIB_RUNS"] = _RUNS


def pytest_collectstart(collector):
    """Progress bars and warnings of libraries differ between machines."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("stderr",)


def pytest_sessionfinish():
    """Leaves nothing behind."""
    shutil.rmtree(_RUNS, ignore_errors=True)
