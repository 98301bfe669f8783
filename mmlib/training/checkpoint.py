"""Checkpoints: their content as bytes, and read back without running anybody's code.

A checkpoint is a dict of plain values and tensors: `format`, and what `Training` puts into it.
"""

import io
import pickle
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mmlib import paths
from mmlib.config import ModelConfig

FORMAT = 1
ARCHITECTURE = (*ModelConfig.model_fields, "image_size", "max_tokens")


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
        raise FileNotFoundError(f"no checkpoint: expected {paths.shown(path)}, found nothing there")
    _check_whole(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{paths.shown(path)} is refused: it asks to run code when it is read"
            f" ({asked[1] if asked else 'an unknown instruction'}), which no checkpoint of this project does."
            " Do not load it elsewhere"
        ) from None
    except Exception as error:  # the file is whole, so somebody made it so; its reader can fail anywhere
        raise ValueError(_damaged(path, _first_line(error))) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "model" not in content:
        found = content.get("format", "no format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{paths.shown(path)} is no checkpoint of this project: expected format {FORMAT}, found {found}"
        )
    return content


def _check_whole(path: Path) -> None:
    """Passes if every byte is the one that was written: `torch.load` itself looks at no checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile leaks many kinds on garbage: struct.error, zlib.error, …
        raise ValueError(_damaged(path, _first_line(error))) from None
    if broken:
        raise ValueError(_damaged(path, f"wrong checksum of its part {broken}"))


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{paths.shown(path)} is truncated, damaged or no checkpoint ({path.stat().st_size} bytes; {reason})."
        " Use the run's other checkpoint, or train again with overwrite=True"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_fits(path: Path, content: dict, config: Mapping, tokenizer_fingerprint: str) -> None:
    """Passes if a checkpoint's architecture and tokenizer are those that are wanted.

    Args:
        path: named in the message.
        content: from `load_checkpoint`.
        config: flat parameters of the model that the checkpoint is for.
        tokenizer_fingerprint: of the tokenizer that the model will read.

    Raises:
        ValueError: names each size that differs with both values, or both tokenizers.
    """
    theirs = content["config"]
    differ = [
        f"{n}: {theirs.get(n)!r} in the checkpoint, {config[n]!r} here"
        for n in ARCHITECTURE
        if theirs.get(n) != config[n]
    ]
    if differ:
        raise ValueError(f"{paths.shown(path)} is of another architecture: " + "; ".join(differ))
    if content["tokenizer_fingerprint"] != tokenizer_fingerprint:
        raise ValueError(
            f"{paths.shown(path)} is of another tokenizer: {theirs.get('tokenizer')!r} with fingerprint"
            f" {content['tokenizer_fingerprint']} in the checkpoint, {config['tokenizer']!r} with"
            f" {tokenizer_fingerprint} here; the same token ids would mean other characters"
        )


def load_weights(path: Path, module: torch.nn.Module, state: dict) -> None:
    """Loads a state dict that must fit to the last key and shape.

    Raises:
        ValueError: names the first keys that are missing, unexpected or of another shape.
    """
    if wrong := misfits(state, module.state_dict()):
        raise ValueError(f"{paths.shown(path)} does not fit the model: {wrong}")
    module.load_state_dict(state)


def misfits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """The first keys that are missing, unexpected or of another shape, in words; empty if all fit."""
    wrong = [f"missing {name}" for name in expected if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in expected]
    wrong += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def evaluated_weights(content: dict) -> dict:
    """The weights that a checkpoint's validation metrics are of: the moving average where there is one."""
    average = content.get("average")
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
