"""Checkpoints: their content as bytes, read back without running anybody's code, and what a run goes on from.

A checkpoint is a dict of plain values and tensors: `format`, and what the loop puts into it.
"""

import io
import pickle
import random
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmlib import files
from mmlib.config import ModelConfig, TrainConfig
from mmlib.data import Tokenizer, restore_tokenizer
from mmlib.training.runs import TRAIN_AGAIN, parse_history, run_folder, stored_environment
from mmlib.training.stored import checked, fields

FORMAT = 1
_USE_OTHER = (
    "use the run's other checkpoint (without last.pt, training goes on from best.pt), or train again with"
    " overwrite=True"
)
PARTS = {  # by part, the names in it that whoever reads a checkpoint relies on
    "position": ("epoch", "step", "loss_sums", "pairs", "seconds", "first_lr"),
    "best": ("epoch", "value"),
    "optimizer": ("state", "param_groups"),
    "rng": ("torch", "cuda", "numpy", "python"),
}
OTHERS = (
    "config", "tokenizer", "architecture", "phase", "parent_epoch", "model", "average", "loss",
    "optimizer_names", "precision", "rng_of_others",
)  # fmt: skip
Checkpoint = fields(
    format=Literal[FORMAT],
    **dict.fromkeys(OTHERS, Any),
    **{part: fields(**dict.fromkeys(names, Any)) for part, names in PARTS.items()},
)
ARCHITECTURE = (*ModelConfig.model_fields, "image_size", "tokenizer", "max_tokens")


def checkpoint_bytes(content: dict) -> memoryview:
    """`content` as the bytes of a checkpoint file.

    Serialised in memory first: torch's own writer turns a full disk into an internal error.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    return buffer.getbuffer()


def load_checkpoint(path: Path) -> dict:
    """Reads a checkpoint file, on the CPU; nothing in the file can run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated or damaged, holding code, or not a checkpoint of this project.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint: expected {files.shown(path)}, found nothing there")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself looks at no checksum
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of its part {broken}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{files.shown(path)} is refused: it asks to run code when it is read"
            f" ({asked[1] if asked else 'an unknown instruction'}), which no checkpoint of this project does."
            " Do not load it elsewhere"
        ) from None
    except Exception as error:  # on garbage both readers can fail anywhere
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{files.shown(path)} is truncated, damaged or no checkpoint ({path.stat().st_size} bytes;"
            f" {reason}); {_USE_OTHER}"
        ) from None
    return checked(content, Checkpoint, files.shown(path), _USE_OTHER)


def check_fits(path: Path, content: dict, config: Mapping) -> None:
    """Passes if a checkpoint's architecture and tokenizer are those that are wanted.

    Args:
        path: named in the message.
        content: from `load_checkpoint`.
        config: flat parameters of the model that the checkpoint is for.

    Raises:
        ValueError: names each parameter that differs with both values.
    """
    # What an older version did not know had the effect of today's default.
    theirs = {n: content["config"].get(n, TrainConfig.model_fields[n].default) for n in ARCHITECTURE}
    differ = [
        f"{n}: {theirs[n]!r} in the checkpoint, {config[n]!r} here"
        for n in ARCHITECTURE
        if theirs[n] != config[n]
    ]
    if differ:
        raise ValueError(f"{files.shown(path)} is of another architecture: {'; '.join(differ)}")


def tokenizer_of(path: Path, content: dict) -> Tokenizer:
    """The tokenizer that a checkpoint's model reads.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        return restore_tokenizer(content["tokenizer"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = f"expected a tokenizer, found {type(error).__name__}: {error}"
        raise ValueError(f"{files.shown(path)} is damaged: {reason:.300}; {_USE_OTHER}") from None


def load_weights(path: Path, module: torch.nn.Module, state: dict) -> None:
    """Loads a state dict that must fit to the last key and shape.

    Raises:
        ValueError: names the tensors that are missing, unexpected or of another shape.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{files.shown(path)} does not fit the model: {reason:.500}") from None


def evaluated_weights(content: dict) -> dict:
    """The weights that a checkpoint's validation metrics are of: the moving average where there is one."""
    average = content["average"]
    return content["model"] | (average["average"] if average else {})


def rng_state() -> dict:
    """The state of every random generator: torch (CPU and each GPU), numpy and Python."""
    # As tensors: pickling 625 plain numbers each takes longer than writing a small model.
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, torch.tensor(internal), gauss],
    }


def set_rng_state(state: dict) -> None:
    """Puts back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))


@dataclass(frozen=True)
class Parent:
    """Where a continued run starts."""

    run: str
    checkpoint: str
    epoch: int  # at whose end the checkpoint was written
    optimizer_state: str
    content: dict  # the loaded checkpoint

    @property
    def lineage(self) -> dict:
        """What `environment.json` keeps of the parent."""
        return {name: value for name, value in vars(self).items() if name != "content"}


def check_same_data(run: str, name: str, fingerprint: str, there: dict | None = None) -> None:
    """Passes if a run was trained on these data, or has not begun.

    Args:
        run: its name.
        name, fingerprint: of the data that are here.
        there: name and fingerprint of the run's data; by default those in its `environment.json`.

    Raises:
        ValueError: names both data sets with their fingerprints.
    """
    if there is None:
        path = run_folder(run) / "environment.json"
        if not path.exists():
            return
        there = stored_environment(run)["data"]
    if there["fingerprint"] != fingerprint:
        raise ValueError(
            f"run {run!r} was trained on other data: {there['name']} with fingerprint {there['fingerprint']}"
            f" there, {name} with {fingerprint} here; bring those data back, or train a new run"
        )


def last_checkpoint(config: TrainConfig) -> tuple[Path, dict] | None:
    """Path and content of the checkpoint that a run goes on from; None if it starts.

    That is `last.pt`.  Where it is gone, `best.pt` is as good: it was written at the end of an epoch, and
    the epochs behind it are trained again.

    Raises:
        FileNotFoundError: a file of the run is missing without which its folder would end wrong.
        ValueError: a damaged file.
    """
    folder = run_folder(config.run)
    last, best = folder / "last.pt", folder / "best.pt"
    if config.overwrite:
        return None
    if not (folder / "config.json").exists():
        if last.exists():
            raise FileNotFoundError(
                f"expected {files.shown(folder / 'config.json')} beside last.pt, found nothing there (it was"
                f" deleted, or an overwriting was cut short); {TRAIN_AGAIN}"
            )
        return None
    path = last if last.exists() else best
    if not path.exists():
        return None
    content = load_checkpoint(path)
    check_history(path, content)
    epoch = content["best"]["epoch"]
    missing = [n for n in ("best.pt", "model.safetensors") if epoch and not (folder / n).exists()]
    if missing:
        raise FileNotFoundError(
            f"expected {files.shown(folder / missing[0])}, the weights of epoch {epoch}, the best one so far,"
            f" found nothing there; {TRAIN_AGAIN}"
        )
    return path, content


def check_history(path: Path, content: dict) -> None:
    """Passes if the history beside the checkpoint at `path` has all epochs before it.

    Raises:
        FileNotFoundError: names those that it lacks.
        ValueError: it is damaged.
    """
    history = path.with_name("history.jsonl")
    there = {row["epoch"] for row in parse_history(history)} if history.is_file() else set()
    if lacking := [epoch for epoch in range(1, content["position"]["epoch"]) if epoch not in there]:
        raise FileNotFoundError(
            f"expected the epochs 1 to {content['position']['epoch'] - 1} in {files.shown(history)}, as"
            f" {path.name} goes on behind them, found no {', '.join(map(str, lacking))}; {TRAIN_AGAIN}"
        )
