"""`python -m benchmarks.memory module:function '{"argument": 1}'`: peak memory of one call, as JSON.

On a GPU it is what torch allocated there; else the resident memory of the process.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from benchmarks.harness import seconds_of

MIB = 2**20


def main(where: str, arguments: str) -> None:
    """Prepares the work, notes what the process holds, does it once, prints the difference."""
    module, _, name = where.partition(":")
    work = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    gpu = _gpu()
    baseline = gpu.memory_allocated() if gpu else _forget_peak()
    if gpu:
        gpu.reset_peak_memory_stats()
    seconds = seconds_of(work)
    peak = gpu.max_memory_allocated() if gpu else _peak()
    print(
        json.dumps(
            {
                "peak_mib": round(max(0, peak - baseline) / MIB, 1),
                "baseline_mib": round(baseline / MIB, 1),
                "seconds": round(seconds, 3),
            }
        )
    )


def _gpu():
    """`torch.cuda` where the prepared work uses it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _peak() -> int:
    """Largest resident size so far, bytes.

    From Linux's own count where there is one: getrusage's also counts what the parent held when it
    started this process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> int:
    """What the process holds now, with the peak of its preparation forgotten where the system can.

    Linux does (proc(5), clear_refs); elsewhere the peak so far is taken, and less is counted.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak()


if __name__ == "__main__":
    main(*sys.argv[1:])
