"""Starting, resuming and continuing runs.

*Resume*: the same run with the same parameters goes on where it stopped.  *Continue*: a new run
starts from a parent's checkpoint, with the parent's data, tokenizer and architecture.
Everything that can be wrong with the input is found before the run folder is touched.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from mmlib.config import ParameterError, TrainConfig, build, continued, differences, training_of
from mmlib.data import Dataset, Tokenizer, load_dataset, restore_tokenizer, tokenizer_for
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.data.tokenizers import count_losses, loss_shares, losses_warning
from mmlib.locks import InUse
from mmlib.model import build_loss, build_model, load_learned
from mmlib.training.checkpoint import (
    Parent,
    check_fits,
    check_history,
    check_same_data,
    evaluated_weights,
    last_checkpoint,
    load_checkpoint,
    load_weights,
    stored_tokenizer,
)
from mmlib.training.inputs import standardise_heads, training_data
from mmlib.training.loop import Training, stop_requests
from mmlib.training.optimisation import build_optimizer, keep_optimizer_state, rate_scales
from mmlib.training.processes import Processes, build_fabric, check_divides, compiles, process_count
from mmlib.training.runs import (
    RunFolder,
    describe_environment,
    open_run,
    read_history,
    require_complete,
    run_folder,
    run_state,
    stored_config,
    stored_environment,
    traces,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # brings torch's compiler: a second, when a training starts

Log = Callable[[str], None]


def train(
    config: TrainConfig, log: Log = print, if_complete: Literal["show", "refuse"] = "refuse"
) -> list[dict]:
    """Trains a run, or goes on with it if it was stopped.

    Args:
        config: its parameters.
        log: takes one line per epoch.
        if_complete: what to do if this very run is complete: `show` returns its history.

    Returns:
        The run's history.

    Raises:
        ParameterError, ValueError, FileNotFoundError: wrong input; nothing was touched.
        FileExistsError: the run is complete, or was started with other parameters.
        FloatingPointError: the loss became NaN or infinite.
        InUse: another process trains it, or did while this one got ready.
        RuntimeError: its folder was deleted meanwhile, or another process of this training has ended.
        KeyboardInterrupt: stopped on request; the same call goes on.
    """
    return _train(config, None, log, if_complete)


def continue_training(
    config, log: Log = print, if_complete: Literal["show", "refuse"] = "refuse"
) -> list[dict]:
    """Trains a new run from a parent's checkpoint, or goes on with it if it was stopped.

    A parent of embedded data that is missing is trained first.

    Args, returns and raises as `train`; and `FileNotFoundError` for a missing parent on real data,
    naming the command that trains it.
    """
    if config.parent == config.run:
        raise ParameterError(
            f"run and parent are both {config.run!r}: a continued run needs a name of its own"
        )
    _ensure_parent(config.parent, log)
    parent_config = stored_config(config.parent)
    resolved = continued(config, parent_config)
    path = run_folder(config.parent) / f"{config.parent_checkpoint}.pt"
    content = load_checkpoint(path)
    check_fits(path, content, resolved.model_dump(), stored_tokenizer(config.parent).fingerprint)
    check_history(path, content)
    if config.optimizer_state == "keep" and resolved.optimizer != parent_config.optimizer:
        raise ParameterError(
            f"optimizer_state='keep' needs the parent's optimizer: the parent {config.parent!r} has"
            f" {parent_config.optimizer!r}, asked for {resolved.optimizer!r}; use optimizer_state='reset'"
        )
    parent = Parent(config.parent, config.parent_checkpoint, config.optimizer_state, content)
    return _train(resolved, parent, log, if_complete)


def _ensure_parent(parent: str, log: Log) -> None:
    if run_folder(parent).is_dir() and (run_folder(parent) / "config.json").exists():
        state, _ = run_state(parent)
        if state == "complete" or stored_config(parent).dataset != "shapes":
            return require_complete(parent)
    recipe = training_of(parent)
    if recipe is None:
        return require_complete(parent)
    parameters, command = recipe
    config = build(TrainConfig, parameters)
    if config.dataset != "shapes":
        raise FileNotFoundError(f"the parent run {parent!r} is missing; train it first:\n  {command}")
    log(f"the parent run {parent!r} is missing; its data are embedded, so it is trained first")
    train(config, log, if_complete="show")
    return None


def _train(config: TrainConfig, parent: Parent | None, log: Log, if_complete: str) -> list[dict]:
    check_divides(config.batch_size, process_count())  # before one could wait for another that has left
    fabric = build_fabric(config)
    processes = Processes.of(fabric)
    log = log if processes.writes else _silent
    try:
        with processes.all_or_none():
            ready = _prepare(config, parent, log, if_complete, fabric, processes)
        if ready:
            _work(config, parent, log, if_complete, fabric, processes, ready)
            processes.wait()
    except Exception as error:
        if processes.has_lost(error):
            raise RuntimeError(
                f"another process of run {config.run!r} has ended, its own output says why; the same command"
                " goes on"
            ) from error
        raise
    return read_history(config.run)


@dataclass
class _Ready:
    """All that a training needs besides its folder."""

    found: dict  # what was in the folder, by `traces`
    path: Path | None
    resumed: dict | None
    data_identity: dict
    tokenizer: Tokenizer
    model: torch.nn.Module
    loss: torch.nn.Module
    compiled: bool
    source: PairSource
    val_data: SplitTensors


def _prepare(
    config: TrainConfig,
    parent: Parent | None,
    log: Log,
    if_complete: str,
    fabric: "Fabric",
    processes: Processes,
) -> _Ready | None:
    """Reads and checks everything and touches nothing; None if the run is complete."""
    found = traces(config.run)
    if not config.overwrite and _is_finished(config, parent, if_complete, log):
        return None
    dataset = load_dataset(config)
    for note in dataset.notes:
        log(f"{dataset.name}: {note}")
    for run in [config.run] * (not config.overwrite) + ([parent.run] if parent else []):
        check_same_data(run, dataset.name, dataset.fingerprint)

    path, resumed = last_checkpoint(config) or (_parent_path(parent), None)
    content = resumed or (parent and parent.content)
    tokenizer = restore_tokenizer(content["tokenizer"]) if content else _new_tokenizer(config, dataset)
    if resumed:
        check_fits(path, resumed, config.model_dump(), tokenizer.fingerprint)
    from lightning_fabric import seed_everything

    seed_everything(config.seed, verbose=False)
    model = build_model(
        config, tokenizer.size, tokenizer.padding_id,
        load_pretrained=not content, architecture=content and content.get("architecture"),
    )  # fmt: skip
    loss = build_loss(config)
    _load_modules(path, content, model, loss, bool(resumed))
    compiled = compiles(config, fabric, len(dataset.splits["train"].captions))
    source, val_data = training_data(config, dataset, tokenizer, model, processes, compiled)
    return _Ready(found, path, resumed, dataset.identity, tokenizer, model, loss, compiled, source, val_data)


def _work(
    config: TrainConfig,
    parent: Parent | None,
    log: Log,
    if_complete: str,
    fabric: "Fabric",
    processes: Processes,
    ready: _Ready,
) -> None:
    """Opens the folder, if nobody wrote to it since it was looked at, and trains."""
    path, resumed, model, loss = ready.path, ready.resumed, ready.model, ready.loss
    if not (resumed or parent):
        standardise_heads(model, ready.source, processes)
    with contextlib.ExitStack() as held:
        folder, finished = RunFolder(run_folder(config.run)), False
        with processes.all_or_none():
            if processes.writes:
                folder = held.enter_context(open_run(config.run, config.overwrite))
                finished = not config.overwrite and _finished_since(
                    config, parent, if_complete, log, ready.found
                )
        if processes.agree(finished):
            return
        model.to(fabric.device)
        loss.to(fabric.device)
        rates = {}
        for side in ("image", "text"):
            blocks = [parameters for _, parameters in getattr(model, f"{side}_encoder").blocks]
            rates |= rate_scales(blocks, getattr(config, f"{side}_lr_scale"), config.layer_decay)
        training = Training(
            folder, config, fabric, model, loss, build_optimizer(config, (model, loss), rates),
            ready.tokenizer, ready.source, ready.val_data,
            phase=1 + (parent.content["phase"] if parent else 0),
            parent_epoch=parent.epoch if parent else 0,
            log=log,
            compiled=ready.compiled,
        )  # fmt: skip
        if processes.rank:
            torch.manual_seed(config.seed + processes.rank)  # another dropout than the first process's
        if resumed:
            training.restore(resumed)
            if processes.writes:
                folder.keep_history(training.position.epoch - 1)
            position = training.position
            source = "" if path.name == "last.pt" else f" from {path.name}, as its last.pt is missing"
            log(f"run {config.run!r} goes on in epoch {position.epoch}, step {position.step + 1}{source}")
        else:
            if processes.writes:
                _start_folder(training, parent, ready.data_identity)
            if parent and parent.optimizer_state == "keep":
                keep_optimizer_state(training.optimizer, parent.content, (model, loss))
        _run(training)


def _new_tokenizer(config: TrainConfig, dataset: Dataset) -> Tokenizer:
    return tokenizer_for(config, dataset.splits["train"].captions, config.text_encoder)


def _silent(line: str) -> None:
    """The log of processes that write nothing."""


def _run(training: Training) -> None:
    """Runs, and leaves the truth in `status.json` whatever happens, and whoever notices it first.

    A process that fails says so.  One that only loses another says nothing: the state is then `killed`, or
    what the other one said.  Each word is written once, so none can replace a later one.
    """
    folder, last_epoch, processes = training.folder, training.last_epoch, training.processes

    def status(state: str, reason: str | None = None) -> None:
        folder.write_status(state, training.position.epoch - 1, last_epoch, reason)

    # Until the last word is written: torchrun signals the processes that are left when one has ended.
    with stop_requests(patient=processes.count > 1) as stop:
        if processes.writes:
            status("running")
        try:
            training.run(stop)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            # On a full disk the status cannot be written either; what went wrong first is what counts.
            with contextlib.suppress(OSError, RuntimeError):
                if interrupted and processes.writes:
                    without = " without overwrite" if training.config.overwrite else ""
                    status(
                        "interrupted",
                        f"stopped on request (Ctrl-C or SIGTERM); the same call{without} goes on",
                    )
                elif not interrupted and not processes.has_lost(error):
                    status("failed", f"{type(error).__name__}: {error}")
            raise
        if processes.writes:
            status("complete")


def _is_finished(config: TrainConfig, parent: Parent | None, if_complete: str, log: Log) -> bool:
    """Whether this very run is complete.

    Raises:
        FileExistsError: a run of this name has other parameters or another parent, or is complete
            and `if_complete` is `refuse`.
    """
    folder = run_folder(config.run)
    if not (folder / "config.json").exists():
        return False
    state, _ = run_state(config.run)
    lineage = parent.lineage if parent else None
    differ = differences(stored_config(config.run), config)
    lineage_there = stored_environment(config.run)["parent"]
    if lineage_there != lineage:
        differ.append(f"parent: {lineage_there!r} there, {lineage!r} here")
    what_to_do = "choose another run name, or overwrite=True to replace it"
    if differ:
        raise FileExistsError(
            f"run {config.run!r} exists ({state}) with other parameters: {'; '.join(differ)};\n{what_to_do}"
        )
    if state != "complete":
        return False
    if if_complete == "refuse":
        raise FileExistsError(f"run {config.run!r} exists and is complete; {what_to_do}")
    log(f"run {config.run!r} is complete: its results are shown, nothing is trained again")
    _log_losses(stored_environment(config.run).get("tokenizer_losses"), log)
    return True


def _log_losses(losses: dict | None, log: Log) -> None:
    """One line on what the tokenizer loses, if that was counted, and another where it is much."""
    if losses:
        unknown, cut = loss_shares(losses)
        log(
            f"tokenizer {losses['tokenizer']}: of the validation captions {100 * unknown:.1f} % of the tokens"
            f" are unknown, {100 * cut:.1f} % are cut at {losses['max_tokens']} tokens"
        )
        if warning := losses_warning(losses):
            log(warning)


def _finished_since(
    config: TrainConfig, parent: Parent | None, if_complete: str, log: Log, found: dict
) -> bool:
    """Whether another process has completed this very run while this one prepared; asked under the lock.

    Raises:
        FileExistsError: it completed it and `if_complete` is `refuse`, or it began another run there.
        InUse: it trained a part of it.
    """
    if traces(config.run) == found:
        return False
    if _is_finished(config, parent, if_complete, log):
        return True
    raise InUse(
        f"run {config.run!r} was changed by another process while this one got ready; start again: it goes on"
        " from there"
    )


def _parent_path(parent: Parent | None) -> Path | None:
    return run_folder(parent.run) / f"{parent.checkpoint}.pt" if parent else None


def _load_modules(
    path: Path | None, content: dict | None, model: torch.nn.Module, loss: torch.nn.Module, resumed: bool
) -> None:
    """Weights of a checkpoint; a continued run starts from those that its parent was evaluated with."""
    if not content:
        return
    if resumed:
        load_weights(path, model, content["model"])
        load_weights(path, loss, content["loss"])
    else:
        load_weights(path, model, evaluated_weights(content))
        load_learned(loss, content["loss"], content["config"])


def _start_folder(training: Training, parent: Parent | None, data_identity: dict) -> None:
    folder, config = training.folder, training.config
    losses = count_losses(training.tokenizer, training.val_data.split.captions, config.max_tokens)
    _log_losses(losses, training.log)
    described = describe_environment(
        config.seed,
        training.fabric.device,
        data_identity,
        parent.lineage if parent else None,
        sum(p.numel() for group in training.optimizer.param_groups for p in group["params"]),
        losses,
    )
    folder.clear()
    folder.write_json("environment.json", described)
    folder.write_json("tokenizer.json", training.tokenizer.state)
    rows = read_history(parent.run) if parent else []
    folder.write_history([row for row in rows if row["epoch"] <= parent.epoch])
    # Last, since its presence says that the folder holds a run.
    folder.write_json("config.json", config.model_dump(mode="json"))
