"""Weights of pretrained encoders: from a file that must fit to the last key, or by a library's loader."""

import difflib
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from mmlib import files
from mmlib.config import ParameterError
from mmlib.files import fetching

FILES = (".safetensors", ".pth", ".pt", ".bin")
SHOWN = 3  # differing keys that a message names


def is_file(weights: str) -> bool:
    """Whether `image_weights` or `text_weights` names a file, by its ending."""
    return Path(weights).suffix.lower() in FILES


def read_weights(weights: str) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file; nothing in it can run code.

    A checkpoint that holds its tensors under `state_dict` or `model` is opened there, and the prefix
    `module.` of parallel training is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, asking to run code, or not a dict of tensors.
    """
    path = files.from_root(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights: expected the file {files.shown(path)}, found nothing there")
    state = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError(f"{files.shown(path)} holds no weights: expected a dict of tensors")
    if state and all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{files.shown(path)} is truncated or no safetensors file ({error})") from None


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks to run code ({asked[1]})" if asked else "it is damaged or no file of weights"
        raise ValueError(f"{files.shown(path)} is refused: {reason}") from None
    except Exception as error:  # torch's reader leaks many kinds on garbage: RuntimeError, EOFError, …
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{files.shown(path)} is truncated or no file of weights ({first[:200]})") from None


def fit(module: nn.Module, state: Mapping[str, torch.Tensor], weights: str, cut: Iterable[str] = ()) -> None:
    """Loads `state` into `module`; every key must be there with its shape.

    Args:
        module: without its classifier.
        state: from `read_weights`.
        weights: named in the message.
        cut: names of modules that were cut off, as `fc` or `head`: what the file has of them, and the
            module has not, is left out.

    Raises:
        ValueError: names the first keys that differ, and what is expected and found.
    """
    ours, cut = module.state_dict(), tuple(cut)
    # Versions of the file's modules, by which MNASNet converts older ones; its own where there are none.
    versions = getattr(state, "_metadata", ours._metadata)
    state = OrderedDict(
        (key, tensor)
        for key, tensor in state.items()
        if key in ours or not any(key == name or key.startswith(f"{name}.") for name in cut)
    )
    state._metadata = versions
    wrong = []
    for key, expected in ours.items():
        # Files older than this counter of batch norm lack it, and nothing but its own momentum reads it.
        if key not in state and not key.endswith("num_batches_tracked"):
            wrong.append(f"{key}: expected {tuple(expected.shape)}, found nothing")
        elif key in state and state[key].shape != expected.shape:
            wrong.append(f"{key}: expected {tuple(expected.shape)}, found {tuple(state[key].shape)}")
    wrong += [
        f"{key}: expected nothing, found {tuple(tensor.shape)}"
        for key, tensor in state.items()
        if key not in ours
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{weights} does not fit the architecture: {'; '.join(wrong[:SHOWN])}{more};"
            " name the encoder that the file was made for"
        )
    module.load_state_dict(state, strict=False)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ParameterError:
    """The error for a name that a library does not know, with the nearest ones that it does."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known[:8])}, …"
    return ParameterError(f"unknown {kind} {name!r}: {hint}")


@contextmanager
def downloading(encoder: str, wanted: str, instead: str, hub: bool = False) -> Iterator[None]:
    """Bounds a library's search for a file, and says what to do if neither cache nor network has it.

    Args:
        encoder: its name.
        wanted: the weights, or another file of it.
        instead: what to name in place of it, once the file was brought by other means.
        hub: whether it is on the hub of Hugging Face.

    Raises:
        FileNotFoundError: says what to download and how to name it.
    """
    try:
        with fetching(f"{wanted} of {encoder}", hub):
            yield
    except Exception as error:
        if not _of_network(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"no {wanted} of {encoder}: not in the library's cache, and not downloaded ({first[:200]});"
            f" start once where there is a network, or bring the file and name it: {instead}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps a library's remarks on random weights to itself; they are what was asked for."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    level = logging.root.manager.disable
    root.addHandler(nothing)  # else the library's first remark sets up logging for the whole process
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.removeHandler(nothing)


def _of_network(error: Exception) -> bool:
    """Whether a loader failed to reach or find a file: the errors of some HTTP clients are no OSError."""
    client = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or client in ("httpx", "httpx2", "requests", "urllib3")
