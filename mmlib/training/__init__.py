"""Training: one loop, run folders and checkpoints, exact resume, continued runs, evaluation.

Reading run folders is light; what trains or evaluates is loaded when it is first asked for, so that
an analysis does not wait for it.
"""

import importlib
import warnings

from mmlib.training.ablation import read_ablation
from mmlib.training.ablation_plan import plan_grid
from mmlib.training.runs import (
    read_history,
    read_json,
    read_result,
    run_folder,
    run_state,
    stored_config,
)

# Lightning, where torchmetrics is installed, reaches tqdm's bars for notebooks, which complain of missing
# widgets that nobody here asked for.
warnings.filterwarnings("ignore", message="IProgress not found")

_HEAVY = {
    "continue_training": "start",
    "evaluate": "evaluation",
    "read_arrays": "stored_analysis",
    "read_diagnosis": "stored_analysis",
    "run_grid": "ablation",
    "train": "start",
}

__all__ = [
    "continue_training",
    "evaluate",
    "plan_grid",
    "read_ablation",
    "read_arrays",
    "read_diagnosis",
    "read_history",
    "read_json",
    "read_result",
    "run_folder",
    "run_grid",
    "run_state",
    "stored_config",
    "train",
]


def __getattr__(name: str):
    """Loads the module of a heavy name (PEP 562)."""
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HEAVY[name]}"), name)
