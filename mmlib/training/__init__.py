"""Training: one loop, run folders and checkpoints, exact resume, continued runs, evaluation."""

from mmlib.training.diagnose import read_diagnosis
from mmlib.training.evaluate import evaluate
from mmlib.training.runs import read_arrays, read_history, read_json, read_result, run_folder, run_state
from mmlib.training.start import continue_training, stored_config, train

__all__ = [
    "continue_training",
    "evaluate",
    "read_arrays",
    "read_diagnosis",
    "read_history",
    "read_json",
    "read_result",
    "run_folder",
    "run_state",
    "stored_config",
    "train",
]
