"""Device, precision and processes of a training: who writes, what is gathered, what all decide together.

Several processes are started by torchrun, on one machine or several; without it there is one, and
everything here costs nothing.

Shapes: R rows of this process, B rows of all processes, D width.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mmlib.config import ParameterError, TrainConfig
from mmlib.locks import InUse

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
COMPILE_STEPS = 10_000  # a step gains some 10 ms by compiling, which itself takes about a minute


def build_fabric(config) -> "Fabric":
    """Device, precision and, under torchrun, the processes of this training.

    Raises:
        ParameterError: a GPU is asked for and there is none, fewer GPUs than processes, or fp16 without
            a GPU.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    gpus = torch.cuda.device_count()
    if config.device == "cuda" and not gpus:
        raise ParameterError("device: expected a CUDA GPU, found none; use device='auto' or 'cpu'")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    precision = getattr(config, "precision", "fp32")
    if precision == "fp16" and device == "cpu":
        raise ParameterError("precision: fp16 needs a GPU, found a CPU; use bf16 or fp32")
    here, everywhere = processes_per_machine(), process_count()
    if device == "cuda" and here > gpus:
        raise ParameterError(
            f"expected a GPU for each of the {here} processes on this machine, found {gpus}; start fewer"
            " (--nproc_per_node), or use device='cpu'"
        )
    several = {}
    if everywhere > 1:
        # What gets no gradient: the networks of the test-time write, and a pretrained encoder's own pooling.
        unused = getattr(config, "memory_write", False) or getattr(config, "image_pooling", "") == "attention"
        several = {"strategy": DDPStrategy(find_unused_parameters=unused), "num_nodes": everywhere // here}
    fabric = Fabric(accelerator=device, devices=here, precision=PRECISION[precision], **several)
    if everywhere > 1:
        fabric.launch()
    return fabric


def compiles(config: TrainConfig, fabric: "Fabric", pairs: int) -> bool:
    """Whether the model is compiled; `auto` where the minute that compiling takes comes back.

    Args:
        config: of the run.
        fabric: its device.
        pairs: of an epoch.
    """
    if config.compile != "auto":
        return config.compile == "on"
    return fabric.device.type == "cuda" and pairs // config.batch_size * config.epochs >= COMPILE_STEPS


_FAMILIES = (
    ParameterError, FileNotFoundError, FileExistsError, InUse, OSError, ValueError, RuntimeError, Exception
)  # fmt: skip


def process_count() -> int:
    """Number of processes that torchrun started for this training; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def processes_per_machine() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process_count() > 1 else 1


def check_divides(batch_size: int, processes: int) -> None:
    """Passes if every process gets the same share of a batch.

    Raises:
        ParameterError: names both numbers and the nearest batch sizes that would do.
    """
    if batch_size % processes:
        low = batch_size - batch_size % processes
        near = [str(size) for size in (low, low + processes) if size >= max(2, processes)]
        raise ParameterError(
            f"batch_size must be a multiple of the number of processes: found {batch_size} pairs for"
            f" {processes} processes; use {' or '.join(near)}, or another number of processes"
        )


def share(count: int, rank: int, processes: int) -> slice:
    """The rows of `count` that belong to a process: contiguous, sizes that differ by one at most."""
    small, larger = divmod(count, processes)
    start = rank * small + min(rank, larger)
    return slice(start, start + small + (rank < larger))


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them.

    Attributes:
        rank, count: this process, from 0, and the number of all.
        device: of this process.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, fabric: "Fabric") -> "Processes":
        """Those that were launched with `fabric`."""
        return cls(fabric.global_rank, fabric.world_size, fabric.device)

    @property
    def writes(self) -> bool:
        """Whether this one writes files and lines; one of them does."""
        return self.rank == 0

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Ends a block in which the processes do not talk to each other: an error of one is an error of all.

        So none goes on to wait for one that has left, and all end with the same exit code.

        Raises:
            Exception: this process's own; or, of the same family, that of the first that has one.
        """
        error = None
        try:
            yield
        except Exception as own:
            error = own
        try:
            # their families, since not every error can be made from a text
            errors = self.collect(error and (next(k for k in _FAMILIES if isinstance(error, k)), str(error)))
        except Exception as lost:
            raise error or lost from None
        if error:
            raise error
        for rank, theirs in enumerate(errors):
            if theirs:
                kind, text = theirs
                raise kind(f"process {rank} of {self.count}: {text}")

    def has_lost(self, error: BaseException) -> bool:
        """Whether an error says that another process is gone, not that something is wrong in this one."""
        # gloo has no error of its own: its messages begin with the place in its source
        return self.count > 1 and (isinstance(error, dist.DistError) or "gloo/" in str(error))

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def agree(self, value: Any) -> Any:
        """The value of process 0 (any that can be pickled), in every process."""
        if self.count == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def collect(self, value: Any) -> list:
        """The values of all processes in the order of their ranks, in every process."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, x_RD: torch.Tensor, batch: int) -> torch.Tensor:
        """The rows of all processes in order, (B, …), with gradients for this one's from all losses.

        Args:
            x_RD: this process's `share` of a batch.
            batch: B.
        """
        if self.count == 1:
            return x_RD
        return _Gather.apply(x_RD, batch, self.rank, self.count)

    def rows(self, batch: int) -> slice:
        """The rows of a batch that are this process's."""
        return share(batch, self.rank, self.count)

    def sum_gradients(self, parameters) -> None:
        """Adds up gradients of weights that no wrapper keeps equal (those of the loss)."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.count  # as the wrapper's mean does for the model's


class _Gather(torch.autograd.Function):
    """Every process sees all rows; back come the gradients of all processes' losses, added up."""

    @staticmethod
    def forward(ctx, x_RD, batch, rank, count):
        ctx.rows = share(batch, rank, count)
        largest = -(-batch // count)
        padded = x_RD.new_zeros(largest, *x_RD.shape[1:])
        padded[: len(x_RD)] = x_RD
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded)
        sizes = [share(batch, r, count) for r in range(count)]
        return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, sizes)])

    @staticmethod
    def backward(ctx, gradient_BD):
        gradient_BD = gradient_BD.contiguous()
        dist.all_reduce(gradient_BD)
        return gradient_BD[ctx.rows], None, None, None
