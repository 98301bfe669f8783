"""The training loop, from top to bottom.

Every epoch: pairs in an order fixed by (seed, epoch); per step one forward, one loss, one backward,
one clipped optimizer step; then validation, history and, if it is due, a checkpoint.  All that the
next step depends on is in the checkpoint: a resumed run equals one that never stopped, bit for bit.

Several processes take equal shares of each batch; the loss is that of the whole batch.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.utils._pytree import tree_map

from mmlib.config import TrainConfig
from mmlib.data import Tokenizer
from mmlib.data.batches import Batch, PairSource, SplitTensors
from mmlib.metrics import summarise
from mmlib.model import DualEncoder
from mmlib.training.card import health_warning
from mmlib.training.checkpoint import (
    checkpoint_bytes,
    evaluated_weights,
    load_weights,
    rng_state,
    set_rng_state,
)
from mmlib.training.embed import rank_split
from mmlib.training.optimisation import (
    Chunked,
    average_state,
    learning_rate,
    optimizer_names,
    start_average,
    update_average,
)
from mmlib.training.processes import all_gather_batch, all_gather_objects, share, sum_gradients
from mmlib.training.progress import Progress
from mmlib.training.runs import RunFolder, read_history

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts

CHECK_EVERY = 20  # steps between looks at the loss: each look makes the host wait for the device
REMEDY = "the last checkpoint is from before. Try a lower lr, a warm-up, or precision fp32"


@dataclass
class Position:
    """Where training stands: `step` steps of epoch `epoch` (absolute, from 1) are done."""

    epoch: int
    step: int = 0
    loss_sums: list[float] = field(default_factory=list)  # over the epoch's pairs so far, by process
    pairs: int = 0
    seconds: float = 0.0
    first_lr: float = 0.0
    gradient_norm: float | None = None  # of the epoch's last step, before clipping


def run(learner: "Learner", stop: threading.Event) -> None:
    """Trains to the last epoch.

    Args:
        learner: what is trained, on what, and where it stands.
        stop: set by who asks the run to stop; read between two steps.

    Raises:
        FloatingPointError: the loss or the weights became NaN or infinite; the last checkpoint is
            from before.
        KeyboardInterrupt: asked to stop (Ctrl-C or SIGTERM); a checkpoint of this moment is written.
        OSError: a checkpoint could not be written; the previous one is intact.
    """
    config, fabric, model, optimizer = learner.config, learner.fabric, learner.model, learner.optimizer
    while learner.position.epoch <= learner.last_epoch:
        position, epoch_of_phase = learner.position, learner.position.epoch - learner.parent_epoch - 1
        steps = learner.source.steps(position.epoch)
        loss_sum, unread, started = learner.own_loss_sum(), [], time.monotonic() - position.seconds
        learner.forward.train()
        for batch in learner.progress.batches(
            learner.source.batches(position.epoch, position.step),
            desc=f"epoch {position.epoch}/{learner.last_epoch}",
            initial=position.step,
            total=steps,
            unit="step",
            leave=False,
        ):
            lr = learning_rate(config, epoch_of_phase, position.step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            learner.loss.set_progress(epoch_of_phase + position.step / steps)

            learner.stepper.zero_grad(set_to_none=True)
            loss = learner.backward(batch)
            norm = None
            if config.clip_norm:
                # An infinite gradient is the scaler's business in fp16, and the loss's otherwise.
                norm = fabric.clip_gradients(
                    learner.forward, learner.stepper, max_norm=config.clip_norm, error_if_nonfinite=False
                )
            learner.stepper.step()
            if learner.average:
                update_average(learner.average, model, config.ema_decay)

            position.first_lr = position.first_lr if position.step else lr
            position.step += 1
            position.pairs += batch.size
            unread.append((position.step, lr, batch.size, loss))
            ended = position.step == steps
            looks = ended or position.step % CHECK_EVERY == 0
            stopping, save = learner.wishes(stop, looks, ended)
            if looks or save:
                loss_sum = read_losses(loss_sum, unread, position.epoch, fabric)
                unread.clear()
            if ended and norm is not None and norm.isfinite():
                position.gradient_norm = float(norm)
            if ended or save:
                check_weights(model, position.epoch, position.step, lr)
                position.loss_sums = all_gather_objects(fabric, loss_sum)
            if save:
                position.seconds = time.monotonic() - started
                learner.save(last=True)
            if stopping:
                raise KeyboardInterrupt

        trained = time.monotonic() - started
        evaluated = learner.average.module if learner.average else model
        ranks, health = rank_split(evaluated, learner.val_data, fabric)
        val = {"split": "val", **summarise(ranks)}
        learner.end_epoch(steps, val, health, trained, time.monotonic() - started)


@dataclass
class Learner:
    """A run in memory: what is trained, on what, and where it stands."""

    folder: RunFolder
    config: TrainConfig
    fabric: "Fabric"
    model: DualEncoder
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    source: PairSource
    val_data: SplitTensors
    phase: int  # 1 for a first phase, one more than the parent's for a continued run
    parent_epoch: int  # the epoch that this phase starts after; 0 for a first phase
    progress: Progress
    compiled: bool = False
    position: Position = field(init=False)
    # The best epoch of this phase by the selecting validation metric, or the last one.
    best: dict = field(default_factory=lambda: {"epoch": 0, "value": -1.0})
    saved_at: float = field(default_factory=time.monotonic)
    unwritten: dict | None = None  # the best epoch's content, if the disk does not have it yet

    def __post_init__(self):
        self.position = Position(self.parent_epoch + 1)
        # Fabric's wrappers bring precision and other processes; the plain modules keep the names of
        # the weights.
        module = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.forward = self.fabric.setup_module(
            Chunked(module, self.config.chunk_size) if self.config.chunk_size else module
        )
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        self.average = start_average(self.model) if self.config.ema_decay else None

    @property
    def last_epoch(self) -> int:
        """The last epoch of this phase."""
        return self.parent_epoch + self.config.epochs

    def own_loss_sum(self) -> float:
        """What this process goes on adding to; with another number of them than before, the first one all."""
        sums = self.position.loss_sums
        if len(sums) != self.fabric.world_size:
            sums = [math.fsum(sums)] + [0.0] * (self.fabric.world_size - 1)
        return sums[self.fabric.global_rank]

    def backward(self, batch: Batch) -> torch.Tensor:
        """Forward, loss and backward; returns this process's part of the loss of the whole batch.

        The parts add up to the loss.  Fabric's wrapper takes the mean of the processes' gradients, so what
        goes backward is the part times their number.
        """
        fabric = self.fabric
        embedded = self.forward(batch.image, batch.tokens, batch.length_R)
        own = (x[: batch.rows] for x in (*embedded, batch.image_id_R))
        rows = share(batch.size, fabric.global_rank, fabric.world_size)
        loss = self.loss(*(all_gather_batch(fabric, x, batch.size) for x in own), rows)
        fabric.backward(loss * fabric.world_size)
        sum_gradients(fabric, self.loss.parameters())
        return loss.detach()

    def wishes(self, stop: threading.Event, looks: bool, ended: bool) -> tuple[bool, bool]:
        """Whether to stop and whether to save; several processes decide together, where all look.

        One that is asked to stop stops all; process 0 says when a checkpoint is due.  What is due at an
        epoch's end is written after the validation.
        """
        # Read once: a request that comes between two readings would stop without a checkpoint.
        stopping = stop.is_set()
        save = stopping or (not ended and self._checkpoint_is_due())
        if self.fabric.world_size == 1:
            return stopping, save
        if not looks:
            return False, False
        wishes = all_gather_objects(self.fabric, (stopping, save))
        stopping = any(stops for stops, _ in wishes)
        return stopping, stopping or wishes[0][1]

    def _checkpoint_is_due(self) -> bool:
        if every := self.config.checkpoint_steps:
            return self.position.step % every == 0
        return time.monotonic() - self.saved_at >= self.config.checkpoint_seconds

    def end_epoch(self, steps: int, val: dict, health: dict, trained: float, seconds: float) -> None:
        """Adds the epoch to the history, keeps its weights if they are the best, writes what is due."""
        position, is_main = self.position, self.fabric.is_global_zero
        row = {
            "epoch": position.epoch,
            "phase": self.phase,
            "run": self.config.run,
            "lr": position.first_lr,
            "steps": steps,
            "train_loss": math.fsum(position.loss_sums) / position.pairs,
            "temperature": self.loss.temperature,
            "health": {
                **health,
                "gradient_norm": position.gradient_norm,
                "chance_loss": math.log(self.config.batch_size) if self.config.loss == "infonce" else None,
            },
            "val": val,
            "seconds": round(seconds, 3),
            "pairs_per_s": round(position.pairs / trained, 1),
        }
        by = self.config.select_by
        value = position.epoch if by == "last" else val[by]
        improved = value > self.best["value"]
        if improved:
            self.best = {"epoch": position.epoch, "value": value}
        due = position.epoch == self.last_epoch or self.config.checkpoint_steps or self._checkpoint_is_due()
        due = self.fabric.broadcast(bool(due))
        self.position = Position(position.epoch + 1)
        if is_main:
            self.folder.append_history(row)
        if improved or due:
            self.save(best=improved, last=due)
        if is_main:
            self.progress.log(epoch_line(row, self.last_epoch, improved and by != "last"))
            rows = [other for other in read_history(self.config.run) if other["phase"] == self.phase]
            if warning := health_warning(rows):
                self.progress.log(f"WARNING: {warning}")
            self.progress.end_epoch(row)

    def save(self, best: bool = False, last: bool = False) -> None:
        """Keeps this moment as the best weights, in memory, or writes it as `last.pt`, the best before it.

        `last.pt` comes after everything that it relies on: a kill at any moment leaves a run that goes on.
        A call of all processes together.
        """
        content = self._state()
        if not self.fabric.is_global_zero:
            return
        if best:
            self.unwritten = content if last else tree_map(_on_host, content)
        if last and self.unwritten:
            # Copied one by one: safetensors refuses weights that share their memory.
            weights = {n: _on_host(w).contiguous() for n, w in evaluated_weights(self.unwritten).items()}
            self.folder.write("model.safetensors", safetensors_bytes(weights))
            self.folder.write("best.pt", checkpoint_bytes(self.unwritten))
            self.unwritten = None
        if last:
            self.folder.write("last.pt", checkpoint_bytes(content))
            self.saved_at = time.monotonic()

    def _state(self) -> dict:
        """All that the run goes on from."""
        states = all_gather_objects(self.fabric, rng_state())
        return {
            "config": self.config.model_dump(mode="json"),
            "tokenizer": self.tokenizer.state,
            "architecture": self.model.text_encoder.architecture,
            "phase": self.phase,
            "parent_epoch": self.parent_epoch,
            "position": asdict(self.position),
            "best": self.best,
            "model": dict(self.model.state_dict()),
            "average": self.average and average_state(self.average),
            "loss": dict(self.loss.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_names": optimizer_names(self.optimizer, (self.model, self.loss)),
            "precision": self.fabric.strategy.precision.state_dict(),
            "rng": states[0],
            "rng_of_others": states[1:],
        }

    def restore(self, path: Path, content: dict) -> None:
        """Goes on where `content` (of the checkpoint of this run at `path`) was written.

        With another number of processes than then, those that are new start their random state anew.
        """
        self.optimizer.load_state_dict(content["optimizer"])
        if content["precision"]:
            self.fabric.strategy.precision.load_state_dict(content["precision"])
        if self.average:
            load_weights(path, self.average.module, evaluated_weights(content))
            self.average.updates = content["average"]["updates"]
        self.position, self.best = Position(**content["position"]), content["best"]
        states, rank = [content["rng"], *content["rng_of_others"]], self.fabric.global_rank
        if rank < len(states):
            set_rng_state(states[rank])
        else:
            torch.manual_seed((self.position.epoch << 40) + (self.position.step << 16) + rank)


def _on_host(value):
    return value.to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def read_losses(loss_sum: float, unread: list[tuple], epoch: int, fabric: "Fabric") -> float:
    """Adds the losses of some steps, times their pairs, to `loss_sum`; makes the host wait for the device.

    Args:
        loss_sum: of this process, over the steps before.
        unread: of each step its number (from 1), learning rate, pairs and loss.
        epoch: named in the message.
        fabric: of this process.

    Raises:
        FloatingPointError: a loss is not finite, in any process; names the epoch, the step and the rate.
    """
    values = torch.stack([loss for *_, loss in unread]).tolist() if unread else []
    bad = []
    for value, (step, lr, pairs, _) in zip(values, unread):
        loss_sum += value * pairs
        bad += [(step, value, lr)] * (not math.isfinite(value))
    if bad := [first for others in all_gather_objects(fabric, bad) for first in others[:1]]:
        step, value, lr = min(bad)
        raise FloatingPointError(
            f"the loss became {value} in epoch {epoch} at step {step} (lr {lr:.3g}); {REMEDY}"
        )
    return loss_sum


def check_weights(model: nn.Module, epoch: int, step: int, lr: float) -> None:
    """Passes if all weights are finite: a step can ruin them although its own loss was still finite.

    Raises:
        FloatingPointError: names the epoch, the number of steps done and the learning rate.
    """
    if not torch.stack([p.isfinite().all() for p in model.parameters()]).all():
        raise FloatingPointError(
            f"the weights became NaN or infinite in epoch {epoch} at step {step} (lr {lr:.3g}); {REMEDY}"
        )


@contextlib.contextmanager
def stop_requests(patient: bool) -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a request, so that a step is never cut in two.

    Only the main thread can handle signals; elsewhere nothing is changed.

    Args:
        patient: whether a second signal is passed over; else it interrupts at once.  On Ctrl-C torchrun
            signals its processes after the terminal has, and kills those that take longer than 30 s.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        if stop.is_set() and not patient:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def epoch_line(row: dict, last_epoch: int, improved: bool) -> str:
    """One plain line for one epoch of the history."""
    val = row["val"]
    return (
        f"epoch {row['epoch']:>{len(str(last_epoch))}}/{last_epoch}  lr {row['lr']:.2e}"
        f"  loss {row['train_loss']:.3f}  val R@1 {100 * val['i2t']['r1']['value']:.2f} % i2t"
        f" {100 * val['t2i']['r1']['value']:.2f} % t2i  rsum {100 * val['rsum']:.1f} %"
        f"  {row['seconds']:.1f} s  {row['pairs_per_s']:,.0f} pairs/s{'  best' if improved else ''}"
    )
