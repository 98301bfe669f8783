"""What the measurements ran on, in words that name the hardware and nobody's computer."""

import os
import platform
import re
from pathlib import Path

import torch


def describe(device: str) -> dict:
    """Hardware and versions that a figure depends on."""
    return {
        "name": name(device),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "memory_gib": memory_gib(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
    }


def name(device: str) -> str:
    """A file name: the GPU, or the CPU and the cores this process may use."""
    return sanitised(torch.cuda.get_device_name() if device == "cuda" else f"{cpu_model()} {cores()} cores")


def sanitised(text: str) -> str:
    """Lower case letters, digits and single hyphens; trademark signs and filler words left out."""
    text = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*?ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "unknown"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The CPU's marketing name, or at least its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of the machine."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
