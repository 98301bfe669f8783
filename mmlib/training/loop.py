"""The training loop, from top to bottom.

Every epoch: pairs in an order fixed by (seed, epoch); per step one forward, one loss, one backward,
one clipped optimizer step; then validation, history, checkpoints.  All that the next step depends
on is in the checkpoint, so that a run that goes on equals one that never stopped, bit for bit.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from lightning_fabric import Fabric
from safetensors.torch import save as safetensors_bytes
from tqdm import tqdm

from mmlib.config import TrainConfig
from mmlib.data import Tokenizer
from mmlib.data.batches import SplitTensors
from mmlib.metrics import summarise
from mmlib.model import InfoNCE, MemoryNetwork
from mmlib.training.checkpoint import rng_state, save_checkpoint, set_rng_state, write_bytes_atomic
from mmlib.training.embed import rank_split
from mmlib.training.optimisation import learning_rate
from mmlib.training.runs import RunFolder

CHECK_EVERY = 20  # steps between looks at the loss: each look makes the host wait for the device


@dataclass
class Position:
    """Where training stands: `step` steps of epoch `epoch` (absolute, from 1) are done."""

    epoch: int
    step: int = 0
    loss_sum: float = 0.0  # over the pairs of the epoch so far
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
    fabric: Fabric
    model: MemoryNetwork
    loss: InfoNCE
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    train_data: SplitTensors
    val_data: SplitTensors
    phase: int  # 1 for a first phase, one more than the parent's for a continued run
    parent_epoch: int  # the epoch that this phase starts after; 0 for a first phase
    log: Callable[[str], None]
    position: Position = field(init=False)
    best: Best = field(default_factory=Best)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.position = Position(self.parent_epoch + 1)
        # Fabric's wrappers bring precision and, later, other processes; the plain modules keep the
        # names of the weights.
        self.forward = self.fabric.setup_module(self.model)
        self.loss.to(self.fabric.device)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)

    @property
    def last_epoch(self) -> int:
        """The last epoch of this phase."""
        return self.parent_epoch + self.config.epochs

    def run(self) -> None:
        """Trains to the last epoch.

        Raises:
            FloatingPointError: the loss became NaN or infinite; the last checkpoint is from before.
            KeyboardInterrupt: asked to stop (Ctrl-C or SIGTERM); a checkpoint of this moment is written.
            OSError: a checkpoint could not be written; the previous one is intact.
        """
        with stop_requests() as stop:
            while self.position.epoch <= self.last_epoch:
                self._run_epoch(stop)

    def _run_epoch(self, stop: "StopRequest") -> None:
        position, config = self.position, self.config
        order_P = self.train_data.epoch_order(config.seed, position.epoch, config.captions_per_image)
        batches = order_P.split(config.batch_size)
        watch = LossWatch(self.fabric.device, position)
        started = time.monotonic() - position.seconds
        self.forward.train()
        for step in self._progress(range(position.step, len(batches)), len(batches)):
            lr = self._set_learning_rate(step, len(batches))
            watch.add(self._step(batches[step]), len(batches[step]), step)
            position.step = step + 1
            if position.step % CHECK_EVERY == 0 or stop.requested or self._checkpoint_is_due():
                watch.check(position.epoch, lr)
            if stop.requested or self._checkpoint_is_due():
                position.seconds = time.monotonic() - started
                watch.store(position)
                self._save("last.pt")
            if stop.requested:
                raise KeyboardInterrupt
        watch.check(position.epoch, lr)
        watch.store(position)
        self._finish_epoch(started, len(batches))

    def _step(self, caption_B: torch.Tensor) -> torch.Tensor:
        batch = self.train_data.pairs(caption_B)
        image_BD, text_BD = self.forward(batch.image_BCHW, batch.tokens_BL, batch.length_B)
        loss = self.loss(image_BD, text_BD, batch.image_id_B)
        self.stepper.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if self.config.clip_norm:
            # An infinite gradient is the scaler's business in fp16, and the loss's otherwise.
            self.fabric.clip_gradients(
                self.forward, self.stepper, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.stepper.step()
        return loss.detach()

    def _set_learning_rate(self, step: int, steps: int) -> float:
        epoch_of_phase = self.position.epoch - self.parent_epoch - 1
        lr = learning_rate(self.config, epoch_of_phase, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if step == 0:
            self.position.first_lr = lr
        return lr

    def _finish_epoch(self, started: float, steps: int) -> None:
        position = self.position
        trained = time.monotonic() - started
        val = {"split": "val", **summarise(rank_split(self.model, self.val_data))}
        row = {
            "epoch": position.epoch,
            "phase": self.phase,
            "run": self.folder.name,
            "lr": position.first_lr,
            "steps": steps,
            "train_loss": position.loss_sum / position.pairs,
            "temperature": self.loss.temperature,
            "val": val,
            "seconds": round(time.monotonic() - started, 3),
            "pairs_per_s": round(position.pairs / trained, 1),
        }
        improved = val[self.config.select_by] > self.best.value
        if improved:
            self.best = Best(position.epoch, val[self.config.select_by])
        self.position = Position(position.epoch + 1)
        if improved:
            self._save("best.pt")
            write_bytes_atomic(
                self.folder.path / "model.safetensors",
                safetensors_bytes({k: v.contiguous() for k, v in self.model.state_dict().items()}),
            )
        self.folder.append_history(row)
        self._save("last.pt")
        self.folder.write_status("running", position.epoch, self.last_epoch)
        self.log(epoch_line(row, self.last_epoch, improved))

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.config.checkpoint_seconds

    def _progress(self, steps: range, total: int):
        return tqdm(
            steps,
            desc=f"epoch {self.position.epoch}/{self.last_epoch}",
            initial=steps.start,
            total=total,
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def _save(self, name: str) -> None:
        save_checkpoint(
            self.folder.path / name,
            {
                "config": self.config.model_dump(mode="json"),
                "tokenizer": self.tokenizer.state,
                "tokenizer_fingerprint": self.tokenizer.fingerprint,
                "phase": self.phase,
                "parent_epoch": self.parent_epoch,
                "position": asdict(self.position),
                "best": asdict(self.best),
                "model": self.model.state_dict(),
                "loss": self.loss.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "rng": rng_state(),
            },
        )
        self.saved_at = time.monotonic()

    def restore(self, content: dict) -> None:
        """Goes on where `content` (a checkpoint of this run) was written."""
        self.optimizer.load_state_dict(content["optimizer"])
        if content["precision"]:
            self.fabric.strategy.precision.load_state_dict(content["precision"])
        self.position = Position(**content["position"])
        self.best = Best(**content["best"])
        set_rng_state(content["rng"])


class LossWatch:
    """Sums the loss and notes the first step at which it was not finite, on the device, without waiting."""

    def __init__(self, device: torch.device, position: Position):
        # MPS has no float64; nothing else here needs more than the sum's own digits.
        self.sum = torch.tensor(position.loss_sum, dtype=torch.float64, device=device)
        self.pairs = position.pairs
        self.bad_step = torch.tensor(-1, device=device)
        self.bad_value = torch.tensor(0.0, device=device)

    def add(self, loss: torch.Tensor, pairs: int, step: int) -> None:
        """Counts the mean loss of `pairs` pairs at `step` (from 0)."""
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first, step, self.bad_step)
        self.bad_value = torch.where(first, loss, self.bad_value)
        self.sum += loss.double() * pairs
        self.pairs += pairs

    def check(self, epoch: int, lr: float) -> None:
        """Passes if every loss so far was finite.

        Raises:
            FloatingPointError: names the epoch, the step and the learning rate.
        """
        step = int(self.bad_step)
        if step >= 0:
            raise FloatingPointError(
                f"the loss became {float(self.bad_value)} in epoch {epoch} at step {step + 1} (lr {lr:.3g});"
                " the last checkpoint is from before. Try a lower lr, a warm-up, or precision fp32"
            )

    def store(self, position: Position) -> None:
        """Puts the sums into the position, for the history or a checkpoint."""
        position.loss_sum, position.pairs = float(self.sum), self.pairs


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request, so that a step is never cut in two.

    A second one interrupts at once.  Only the main thread can handle signals; elsewhere nothing
    is changed.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

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
