"""What a run ran on: commit, versions, device, seed, data, parent."""

import importlib.metadata
import os
import platform
import subprocess

import torch

from mmlib import paths
from mmlib.training.runs import now

PACKAGES = (
    "mmlib", "torch", "torchvision", "lightning-fabric", "numpy", "pillow", "timm", "open-clip-torch",
    "transformers", "tokenizers",
)  # fmt: skip


def describe(
    seed: int,
    device: torch.device,
    data: dict,
    parent: dict | None,
    trainable_weights: int,
    tokenizer_losses: dict,
) -> dict:
    """The content of `environment.json`.

    Args:
        seed: of the run.
        device: that the model is on.
        data: `Dataset.identity`.
        parent: `{"run", "checkpoint", "epoch", "optimizer_state"}`, or None for a first phase.
        trainable_weights: numbers that training changes.
        tokenizer_losses: `count_losses` of the validation captions.
    """
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "data": data,
        "tokenizer_losses": tokenizer_losses,
        "parent": parent,
        "trainable_weights": trainable_weights,
        "started": now(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the repository and whether tracked files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=paths.ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
