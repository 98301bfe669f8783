"""Training: one loop, run folders and checkpoints, exact resume, continued runs, evaluation.

Reading run folders is light; what trains or evaluates is loaded when it is first asked for, so that
an analysis does not wait for it.
"""

import importlib
import warnings

# Lightning, where torchmetrics is installed, reaches tqdm's bars for notebooks, which complain of missing
# widgets that nobody here asked for.
warnings.filterwarnings("ignore", message="IProgress not found")

_MODULE_OF = {
    "continue_training": "start",
    "evaluate": "evaluation",
    "plan_grid": "ablation_plan",
    "read_ablation": "ablation",
    "read_arrays": "runs",
    "read_diagnosis": "runs",
    "read_history": "runs",
    "read_result": "runs",
    "run_folder": "runs",
    "run_grid": "ablation",
    "run_state": "runs",
    "stored_config": "runs",
    "train": "start",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    """Loads the module of a name when it is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
