"""The reference recipe end to end: 30 + 50 epochs with validation, its share of the device's peak.

At real size on a GPU; on a CPU at a size of seconds, which shows only that the path works.
"""

import subprocess
import threading
import time

import torch

from benchmarks.harness import alone
from benchmarks.places import scratch
from benchmarks.steps import CAPTIONS, SKIP
from mmlib import files
from mmlib.config import ContinueConfig, TrainConfig, build, read_values, read_yaml
from mmlib.training import continue_training, train

TINY = {
    "image_size": 32, "latent_dim": 32, "num_layers": 1, "num_heads": 2, "memory_slots": 8, "max_tokens": 16,
    "precision": "fp32", "shapes_train": 60, "shapes_val": 20, "shapes_test": 4, "epochs": 2,
}  # fmt: skip
REAL = {"shapes_train": 6000, "shapes_val": 1000, "shapes_test": 1000}
MATRIX = 8192  # side of the product that measures the peak; 1024 on a CPU


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """Seconds of both phases, share of the measured peak, and how long the device was busy."""
    first, second = recipe(device, quick)
    counted = step_flops(first)
    with BusyShare(device) as busy:
        started = time.perf_counter()
        train(build(TrainConfig, first), log=lambda line: None)
        continue_training(build(ContinueConfig, second), log=lambda line: None)
        seconds = time.perf_counter() - started
    peak = matmul_flops(device, torch.bfloat16 if first["precision"] == "bf16" else torch.float32)
    steps = _steps(first, second)
    share = counted * steps / seconds / peak
    size = "REAL SIZE" if device == "cuda" and not quick else "tiny size, only to run the code"
    work = (
        f"{size}: {first['epochs']} + {second['epochs']} epochs of {_pairs(first):,} pairs with validation,"
        f" {first['image_size']} px, D {first['latent_dim']}, {first['precision']}, {first['dataset']}"
    )
    note = (
        f"{steps:,} steps of {counted / 1e9:,.1f} GFLOP; a {MATRIX if device == 'cuda' else 1024}-wide matrix"
        f" product reaches {peak / 1e12:,.2f} TFLOP/s"
    )
    found = [
        alone("reference recipe, end to end", work, "s", "mmlib", round(seconds, 2)),
        alone(
            "reference recipe, model FLOP utilisation", work, "of peak", "mmlib", round(share, 4), note=note
        ),
    ]
    if busy.share is not None:
        found.append(
            alone(
                "reference recipe, GPU busy", work, "of the time", "mmlib", round(busy.share, 3),
                note="mean of nvidia-smi's utilization.gpu, five times a second",
            )
        )  # fmt: skip
    return found


def recipe(device: str, quick: bool) -> tuple[dict, dict]:
    """Parameters of both phases: those of params/flickr8k-reference, with drawn scenes in place of photos.

    Those of the first phase are all that a run has; of the second, those that its file gives.
    """
    scratch()
    folder = files.PARAMS / "flickr8k-reference"
    size = REAL if device == "cuda" and not quick else TINY
    place = {"device": device, "overwrite": True}
    first = (
        read_values(TrainConfig, read_yaml(folder / "01_train.yaml")) | {"dataset": "shapes"} | size | place
    )
    second = read_values(ContinueConfig, read_yaml(folder / "02_continue.yaml")) | place
    first = build(TrainConfig, first).model_dump()
    return first, second | ({"epochs": size["epochs"]} if "epochs" in size else {})


def step_flops(first: dict) -> float:
    """Floating-point operations of one step, by torch's counter."""
    from benchmarks.clock import StepClock

    images = -(-(SKIP + 2) * first["batch_size"] // CAPTIONS)
    few = {"run": "count", "shapes_train": images, "shapes_val": 4, "shapes_test": 4, "epochs": 1}
    config = build(TrainConfig, {**first, **few, "compile": "off"})
    with StepClock(SKIP, 1, count=True) as clock:
        train(config, log=lambda line: None)
    return clock.flops


def matmul_flops(device: str, dtype: torch.dtype, repetitions: int = 20) -> float:
    """Floating-point operations per second of a large square product: what the device can do at best."""
    side = MATRIX if device == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(3):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repetitions):
            a @ b
        _wait(device)
        best = max(best, repetitions * 2 * side**3 / (time.perf_counter() - started))
    return best


class BusyShare:
    """Mean share of the time that the GPU computed, sampled by nvidia-smi; None without it."""

    def __init__(self, device: str):
        self.on, self.share, self._samples = device == "cuda", None, []

    def __enter__(self) -> "BusyShare":
        if self.on:
            command = [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "200",
            ]
            try:
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            except FileNotFoundError:
                self.on = False
                return self
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def _read(self) -> None:
        for line in self._process.stdout:
            self._samples.append(float(line.strip()) / 100)

    def __exit__(self, *_) -> None:
        if self.on:
            self._process.terminate()
            self._reader.join()
            self._process.wait()
            self.share = sum(self._samples) / len(self._samples) if self._samples else None


def _pairs(first: dict) -> int:
    return CAPTIONS * first["shapes_train"]


def _steps(first: dict, second: dict) -> int:
    return (first["epochs"] + second["epochs"]) * -(-_pairs(first) // first["batch_size"])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
