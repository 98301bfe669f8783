"""The training loop, from top to bottom.

Every epoch: pairs in an order fixed by (seed, epoch); per step one forward, one loss, one backward,
one clipped optimizer step; then validation, history, checkpoints.  All that the next step depends
on is in the checkpoint, so that a run that goes on equals one that never stopped, bit for bit.
"""

import sys
import time
from collections.abc import Callable
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
from mmlib.training.stopping import StopRequest, stop_requests
from mmlib.training.watch import LossWatch, check_weights

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
            FloatingPointError: the loss or the weights became NaN or infinite; the last checkpoint is
                from before.
            KeyboardInterrupt: asked to stop (Ctrl-C or SIGTERM); a checkpoint of this moment is written.
            OSError: a checkpoint could not be written; the previous one is intact.
        """
        with stop_requests() as stop:
            while self.position.epoch <= self.last_epoch:
                self._run_epoch(stop)

    def _run_epoch(self, stop: StopRequest) -> None:
        position, config = self.position, self.config
        order_P = self.train_data.epoch_order(config.seed, position.epoch, config.captions_per_image)
        batches = order_P.split(config.batch_size)
        watch = LossWatch(self.fabric.device, position.loss_sum, position.pairs)
        started = time.monotonic() - position.seconds
        self.forward.train()
        for step in self._progress(range(position.step, len(batches)), len(batches)):
            self._set_learning_rate(step, len(batches))
            watch.add(self._step(batches[step]), len(batches[step]), step, self.lr)
            position.step = step + 1
            # Asked once: a request that comes between two questions would stop without a checkpoint.
            stopping = stop.requested
            save = stopping or self._checkpoint_is_due()
            if save or position.step % CHECK_EVERY == 0 or position.step == len(batches):
                watch.check(position.epoch)
            if save:
                check_weights(self.model, position.epoch, position.step, self.lr)
                position.seconds = time.monotonic() - started
                position.loss_sum, position.pairs = watch.totals()
                self._save("last.pt")
            if stopping:
                raise KeyboardInterrupt
        position.loss_sum, position.pairs = watch.totals()
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

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _set_learning_rate(self, step: int, steps: int) -> None:
        epoch_of_phase = self.position.epoch - self.parent_epoch - 1
        lr = learning_rate(self.config, epoch_of_phase, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if step == 0:
            self.position.first_lr = lr

    def _finish_epoch(self, started: float, steps: int) -> None:
        position = self.position
        trained = time.monotonic() - started
        check_weights(self.model, position.epoch, position.step, self.lr)
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


def epoch_line(row: dict, last_epoch: int, improved: bool) -> str:
    """One plain line for one epoch of the history."""
    val = row["val"]
    return (
        f"epoch {row['epoch']:>{len(str(last_epoch))}}/{last_epoch}  lr {row['lr']:.2e}"
        f"  loss {row['train_loss']:.3f}  val R@1 {100 * val['i2t']['r1']['value']:.2f} % i2t"
        f" {100 * val['t2i']['r1']['value']:.2f} % t2i  rsum {100 * val['rsum']:.1f} %"
        f"  {row['seconds']:.1f} s  {row['pairs_per_s']:,.0f} pairs/s{'  best' if improved else ''}"
    )
