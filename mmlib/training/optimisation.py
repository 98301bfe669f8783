"""Optimizers and the course of the learning rate.

The learning rate is a function of the step alone, never of an optimizer's or scheduler's memory:
restoring a state cannot put an old rate back (REFERENCE §3.3).
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from mmlib.config import OptimConfig


def build_optimizer(config: OptimConfig, modules: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """SGD-Nesterov or AdamW over all trainable parameters; weight decay on matrices alone.

    Biases, norms, position and type vectors and the temperature are not decayed.
    """
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr)


def keep_optimizer_state(optimizer: torch.optim.Optimizer, parent: dict) -> None:
    """Takes over the parent's momentum and the like, and none of its settings.

    PyTorch keeps settings (lr, momentum, weight decay) in the same dict as the state; loading it
    whole would put the parent's back over those asked for.

    Args:
        optimizer: of the continued run, over the parent's weights in the parent's order; a temperature
            that is newly learned comes last and starts without a state.
        parent: `state_dict()` of the parent's optimizer.
    """
    own = optimizer.state_dict()
    known = {i for group in own["param_groups"] for i in group["params"]}
    state = {i: value for i, value in parent["state"].items() if i in known}
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def learning_rate(config: OptimConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one step.

    Cosine: lr·(f + (1 − f)·(1 + cos πt)/2), f the final fraction and t the share of the schedule
    that lies behind (Loshchilov & Hutter 2017, eq. 5, without restarts).  Per epoch, t moves in
    steps of 1/epochs, as the reference experiment does; the last epoch then runs slightly above
    the final rate.  Warm-up rises linearly from lr / (warm-up steps) over its first steps.

    Args:
        config: rate, schedule, warm-up and number of epochs of this phase.
        epoch: of this phase, from 0.
        step: of this epoch, from 0.
        steps: per epoch.
    """
    warm = config.warmup_epochs * steps
    done = epoch * steps + step
    if done < warm:
        return config.lr * min(1.0, (done + 1) / warm)
    if config.schedule == "constant":
        return config.lr
    if config.schedule_unit == "epoch":
        share = max(0.0, epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    else:
        share = (done - warm) / (config.epochs * steps - warm)
    low = config.final_lr_fraction
    return config.lr * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)
