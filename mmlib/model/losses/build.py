"""The loss that a config asks for, and what a continued run takes over of its parent's."""

from collections.abc import Mapping
from typing import Any

import torch

from mmlib.config import LossConfig
from mmlib.model.losses.base import Loss
from mmlib.model.losses.infonce import InfoNCE
from mmlib.model.losses.sigmoid import SigmoidLoss
from mmlib.model.losses.triplet import TripletLoss


def build_loss(config: LossConfig) -> Loss:
    """The loss that the config asks for.

    Raises:
        ValueError: there is no loss of that name.
    """
    temperature = (config.temperature, config.learn_temperature)
    if config.loss == "infonce":
        return InfoNCE(*temperature, config.identity_positives, config.label_smoothing)
    if config.loss == "sigmoid":
        return SigmoidLoss(*temperature, config.sigmoid_bias, config.identity_positives)
    if config.loss == "triplet":
        return TripletLoss(config.margin, config.hardest_after_epochs, config.identity_positives)
    raise ValueError(f"loss must be infonce, sigmoid or triplet, found {config.loss!r}")


def load_learned(loss: Loss, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Goes on with what the parent's loss has learned; what is fixed here or was fixed there stays.

    A fixed temperature is a parameter of its phase, a learned one goes on from where it is.

    Args:
        loss: of the continued run.
        state: `state_dict()` of the parent's loss.
        config: flat parameters of the parent; those of a loss that are missing have their defaults.
    """
    known = {name: config[name] for name in LossConfig.model_fields if name in config}
    parent = build_loss(LossConfig(**known))
    if type(parent) is not type(loss):
        return
    there = {name for name, parameter in parent.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad and name in there:
                parameter.copy_(state[name])
