"""The training loop, from top to bottom.

Every epoch: pairs in an order fixed by (seed, epoch); per step one forward, one loss, one backward,
one clipped optimizer step; then validation, history and, if it is due, a checkpoint.  All that the
next step depends on is in the checkpoint, so that a run that goes on equals one that never stopped, bit
for bit.

Several processes take equal shares of each batch; the loss is that of the whole batch.
"""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from tqdm import tqdm

from mmlib.config import TrainConfig
from mmlib.data import Tokenizer
from mmlib.data.batches import Batch, PairSource, SplitTensors
from mmlib.metrics import summarise
from mmlib.model import DualEncoder
from mmlib.training.checkpoint import checkpoint_bytes, evaluated_weights, rng_state, set_rng_state
from mmlib.training.embed import rank_split
from mmlib.training.gradient_cache import cached_backward, fabric_push
from mmlib.training.optimisation import WeightAverage, learning_rate, optimizer_names
from mmlib.training.processes import Processes
from mmlib.training.runs import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts


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


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextlib.contextmanager
def stop_requests(patient: bool) -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request, so that a step is never cut in two.

    Only the main thread can handle signals; elsewhere nothing is changed.

    Args:
        patient: whether a second signal is passed over; else it interrupts at once.  On Ctrl-C torchrun
            signals its processes after the terminal has, and kills those that take longer than 30 s.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        if stop.requested and not patient:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


CHECK_EVERY = 20  # steps between looks at the loss: each look makes the host wait for the device


@dataclass
class Position:
    """Where training stands: `step` steps of epoch `epoch` (absolute, from 1) are done."""

    epoch: int
    step: int = 0
    loss_sums: list[float] = field(default_factory=list)  # over the epoch's pairs so far, by process
    pairs: int = 0
    seconds: float = 0.0
    first_lr: float = 0.0


@dataclass
class Best:
    """The best epoch of this phase by the selecting validation metric."""

    epoch: int = 0
    value: float = -1.0


@dataclass
class Training:
    """A run in memory: what is trained, on what, and how far it is."""

    folder: RunFolder
    config: TrainConfig
    fabric: "Fabric"
    model: DualEncoder
    loss: torch.nn.Module
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    source: PairSource
    val_data: SplitTensors
    phase: int  # 1 for a first phase, one more than the parent's for a continued run
    parent_epoch: int  # the epoch that this phase starts after; 0 for a first phase
    log: Callable[[str], None]
    compiled: bool = False
    position: Position = field(init=False)
    best: Best = field(default_factory=Best)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.position = Position(self.parent_epoch + 1)
        self.processes = Processes.of(self.fabric)
        # Fabric's wrappers bring precision and other processes; the plain modules keep the names of
        # the weights.
        self.model.to(self.fabric.device)
        self.forward = self.fabric.setup_module(
            torch.compile(self.model, dynamic=False) if self.compiled else self.model
        )
        self.loss.to(self.fabric.device)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self.average = WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None
        self.unwritten: dict[
            str, bytes | memoryview
        ] = {}  # files of the best epoch, newer than those on the disk

    @property
    def last_epoch(self) -> int:
        """The last epoch of this phase."""
        return self.parent_epoch + self.config.epochs

    def run(self, stop: StopRequest) -> None:
        """Trains to the last epoch.

        Args:
            stop: asked between two steps.

        Raises:
            FloatingPointError: the loss or the weights became NaN or infinite; the last checkpoint is
                from before.
            KeyboardInterrupt: asked to stop (Ctrl-C or SIGTERM); a checkpoint of this moment is written.
            OSError: a checkpoint could not be written; the previous one is intact.
        """
        while self.position.epoch <= self.last_epoch:
            self._run_epoch(stop)

    def _run_epoch(self, stop: StopRequest) -> None:
        position = self.position
        steps = self.source.steps(position.epoch)
        watch = LossWatch(self.fabric.device, self._own_loss_sum(), position.pairs)
        started = time.monotonic() - position.seconds
        self.forward.train()
        batches = self.source.batches(position.epoch, position.step)
        for step, batch in zip(self._progress(range(position.step, steps), steps), batches):
            self._set_learning_rate(step, steps)
            watch.add(self._step(batch), batch.size, step, self.lr)
            position.step = step + 1
            looks = position.step % CHECK_EVERY == 0 or position.step == steps
            stopping, save = self._what_now(stop, looks, steps)
            if save or looks:
                watch.check(position.epoch, self.processes)
            if save:
                check_weights(self.model, position.epoch, position.step, self.lr)
                position.seconds = time.monotonic() - started
                position.loss_sums, position.pairs = watch.totals(self.processes)
                self._save(last=True)
            if stopping:
                raise KeyboardInterrupt
        position.loss_sums, position.pairs = watch.totals(self.processes)
        self._finish_epoch(started, steps)

    def _own_loss_sum(self) -> float:
        """What this process goes on adding to; with another number of them than before, the first one all."""
        sums = self.position.loss_sums
        if len(sums) != self.processes.count:
            sums = [math.fsum(sums)] + [0.0] * (self.processes.count - 1)
        return sums[self.processes.rank]

    def _what_now(self, stop: StopRequest, looks: bool, steps: int) -> tuple[bool, bool]:
        """Whether to stop and whether to save; several processes decide together, where all look.

        One that is asked to stop stops all; process 0 says when a checkpoint is due.
        """
        # Asked once: a request that comes between two questions would stop without a checkpoint.
        stopping = stop.requested
        ended = self.position.step == steps  # what is due then is written after the validation
        save = stopping or (not ended and self._checkpoint_is_due(steps))
        if self.processes.count == 1:
            return stopping, save
        if not looks:
            return False, False
        wishes = self.processes.collect((stopping, save))
        stopping = any(stops for stops, _ in wishes)
        return stopping, stopping or wishes[0][1]

    def _step(self, batch: Batch) -> torch.Tensor:
        self.stepper.zero_grad(set_to_none=True)
        loss = self._backward_in_chunks(batch) if self.config.chunk_size else self._backward(batch)
        self.processes.sum_gradients(self.loss.parameters())
        if self.config.clip_norm:
            # An infinite gradient is the scaler's business in fp16, and the loss's otherwise.
            self.fabric.clip_gradients(
                self.forward, self.stepper, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.stepper.step()
        if self.average:
            self.average.update(self.model)
        return loss.detach()

    def _backward(self, batch: Batch) -> torch.Tensor:
        loss = self._loss(*self.forward(batch.image, batch.tokens, batch.length_R), batch)
        self.fabric.backward(loss * self.processes.count)
        return loss

    def _backward_in_chunks(self, batch: Batch) -> torch.Tensor:
        parts = (batch.image, batch.tokens, batch.length_R)
        chunks = list(zip(*(part.split(self.config.chunk_size) for part in parts)))

        def sync(last: bool) -> contextlib.AbstractContextManager:
            return self.fabric.no_backward_sync(self.forward, enabled=not last and self.processes.count > 1)

        return cached_backward(
            lambda chunk: self.forward(*chunk),
            chunks,
            lambda image_RD, text_RD: self._loss(image_RD, text_RD, batch),
            lambda loss: self.fabric.backward(loss * self.processes.count),
            fabric_push(self.fabric),
            last_chunk=sync,
        )

    def _loss(self, image_RD: torch.Tensor, text_RD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """This process's part of the loss of the whole batch; the parts add up to it.

        The wrapper of several processes takes the mean of their gradients, so what goes backward is
        the part times their number.
        """
        processes, real = self.processes, batch.rows
        image_BD, text_BD, image_id_B = (
            processes.gather(x[:real], batch.size) for x in (image_RD, text_RD, batch.image_id_R)
        )
        rows = processes.rows(batch.size)
        return self.loss(image_BD, text_BD, image_id_B, rows)

    @property
    def lr(self) -> float:
        """The base learning rate of the last step, without the scales of groups."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("scale", 1.0)

    def _set_learning_rate(self, step: int, steps: int) -> None:
        epoch_of_phase = self.position.epoch - self.parent_epoch - 1
        lr = learning_rate(self.config, epoch_of_phase, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.loss.set_progress(epoch_of_phase + step / steps)
        if step == 0:
            self.position.first_lr = lr

    def _finish_epoch(self, started: float, steps: int) -> None:
        position = self.position
        trained = time.monotonic() - started
        check_weights(self.model, position.epoch, position.step, self.lr)
        with self._evaluated_weights():
            val = {"split": "val", **summarise(rank_split(self.model, self.val_data, self.processes))}
        row = {
            "epoch": position.epoch,
            "phase": self.phase,
            "run": self.folder.name,
            "lr": position.first_lr,
            "steps": steps,
            "train_loss": math.fsum(position.loss_sums) / position.pairs,
            "temperature": self.loss.temperature,
            "val": val,
            "seconds": round(time.monotonic() - started, 3),
            "pairs_per_s": round(position.pairs / trained, 1),
        }
        improved = val[self.config.select_by] > self.best.value
        if improved:
            self.best = Best(position.epoch, val[self.config.select_by])
        due = self.processes.agree(position.epoch == self.last_epoch or self._checkpoint_is_due(steps))
        self.position = Position(position.epoch + 1)
        if self.processes.writes:
            self.folder.append_history(row)
        if improved or due:
            self._save(best=improved, last=due)
        if self.processes.writes:
            self.log(epoch_line(row, self.last_epoch, improved))

    def _evaluated_weights(self) -> contextlib.AbstractContextManager:
        """The weights that are validated and published: the moving average where there is one."""
        return self.average.applied(self.model) if self.average else contextlib.nullcontext()

    def _checkpoint_is_due(self, steps: int) -> bool:
        """Whether process 0 wants to write; counted in steps, an epoch's end is one of the moments."""
        if every := self.config.checkpoint_steps:
            return self.position.step == steps or self.position.step % every == 0
        return time.monotonic() - self.saved_at >= self.config.checkpoint_seconds

    def _progress(self, steps: range, total: int) -> Iterator[int]:
        return tqdm(
            steps,
            desc=f"epoch {self.position.epoch}/{self.last_epoch}",
            initial=steps.start,
            total=total,
            unit="step",
            leave=False,
            disable=not (self.processes.writes and sys.stderr.isatty()),
        )

    def _save(self, best: bool = False, last: bool = False) -> None:
        """Keeps this moment as the best weights, in memory, or writes it as `last.pt`, the best before it.

        `last.pt` comes after everything that it relies on: a kill at any moment leaves a run that goes on.
        A call of all processes together.
        """
        content = self._state()
        if not self.processes.writes:
            return
        data = checkpoint_bytes(content)
        if best:
            tensors = {name: tensor.contiguous() for name, tensor in evaluated_weights(content).items()}
            self.unwritten = {"model.safetensors": safetensors_bytes(tensors), "best.pt": data}
        if last:
            for name, part in self.unwritten.items():
                self.folder.write(name, part)
            self.unwritten = {}
            self.folder.write("last.pt", data)
            self.saved_at = time.monotonic()

    def _state(self) -> dict:
        """All that the run goes on from; a call of all processes together."""
        states = self.processes.collect(rng_state())
        return {
            "config": self.config.model_dump(mode="json"),
            "tokenizer": self.tokenizer.state,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "architecture": self.model.text_encoder.architecture,
            "phase": self.phase,
            "parent_epoch": self.parent_epoch,
            "position": asdict(self.position),
            "best": asdict(self.best),
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_names": optimizer_names(self.optimizer, (self.model, self.loss)),
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": states[0],
            "rng_of_others": states[1:],
        }

    def restore(self, content: dict) -> None:
        """Goes on where `content` (a checkpoint of this run) was written.

        With another number of processes than then, those that are new start their random state anew.
        """
        self.optimizer.load_state_dict(content["optimizer"])
        if content["precision"]:
            self.fabric.strategy.precision.load_state_dict(content["precision"])
        if self.average:
            self.average.load_state_dict(content["average"])
        self.position = Position(**content["position"])
        self.best = Best(**content["best"])
        states = [content["rng"], *content.get("rng_of_others", [])]
        if self.processes.rank < len(states):
            set_rng_state(states[self.processes.rank])
        else:
            position = self.position
            torch.manual_seed((position.epoch << 40) + (position.step << 16) + self.processes.rank)


def epoch_line(row: dict, last_epoch: int, improved: bool) -> str:
    """One plain line for one epoch of the history."""
    val = row["val"]
    return (
        f"epoch {row['epoch']:>{len(str(last_epoch))}}/{last_epoch}  lr {row['lr']:.2e}"
        f"  loss {row['train_loss']:.3f}  val R@1 {100 * val['i2t']['r1']['value']:.2f} % i2t"
        f" {100 * val['t2i']['r1']['value']:.2f} % t2i  rsum {100 * val['rsum']:.1f} %"
        f"  {row['seconds']:.1f} s  {row['pairs_per_s']:,.0f} pairs/s{'  best' if improved else ''}"
    )
