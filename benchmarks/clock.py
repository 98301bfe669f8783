"""Times the steps of any training loop, ours or another's, by the one thing they share: the optimizer.

torch calls a hook after every optimizer step of the process.  The loop under measurement runs as it
is, from its public entry, and is stopped from the hook when enough steps are done.
"""

import time

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode


class EnoughSteps(Exception):
    """The steps asked for are done."""


class StepClock:
    """Seconds of `steps` steps after `skip` others; the loop is left by `EnoughSteps`, which stays inside.

    With `count`, one step's floating-point operations are counted instead, by torch's own counter
    (matrix products, convolutions and attention), and the parameters that the optimizer holds.

    Usage: `with StepClock(2, 8) as clock: train()`, then `clock.seconds`.

    Raises:
        RuntimeError: on leaving, if the loop ended before its steps were done.
    """

    def __init__(self, skip: int, steps: int, count: bool = False):
        self.skip, self.steps, self.count = skip, steps, count
        self.done, self.started, self.seconds = 0, 0.0, None
        self.flops = self.parameters = None

    def __enter__(self) -> "StepClock":
        self._hook = register_optimizer_step_post_hook(self._after_step)
        self._counter = None
        return self

    def __exit__(self, kind, error, trace) -> bool:
        self._hook.remove()
        if self._counter:
            self._counter.__exit__(None, None, None)
        if kind is None:
            raise RuntimeError(f"expected {self.skip + self.steps} steps, found {self.done}: too little data")
        return kind is EnoughSteps

    def _after_step(self, optimizer, *_) -> None:
        self.done += 1
        if self.done == self.skip:
            if self.count:
                self._counter = FlopCounterMode(display=False)
                self._counter.__enter__()
            self.started = _now()
        elif self.done == self.skip + self.steps:
            self.seconds = _now() - self.started
            if self._counter:
                self.flops = self._counter.get_total_flops() / self.steps
                self.parameters = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
            raise EnoughSteps


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
