"""A backbone of another library and a trained head as an encoder, and files of weights.

Shapes: B items, F feature channels, P positions, D latent width.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmlib import files
from mmlib.config import JOIN, ParameterError
from mmlib.files import fetching
from mmlib.model.encoders import Block, Encoder, unknown_name
from mmlib.model.network import build_head

FILES = (".safetensors", ".pth", ".pt", ".bin")
SHOWN = 3  # lines of a library's message that ours repeats


@dataclass(frozen=True)
class Backbone:
    """A library's model without its classifier.

    Attributes:
        name: as in the config, `timm:resnet18`.
        model: the library's own module, weights loaded; its parameters keep their names.
        read: (model, inputs…) to features (B, F) or (B, P, F).
        blocks: name and parameter names of its blocks, from input to output.
        identity: all that the features depend on beside the weights, for the fingerprint.
        mean, std: images: pixel normalisation.
        size: images: side in pixels that the model was made for.
        ids: text: number of token ids.
        architecture: see `Encoder`.
    """

    name: str
    model: nn.Module
    read: Callable[..., torch.Tensor]
    blocks: list[tuple[str, list[str]]]
    identity: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int = 0
    ids: int = 0
    architecture: dict | None = None


class SideBySide(nn.Module):
    """Several image backbones of the same pixels, each with its own normalisation; features joined (B, ΣF).

    Args:
        parts: the backbones; images come with the normalisation of the first.
    """

    def __init__(self, parts: Sequence[Backbone]):
        super().__init__()
        self.models, self.reads = nn.ModuleList(part.model for part in parts), [part.read for part in parts]
        mean_K3, std_K3 = (torch.tensor([getattr(part, of) for part in parts]) for of in ("mean", "std"))
        self.register_buffer("gain_K3", std_K3[0] / std_K3, persistent=False)
        self.register_buffer("shift_K3", (mean_K3[0] - mean_K3) / std_K3, persistent=False)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images (B, 3, H, W) → (B, ΣF)."""
        columns = zip(self.models, self.reads, self.gain_K3[..., None, None], self.shift_K3[..., None, None])
        return torch.cat([read(m, image_BCHW * gain + shift) for m, read, gain, shift in columns], dim=-1)


def side_by_side(parts: Sequence[Backbone]) -> Backbone:
    """One backbone of several; its blocks are theirs of equal distance from the output."""
    blocks = []
    levels = zip_longest(*(reversed(part.blocks) for part in parts))
    for level in reversed(list(levels)):
        there = [(k, *block) for k, block in enumerate(level) if block]
        label = JOIN.join(label for _, label, _ in there)
        blocks.append((label, [f"models.{k}.{name}" for k, _, names in there for name in names]))
    name, identity = (JOIN.join(getattr(part, of) for part in parts) for of in ("name", "identity"))
    first, model = parts[0], SideBySide(parts)
    return Backbone(
        name, model, SideBySide.__call__, blocks, identity, first.mean, first.std, min(p.size for p in parts)
    )


class PretrainedEncoder(Encoder):
    """A backbone of another library and a head, built for the shape of the backbone's features.

    Args:
        backbone: the library's model.
        example: the inputs of one item, on which the backbone is tried.
        config: anything with the fields of ModelConfig.

    Raises:
        ParameterError: the backbone cannot take images of this size, or has no positions to attend to.
    """

    def __init__(self, backbone: Backbone, example: Sequence[torch.Tensor], config: Any):
        super().__init__()
        self.name, self.backbone, self.architecture = backbone.identity, backbone.model, backbone.architecture
        self._read, self._blocks = backbone.read, backbone.blocks
        self.feature_shape = _feature_shape(backbone, example)
        if len(self.feature_shape) != 1 + (backbone.size > 0 and config.image_pooling == "attention"):
            raise ParameterError(
                f"image_pooling {config.image_pooling!r}: {backbone.name} gives features of shape"
                f" {self.feature_shape}; use image_pooling 'encoder'"
            )
        self.mean, self.std = backbone.mean, backbone.std
        self.head = build_head(self.feature_shape, config.latent_dim, config.num_heads, config.dropout)
        # Fixed tables, as sine positions are, stay fixed when the rest is tuned.
        self._trainable = frozenset(n for n, p in self.backbone.named_parameters() if p.requires_grad)

    def forward(self, item: torch.Tensor, length_B: torch.Tensor | None = None) -> torch.Tensor:
        """(B, D) of pixels (B, 3, H, W), of token ids (B, L) and lengths (B,), or of ready features."""
        if not item.is_floating_point():
            item = self.features(item, length_B)
        elif item.ndim == 4:
            item = self.features(item)
        return self.head(item.to(next(self.head.parameters()).dtype))

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

    def set_tune(self, tune: str) -> None:
        """Chooses what of the backbone is trained; the head always is.

        What is not trained has no gradient and behaves as in evaluation (no dropout, batch norm by its
        stored statistics), also after `train()`.

        Args:
            tune: `all`, `none`, or `last-<n>`: the n blocks nearest the output.

        Raises:
            ParameterError: more blocks than there are.
        """
        count = len(self._blocks)
        last = int(tune.removeprefix("last-")) if "-" in tune else {"all": count, "none": 0}[tune]
        if last > count:
            raise ParameterError(
                f"tune {tune!r}: {self.name} has {count} blocks ({', '.join(b for b, _ in self._blocks)});"
                f" use last-<n> with n up to {count}, or 'all'"
            )
        trained = {name for _, names in self._blocks[count - last :] for name in names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained and name in self._trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():  # parents first: what has no weights is as they are
            if parameters := list(module.parameters()):
                module.train(mode and all(p.requires_grad for p in parameters))
        return self

    def fingerprint(self) -> str:
        """16 hex digits over the backbone's name and weights; the head has no part in it."""
        digest, state = hashlib.sha256(self.name.encode()), self.backbone.state_dict()
        for key in sorted(state):
            tensor = state[key].detach().cpu().contiguous()
            digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


@torch.no_grad()
def _feature_shape(backbone: Backbone, example: Sequence[torch.Tensor]) -> tuple[int, ...]:
    try:
        shape = tuple(backbone.read(backbone.model.eval(), *example).shape[1:])
        if 0 in shape:
            raise ValueError("nothing is left of the image")
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ParameterError(
            f"image_size: {backbone.name} cannot take {example[0].shape[-1]} pixels; it was made for"
            f" {backbone.size}"
        ) from error
    return shape


def is_file(weights: str) -> bool:
    """Whether `image_weights` or `text_weights` names a file, by its ending."""
    return Path(weights).suffix.lower() in FILES


def chosen_tag(encoder: str, weights: str, tags: Sequence[str], option: str) -> str | None:
    """The library's tag that `weights` names, its first for `default`; None for `none` and for a file.

    Args:
        encoder, weights: as the user named them.
        tags: the library's, for this encoder.
        option: where the weights are named; that of a command, as `--weights`, takes no `none`.

    Raises:
        ParameterError: a tag that the library does not have, or `default` where it has none.
    """
    if weights == "none" or is_file(weights):
        return None
    if not tags:
        choices = "a file" if option.startswith("--") else "'none' or a file"
        raise ParameterError(
            f"{encoder.partition(':')[0]} has no weights for {encoder}: use {option} {choices}"
            f" ({', '.join(FILES)})"
        )
    if weights != "default" and weights not in tags:
        raise unknown_name(f"weights of {encoder}", weights, tags)
    return tags[0] if weights == "default" else weights


@contextmanager
def reading(encoder: str, weights: str) -> Iterator[str]:
    """Gives the path of a file of weights to a library that loads it, and says what is wrong with the file.

    Args:
        encoder: the name of what the weights are for.
        weights: the file, relative paths from the repository's root.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, asks to run code, or does not fit.
    """
    path = files.from_root(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no weights: expected the file {files.shown(path)}, found nothing there")
    try:
        yield str(path)
    except Exception as error:  # the readers leak many kinds on garbage: RuntimeError, EOFError, …
        said = [line.strip()[:200] for line in (str(error) or type(error).__name__).splitlines()]
        raise ValueError(
            f"{files.shown(path)} cannot be loaded into {encoder}: {' '.join(said[: 1 + SHOWN])}; it is"
            " damaged, asks to run code, or was made for another encoder"
        ) from None  # torch's own text has a line for each key


def load_file(model: nn.Module, encoder: str, weights: str, cut: Sequence[str]) -> None:
    """Loads a file into a model; every key must be there with its shape.

    Args:
        model: without its classifier.
        encoder, weights: as of `reading`.
        cut: names of modules that were cut off, as `fc`: what the file has of them is left out.

    Raises:
        FileNotFoundError, ValueError: as `reading`.
    """
    from timm.models import load_state_dict

    ours, prefixes = model.state_dict(), tuple(f"{name}." for name in cut)
    with reading(encoder, weights) as path:
        state = OrderedDict(load_state_dict(path, use_ema=False))
        for key in [key for key in state if key.startswith(prefixes) and key not in ours]:
            del state[key]
        # MNASNet asks for its version.  Without one, batch norm does without a counter in older files.
        state._metadata = {"": {"version": model._version}}
        model.load_state_dict(state)


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
        client = type(error).__module__.partition(".")[0]
        # The errors of some HTTP clients are no OSError.
        if not isinstance(error, OSError) and client not in ("httpx", "httpx2", "requests", "urllib3"):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"no {wanted} of {encoder}: not in the library's cache, and not downloaded ({first[:200]});"
            f" start once where there is a network, or bring the file and name it: {instead}"
        ) from error
