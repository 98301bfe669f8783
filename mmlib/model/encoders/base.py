"""What every encoder is, whether trained from scratch or built around another library's weights.

An encoder gives one vector of the latent's width for each image or caption.  Around a pretrained
model it is in two parts: the *backbone*, whose output for an input is that input's *features*, and
the *head*, which is always trained.  The features of a frozen backbone can be computed once and
passed in place of the pixels or token ids.  An encoder that is trained from scratch has no such
border.

Shapes: B items, F feature channels, P positions, D latent width.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from mmlib.config import ParameterError

Block = tuple[str, list[nn.Parameter]]


class Encoder(nn.Module):
    """Base of all encoders; as it stands, one that is trained from scratch.

    Attributes:
        width: D.
        feature_shape: (F,) or (P, F) of one item's features; None where there is no backbone.
        architecture: what is needed to build the same encoder again where neither weights nor their
            folder are at hand, as JSON types; None if its name and the config are enough.
        mean, std: images: what is subtracted from and divides RGB values in 0..1 before `forward`.
        image_size: images: side in pixels.
    """

    width: int
    feature_shape: tuple[int, ...] | None = None
    architecture: dict | None = None

    @property
    def blocks(self) -> list[Block]:
        """The backbone's parameters in groups, from input to output; none where there is no backbone."""
        return []

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the pretrained part."""
        return iter(())

    def features(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What a frozen backbone always gives for the input; without a backbone, the output itself."""
        return self(*inputs)

    def from_features(self, feature: torch.Tensor) -> torch.Tensor:
        """(B, D) of what `features` returned."""
        return feature

    def set_tune(self, tune: str) -> None:
        """Chooses what is trained.

        Raises:
            ParameterError: anything but `all` for an encoder without a backbone.
        """
        if tune != "all":
            raise ParameterError(
                f"tune {tune!r} needs a pretrained encoder: {type(self).__name__} is trained from scratch,"
                " use 'all'"
            )

    def fingerprint(self) -> str:
        """16 hex digits over architecture and weights of what makes the features."""
        return fingerprint_of(type(self).__name__, self.state_dict())


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


def fingerprint_of(name: str, state: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over a name and the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(name.encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
