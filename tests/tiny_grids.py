"""Ablations of a second: a base file in a temporary repository, and parameters to vary."""

import yaml
from tiny_runs import TINY

from mmlib.config import AblationConfig, build

BASE = {key: value for key, value in TINY.items() if key not in ("run", "device")} | {"epochs": 1}
ARMS = {"memory": {}, "no-memory": {"memory": "none"}}
CLAIM = {"claim": "the memory helps", "arm": "memory", "over": "no-memory"}


def write_base(folder, **changes):
    """A YAML file of a tiny training; returns its path as text."""
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return str(path)


def tiny_grid(base: str, **changes) -> AblationConfig:
    """Two arms, one seed, if nothing else is said."""
    return build(AblationConfig, {"run": "grid", "base": base, "arms": ARMS, "device": "cpu"} | changes)
