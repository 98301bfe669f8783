"""Imports matplotlib without the matplotlibrc of the current folder, which it would read before any other.

Whoever starts a command or a notebook stands in some project's folder; what lies there may neither change
nor end a run.  To be imported before all that imports matplotlib.
"""

import contextlib
from pathlib import Path

# A folder of ours without Python files, as modules of the current folder can be imported.
with contextlib.chdir(Path(__file__).parent / "templates"):
    import matplotlib  # noqa: F401
