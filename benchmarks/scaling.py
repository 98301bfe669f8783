"""One process against two on the same cores: what dividing a batch between processes costs or gains."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.harness import ROOT, Contender, alternate, child_environment, row, unavailable
from benchmarks.machine import cores
from benchmarks.places import environment, scratch

MIDDLE = {
    "dataset": "shapes", "shapes_train": 200, "shapes_val": 10, "shapes_test": 10, "image_size": 64,
    "patch_size": 8, "latent_dim": 192, "num_layers": 3, "num_heads": 4, "memory_slots": 16, "max_tokens": 24,
    "batch_size": 128, "captions_per_image": "all", "optimizer": "adamw", "lr": 0.001, "epochs": 2,
    "dropout": 0.0,
}  # fmt: skip
TIMEOUT = 900  # seconds for one training


def processes(number: int, values: dict, cores_in_all: int) -> Callable[[], float]:
    """`mmlib train` in so many processes that share the cores; the seconds of its last epoch's steps."""
    run = f"scaling-{number}"
    path = scratch() / f"{run}.yaml"
    path.write_text(yaml.safe_dump({**values, "run": run, "overwrite": True}))
    launcher = ["-m", "mmlib"]
    if number > 1:
        launcher = [
            "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m", "mmlib",
        ]  # fmt: skip
    threads = str(max(1, cores_in_all // number))
    command = [sys.executable, *launcher, "train", str(path)]

    def work() -> float:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
            env=child_environment(**environment(), OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(_last_line(done.stderr))
        last = _history(scratch() / "runs" / run)[-1]
        return 5 * values["shapes_train"] / last["pairs_per_s"]

    return work


def rows(quick: bool, device: str = "cpu") -> list[dict]:
    """Two processes beside one; the ratio is their speed over that of one."""
    import torch

    number = torch.cuda.device_count() if device == "cuda" else 2
    what, total = f"training in {number} processes", cores()
    work = (
        f"64 px in patches of 8, D {MIDDLE['latent_dim']}, 3 layers, batch {MIDDLE['batch_size']} in all,"
        f" {total} cores in all"
    )
    if number < 2:
        return [unavailable(what, work, "one GPU")]
    values = {**MIDDLE, "device": device, **({"shapes_train": 52, "latent_dim": 64} if quick else {})}
    several, one = (
        Contender(name, processes, {"number": n, "values": values, "cores_in_all": total})
        for name, n in ((f"{number} processes", number), ("1 process", 1))
    )
    try:
        seconds = alternate([c.make(**c.arguments) for c in (several, one)], 2 if quick else 5, warm_up=1)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return [unavailable(what, work, str(error))]
    return [
        row(
            what, work, "pairs/s", (several.name, seconds[0], None), (one.name, seconds[1], None),
            5 * values["shapes_train"],
        )
    ]  # fmt: skip


def _history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def _last_line(text: str) -> str:
    """The error that a process ended with, not the launcher's word that one did."""
    errors = re.findall(r"^(?:\[rank\d+\]: )?([\w.]*(?:[Ee]rror|Exception): .*)$", text, re.MULTILINE)
    errors = [error for error in errors if "ChildFailedError" not in error]
    return (errors or text.splitlines() or ["no message"])[-1].strip()[:300]
