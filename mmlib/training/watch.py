"""Watching for a loss or weights that are no longer finite."""

import torch
from torch import nn

from mmlib.training.processes import Processes

REMEDY = "the last checkpoint is from before. Try a lower lr, a warm-up, or precision fp32"


class LossWatch:
    """Sums the loss and notes the first step at which it was not finite, on the device, without waiting."""

    def __init__(self, device: torch.device, loss_sum: float, pairs: int):
        self.sum = torch.tensor(loss_sum, dtype=torch.float64, device=device)
        self.pairs = pairs
        self.bad_step = torch.tensor(-1, device=device)
        self.bad_value = torch.tensor(0.0, device=device)
        self.bad_lr = torch.tensor(0.0, device=device)

    def add(self, loss: torch.Tensor, pairs: int, step: int, lr: float) -> None:
        """Counts a loss at `step` (from 0), made at learning rate `lr`.

        `loss` is this process's part of the mean over `pairs` pairs; the parts add up to the mean.
        """
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        self.bad_value = torch.where(first, loss, self.bad_value)
        self.bad_lr = torch.where(first, lr, self.bad_lr)
        self.sum += loss.double() * pairs
        self.pairs += pairs

    def check(self, epoch: int, processes: Processes) -> None:
        """Passes if every loss so far was finite, in every process.

        Raises:
            FloatingPointError: names the epoch, the step and the learning rate.
        """
        seen = processes.collect([int(self.bad_step), float(self.bad_value), float(self.bad_lr)])
        bad = [values for values in seen if values[0] >= 0]
        if bad:
            step, value, lr = min(bad, key=lambda values: values[0])
            raise FloatingPointError(
                f"the loss became {value} in epoch {epoch} at step {step + 1} (lr {lr:.3g}); {REMEDY}"
            )

    def totals(self, processes: Processes) -> tuple[list[float], int]:
        """Sums of the loss over the pairs counted so far, one of each process, and the number of pairs."""
        return processes.collect(float(self.sum)), self.pairs


def check_weights(model: nn.Module, epoch: int, step: int, lr: float) -> None:
    """Passes if all weights are finite: a step can ruin them although its own loss was still finite.

    Raises:
        FloatingPointError: names the epoch, the number of steps done and the learning rate.
    """
    if not torch.stack([p.isfinite().all() for p in model.parameters()]).all():
        raise FloatingPointError(
            f"the weights became NaN or infinite in epoch {epoch} at step {step} (lr {lr:.3g}); {REMEDY}"
        )
