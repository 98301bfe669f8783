"""Watching for a loss or weights that are no longer finite."""

import torch
from torch import nn

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
        """Counts the mean loss of `pairs` pairs at `step` (from 0), made at learning rate `lr`."""
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        self.bad_value = torch.where(first, loss, self.bad_value)
        self.bad_lr = torch.where(first, lr, self.bad_lr)
        self.sum += loss.double() * pairs
        self.pairs += pairs

    def check(self, epoch: int) -> None:
        """Passes if every loss so far was finite.

        Raises:
            FloatingPointError: names the epoch, the step and the learning rate.
        """
        step = int(self.bad_step)
        if step >= 0:
            raise FloatingPointError(
                f"the loss became {float(self.bad_value)} in epoch {epoch} at step {step + 1}"
                f" (lr {float(self.bad_lr):.3g}); {REMEDY}"
            )

    def totals(self) -> tuple[float, int]:
        """Sum of the loss over the pairs counted so far, and their number."""
        return float(self.sum), self.pairs


def check_weights(model: nn.Module, epoch: int, step: int, lr: float) -> None:
    """Passes if all weights are finite: a step can ruin them although its own loss was still finite.

    Raises:
        FloatingPointError: names the epoch, the number of steps done and the learning rate.
    """
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise FloatingPointError(
            f"the weights became NaN or infinite in epoch {epoch} at step {step} (lr {lr:.3g}); {REMEDY}"
        )
