"""Wraps pretrained models of timm, torchvision, open_clip and transformers as encoders.

Their weights come from a file that must fit to the last key, or by a library's loader.

Shapes: B items, F feature channels, P positions, H, W positions of a map, Q queries, D latent width.
"""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mmlib import files
from mmlib.config import ParameterError
from mmlib.files import fetching
from mmlib.model.encoders import Block, Encoder, fingerprint_of
from mmlib.model.network import build_head

FILES = (".safetensors", ".pth", ".pt", ".bin")
SHOWN = 3  # differing keys that a message names


class PretrainedEncoder(Encoder):
    """A backbone of another library and a head.

    Args:
        name: what the backbone is, with all that its features depend on beside its weights.
        backbone: the library's own module, without its classifier; its parameters keep their names.
        read: (backbone, inputs…) to features (B, F) or (B, P, F).
        head: features to (B, D).
        blocks: name and parameter names of the backbone's blocks, from input to output.
        feature_shape, width: see `Encoder`.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        read: Callable[..., torch.Tensor],
        head: nn.Module,
        blocks: list[tuple[str, list[str]]],
        feature_shape: tuple[int, ...],
        width: int,
    ):
        super().__init__()
        self.name, self.feature_shape, self.width = name, feature_shape, width
        self.backbone, self.head = backbone, head
        self._read, self._blocks = read, blocks
        # Fixed tables, as sine positions are, stay fixed when the rest is tuned.
        self._trainable = frozenset(n for n, p in backbone.named_parameters() if p.requires_grad)

    @property
    def blocks(self) -> list[Block]:
        """The backbone's parameters in groups, from input to output."""
        parameters = dict(self.backbone.named_parameters())
        return [(block, [parameters[name] for name in names]) for block, names in self._blocks]

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the pretrained part."""
        return self.backbone.parameters()

    def features(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The backbone's output, (B, F) or (B, P, F); a gradient is kept only if some of it is tuned."""
        tuned = any(p.requires_grad for p in self.backbone_parameters())
        with torch.set_grad_enabled(tuned and torch.is_grad_enabled()):
            return self._read(self.backbone, *inputs)

    def from_features(self, feature: torch.Tensor) -> torch.Tensor:
        """The head's output, (B, D), of features of any floating type."""
        return self.head(feature.to(next(self.head.parameters()).dtype))

    def set_tune(self, tune: str) -> None:
        """Chooses what of the backbone is trained; the head always is.

        What is not trained has no gradient and behaves as in evaluation (no dropout, batch norm by its
        stored statistics), also after `train()`.

        Args:
            tune: `all`, `none`, or `last-<n>`: the n blocks nearest the output.

        Raises:
            ParameterError: another word, or more blocks than there are.
        """
        trained = {name for _, names in self._blocks[self._first_tuned(tune) :] for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained and name in self._trainable)
        self.train(self.training)

    def _first_tuned(self, tune: str) -> int:
        count = len(self._blocks)
        if tune in ("all", "none"):
            return 0 if tune == "all" else count
        kind, _, number = tune.partition("-")
        if kind != "last" or not number.isdecimal() or not int(number):
            raise ParameterError(f"tune: expected all, none or last-<n>, found {tune!r}")
        if int(number) > count:
            raise ParameterError(
                f"tune {tune!r}: {self.name} has {count} blocks ({', '.join(b for b, _ in self._blocks)});"
                f" use last-<n> with n up to {count}, or 'all'"
            )
        return count - int(number)

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            _freeze_modes(self.backbone)
        return self

    def fingerprint(self) -> str:
        """16 hex digits over the backbone's name and weights; the head has no part in it."""
        return fingerprint_of(self.name, self.backbone.state_dict())


def _freeze_modes(module: nn.Module) -> None:
    """Evaluation mode for every module that is frozen, or that stands directly in a partly frozen one."""
    parameters = list(module.parameters())
    if all(p.requires_grad for p in parameters):
        return
    if not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = False
    for child in module.children():
        # What has no parameters, as dropout, cannot be told frozen by itself: it goes with its parent.
        if next(child.parameters(), None) is None:
            child.eval()
        else:
            _freeze_modes(child)


NamedBlocks = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Backbone:
    """A library's model without its classifier.

    Attributes:
        name: as in the config, `timm:resnet18`.
        model: the library's own module, weights loaded.
        read: (model, inputs…) to features (B, F) or (B, P, F).
        blocks: name and parameter names of its blocks, from input to output.
        variant: all else that the features depend on, for the fingerprint.
        mean, std, takes: images: pixel normalisation, and the sizes it takes, in words.
        architecture: see `Encoder`.
    """

    name: str
    model: nn.Module
    read: Callable[..., torch.Tensor]
    blocks: NamedBlocks
    variant: tuple = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    takes: str = ""
    architecture: dict | None = None

    @property
    def identity(self) -> str:
        """Name and variant as one text."""
        return " ".join([self.name, *map(str, self.variant)])


class PretrainedImageEncoder(PretrainedEncoder):
    """An image backbone and its head; normalised pixels (B, 3, H, W), or features, → (B, D).

    Raises:
        ParameterError: the backbone cannot take images of this size, or has no positions to attend to.
    """

    def __init__(self, backbone: Backbone, config):
        self_shape = _feature_shape(backbone, config)
        head = build_head(self_shape, config.latent_dim, config.num_heads, config.dropout)
        super().__init__(
            f"{backbone.identity} mean {backbone.mean} std {backbone.std} {config.image_pooling}",
            backbone.model, backbone.read, head, backbone.blocks, self_shape, config.latent_dim,
        )  # fmt: skip
        self.mean, self.std, self.image_size = backbone.mean, backbone.std, config.image_size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W), or features (B, F) or (B, P, F), → (B, D)."""
        return self.from_features(self.features(image) if image.ndim == 4 else image)


class PretrainedTextEncoder(PretrainedEncoder):
    """A text backbone and its head; token ids (B, L) and lengths (B,), or features (B, F), → (B, D)."""

    def __init__(self, backbone: Backbone, features: int, config):
        head = build_head((features,), config.latent_dim, config.num_heads, config.dropout)
        super().__init__(
            backbone.identity,
            backbone.model, backbone.read, head, backbone.blocks, (features,), config.latent_dim,
        )  # fmt: skip
        self.architecture = backbone.architecture

    def forward(self, tokens: torch.Tensor, length_B: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, L) and lengths (B,), or features (B, F), → (B, D)."""
        return self.from_features(tokens if tokens.is_floating_point() else self.features(tokens, length_B))


@torch.no_grad()
def _feature_shape(backbone: Backbone, config) -> tuple[int, ...]:
    """The shape of one image's features, found by trying a black image."""
    size = config.image_size
    try:
        shape = tuple(backbone.read(backbone.model.eval(), torch.zeros(1, 3, size, size)).shape[1:])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise wrong_size(backbone.name, size, backbone.takes) from error
    if 0 in shape:
        raise wrong_size(backbone.name, size, backbone.takes)
    if len(shape) != (2 if config.image_pooling == "attention" else 1):
        raise ParameterError(
            f"image_pooling {config.image_pooling!r}: {backbone.name} gives features of shape {shape}, which"
            " have no positions to attend to; use image_pooling 'encoder'"
        )
    return shape


def wrong_size(name: str, found: int, takes: str) -> ParameterError:
    """The error for an image size that an encoder cannot take."""
    return ParameterError(f"image_size: {name} takes {takes}, found {found}")


def is_loaded(weights: str, load_pretrained: bool) -> bool:
    """Whether weights are to come from the library's loader."""
    return load_pretrained and weights != "none" and not is_file(weights)


def positions(map_BFHW: torch.Tensor) -> torch.Tensor:
    """A map's positions row by row, (B, P, F)."""
    return map_BFHW.flatten(2).transpose(1, 2)


def layer_blocks(model: nn.Module, layers: str, after: Callable[[str], bool]) -> NamedBlocks:
    """Blocks of a transformer: what comes before its layers, and each layer; what comes after joins the last.

    Args:
        model: the transformer.
        layers: name of the list of its layers.
        after: tells by a parameter's name whether it comes after the layers.
    """
    blocks: dict[str, list[str]] = {"embedding": []}
    blocks |= {f"{layers}.{name}": [] for name, _ in model.get_submodule(layers).named_children()}
    last = list(blocks)[-1]
    for name, _ in model.named_parameters():
        if name.startswith(f"{layers}."):
            blocks[f"{layers}.{name.removeprefix(layers + '.').split('.')[0]}"].append(name)
        else:
            blocks[last if after(name) else "embedding"].append(name)
    return [(block, names) for block, names in blocks.items() if names]


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
