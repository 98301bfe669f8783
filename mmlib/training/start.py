"""Starting, resuming and continuing runs.

*Resume*: the same run with the same parameters goes on where it stopped.  *Continue*: a new run
starts from a parent's checkpoint, with the parent's data, tokenizer and architecture.
Everything that can be wrong with the input is found before the run folder is touched.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from mmlib.config import ParameterError, TrainConfig, build, continued, differences, training_of
from mmlib.data import Dataset, Tokenizer, build_tokenizer, load_dataset
from mmlib.data.batches import PairSource
from mmlib.data.tokenizers import count_losses, loss_shares, losses_warning
from mmlib.files import InUse, printable
from mmlib.model import build_loss, build_model, load_learned
from mmlib.training.card import write_card
from mmlib.training.checkpoint import (
    Parent,
    check_fits,
    check_history,
    check_same_data,
    evaluated_weights,
    last_checkpoint,
    load_checkpoint,
    load_weights,
    tokenizer_of,
)
from mmlib.training.inputs import split_tensors, standardise_heads
from mmlib.training.loop import Learner, run, stop_requests
from mmlib.training.optimisation import build_optimizer, keep_optimizer_state, rate_scales
from mmlib.training.processes import all_or_none, build_fabric, compiles, has_lost_another, share
from mmlib.training.progress import Progress, check_tracker
from mmlib.training.runs import (
    RunFolder,
    describe_machine,
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
    config: TrainConfig,
    log: Log = print,
    if_complete: Literal["show", "refuse"] = "refuse",
    parent: Parent | None = None,
) -> list[dict]:
    """Trains a run, or goes on with it if it was stopped.

    Args:
        config: its parameters.
        log: takes one line per epoch.
        if_complete: what to do if this very run is complete: `show` returns its history.
        parent: of a continued run, which `continue_training` finds.

    Returns:
        The run's history.

    Raises:
        ParameterError, ValueError, FileNotFoundError: wrong input; nothing was touched.
        FileExistsError: the run is complete, or was started with other parameters.
        ModuleNotFoundError: a package that a parameter asks for is not installed; nothing was touched.
        FloatingPointError: the loss became NaN or infinite.
        InUse: another process trains it, or did while this one got ready.
        RuntimeError: its folder was deleted meanwhile, or another process of this training has ended.
        KeyboardInterrupt: stopped on request; the same call goes on.
    """
    fabric = build_fabric(config)
    log = log if fabric.is_global_zero else lambda line: None
    try:
        with all_or_none(fabric):
            start = _find_start(config, parent, log, if_complete)
            inputs = start and _open_inputs(start, fabric)
        if start:
            with _open_folder(start, fabric) as folder:
                learner = _build_learner(start, inputs, folder, fabric, log)
                _run(learner)
            fabric.barrier()
        elif fabric.is_global_zero and not (run_folder(config.run) / "README.md").exists():
            with contextlib.suppress(InUse, OSError), open_run(config.run) as folder:
                write_card(folder)  # of a run from before there were cards
    except Exception as error:
        if has_lost_another(fabric, error):
            raise RuntimeError(
                f"another process of run {config.run!r} has ended, its own output says why; the same command"
                " goes on"
            ) from error
        raise
    return read_history(config.run)


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
    _train_missing(config.parent, log)
    require_complete(config.parent)
    parent_config = stored_config(config.parent)
    resolved = continued(config, parent_config)
    path = run_folder(config.parent) / f"{config.parent_checkpoint}.pt"
    content = load_checkpoint(path)
    check_fits(path, content, resolved.model_dump())
    check_history(path, content)
    if config.optimizer_state == "keep" and resolved.optimizer != parent_config.optimizer:
        raise ParameterError(
            f"optimizer_state='keep' needs the parent's optimizer: the parent {config.parent!r} has"
            f" {parent_config.optimizer!r}, asked for {resolved.optimizer!r}; use optimizer_state='reset'"
        )
    epoch = content["position"]["epoch"] - 1
    parent = Parent(config.parent, config.parent_checkpoint, epoch, config.optimizer_state, content)
    return train(resolved, log, if_complete, parent)


def _train_missing(parent: str, log: Log) -> None:
    """Trains a parent that is not there or not complete, if its data are embedded and params/ says how."""
    is_there = (run_folder(parent) / "config.json").exists()
    if is_there and (run_state(parent)[0] == "complete" or stored_config(parent).dataset != "shapes"):
        return
    if recipe := training_of(parent):
        parameters, command = recipe
        config = build(TrainConfig, parameters)
        if config.dataset != "shapes":
            raise FileNotFoundError(f"the parent run {parent!r} is missing; train it first:\n  {command}")
        log(f"the parent run {parent!r} is missing; its data are embedded, so it is trained first")
        train(config, log, if_complete="show")


@dataclass
class _Start:
    """What a run starts from: nothing, its own checkpoint (resumed) or its parent's (continued)."""

    config: TrainConfig
    parent: Parent | None
    found: dict  # what was in the folder, by `traces`
    dataset: Dataset
    tokenizer: Tokenizer
    path: Path | None  # of the checkpoint
    content: dict | None  # of the checkpoint
    resumed: bool


def _find_start(config: TrainConfig, parent: Parent | None, log: Log, if_complete: str) -> _Start | None:
    """Reads and checks everything that was there before, and touches nothing; None if the run is complete."""
    found = traces(config.run)
    if not config.overwrite and _is_finished(config, parent, if_complete, log):
        return None
    check_tracker(config.tracker)
    dataset = load_dataset(config)
    for note in dataset.notes:
        log(f"{dataset.name}: {note}")
    for there in [config.run] * (not config.overwrite) + ([parent.run] if parent else []):
        check_same_data(there, dataset.name, dataset.fingerprint)
    path, content = last_checkpoint(config) or (None, None)
    resumed = content is not None
    if parent and not resumed:
        path, content = run_folder(parent.run) / f"{parent.checkpoint}.pt", parent.content
    if content:
        tokenizer = tokenizer_of(path, content)
    else:
        tokenizer = build_tokenizer(
            config.tokenizer, dataset.splits["train"].captions, config.min_word_count, config.bpe_vocabulary,
            config.text_encoder,
        )  # fmt: skip
    if resumed:
        check_fits(path, content, config.model_dump())
    return _Start(config, parent, found, dataset, tokenizer, path, content, resumed)


def _is_finished(config: TrainConfig, parent: Parent | None, if_complete: str, log: Log) -> bool:
    """Whether this very run is complete.

    Raises:
        FileExistsError: a run of this name has other parameters or another parent, or is complete
            and `if_complete` is `refuse`.
    """
    if not (run_folder(config.run) / "config.json").exists():
        return False
    state, environment = run_state(config.run)[0], stored_environment(config.run)
    differ = differences(stored_config(config.run), config)
    lineage = parent.lineage if parent else None
    if environment["parent"] != lineage:
        differ.append(f"parent: {environment['parent']!r} there, {lineage!r} here")
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
    if losses := environment.get("tokenizer_losses"):
        _log_losses(losses, log)
    return True


def _open_inputs(start: _Start, fabric: "Fabric") -> tuple:
    """Model and loss with their weights, whether to compile, this process's pairs, the validation split."""
    from lightning_fabric import seed_everything

    config, content, tokenizer = start.config, start.content, start.tokenizer
    seed_everything(config.seed, verbose=False)
    model = build_model(
        config, tokenizer.size, tokenizer.padding_id,
        load_pretrained=not content, architecture=content and content["architecture"],
    )  # fmt: skip
    loss = build_loss(config)
    if start.resumed:
        load_weights(start.path, model, content["model"])
        load_weights(start.path, loss, content["loss"])
    elif content:  # the weights that the parent was evaluated with
        load_weights(start.path, model, evaluated_weights(content))
        load_learned(loss, content["loss"], content["config"])
    compiled = compiles(config, fabric, len(start.dataset.splits["train"].captions))
    train_data, val_data = (
        split_tensors(config, start.dataset, tokenizer, model, split, fabric, compiled)
        for split in ("train", "val")
    )
    source = PairSource(
        train_data, config.batch_size, config.captions_per_image, config.seed, config,
        lambda count: share(count, fabric.global_rank, fabric.world_size),
    )  # fmt: skip
    return model, loss, compiled, source, val_data


@contextlib.contextmanager
def _open_folder(start: _Start, fabric: "Fabric") -> Iterator[RunFolder]:
    """The run's folder, held by process 0.

    Raises:
        InUse: another process is at work there, or was since the start was found.
    """
    run, overwrite = start.config.run, start.config.overwrite
    folder = RunFolder(run_folder(run))
    with contextlib.ExitStack() as held:
        with all_or_none(fabric):
            if fabric.is_global_zero:
                folder = held.enter_context(open_run(run, overwrite))
                if not overwrite and traces(run) != start.found:
                    raise InUse(
                        f"run {run!r} was changed by another process while this one got ready; start again:"
                        " it goes on from there"
                    )
        yield folder


def _build_learner(start: _Start, inputs: tuple, folder: RunFolder, fabric: "Fabric", log: Log) -> Learner:
    """The run in memory, where it stands, and its folder as it has to be then."""
    model, loss, compiled, source, val_data = inputs
    config, parent, rates = start.config, start.parent, {}
    if not start.content:
        standardise_heads(config, model, source.data, fabric)
    for module in (model, loss):
        module.to(fabric.device)
    for side in ("image", "text"):
        blocks = [parameters for _, parameters in getattr(model, f"{side}_encoder").blocks]
        rates |= rate_scales(blocks, getattr(config, f"{side}_lr_scale"), config.layer_decay)
    learner = Learner(
        folder, config, fabric, model, loss, build_optimizer(config, (model, loss), rates),
        start.tokenizer, source, val_data,
        phase=1 + (parent.content["phase"] if parent else 0),
        parent_epoch=parent.epoch if parent else 0,
        progress=Progress(config, folder, log, fabric.is_global_zero),
        compiled=compiled,
    )  # fmt: skip
    if fabric.global_rank:
        torch.manual_seed(config.seed + fabric.global_rank)  # another dropout than the first process's
    if start.resumed:
        learner.restore(start.path, start.content)
        position = learner.position
        if fabric.is_global_zero:
            folder.keep_history(position.epoch - 1)
        source = "" if start.path.name == "last.pt" else f" from {start.path.name}, as its last.pt is missing"
        log(f"run {config.run!r} goes on in epoch {position.epoch}, step {position.step + 1}{source}")
        return learner
    if fabric.is_global_zero:
        _start_folder(learner, parent, start.dataset)
    if parent and parent.optimizer_state == "keep":
        keep_optimizer_state(learner.optimizer, parent.content, (model, loss))
    return learner


def _start_folder(learner: Learner, parent: Parent | None, dataset: Dataset) -> None:
    folder, config = learner.folder, learner.config
    losses = count_losses(learner.tokenizer, learner.val_data.split.captions, config.max_tokens)
    _log_losses(losses, learner.progress.log)
    described = describe_machine(learner.fabric.device) | {
        "seed": config.seed,
        "data": dataset.identity,
        "notes": [printable(note)[:1000] for note in dataset.notes],
        "tokenizer_losses": losses,
        "parent": parent.lineage if parent else None,
        "trainable_weights": sum(p.numel() for g in learner.optimizer.param_groups for p in g["params"]),
    }
    folder.clear()
    folder.write_json("environment.json", described)
    folder.write_json("tokenizer.json", learner.tokenizer.state)
    rows = read_history(parent.run) if parent else []
    folder.write_history([row for row in rows if row["epoch"] <= parent.epoch])
    # Last, since its presence says that the folder holds a run.
    folder.write_json("config.json", config.model_dump(mode="json"))


def _run(learner: Learner) -> None:
    """Runs, and leaves the truth in `status.json` whatever happens, and whoever notices it first.

    A process that fails says so.  One that only loses another says nothing: the state is then `killed`, or
    what the other one said.  Each word is written once, so none can replace a later one.
    """
    fabric = learner.fabric

    def status(state: str, reason: str | None = None) -> None:
        epoch, epochs = learner.position.epoch - 1, learner.last_epoch
        learner.folder.write_status(state, reason, epoch=epoch, epochs=epochs)

    # Until the last word is written: torchrun signals the processes that are left when one has ended.
    with stop_requests(patient=fabric.world_size > 1) as stop:
        if fabric.is_global_zero:
            status("running")
        try:
            with contextlib.closing(learner.progress):
                if fabric.is_global_zero:
                    learner.progress.start(read_history(learner.config.run), learner.last_epoch)
                run(learner, stop)
        except BaseException as error:
            # On a full disk the status cannot be written either; what went wrong first is what counts.
            with contextlib.suppress(OSError, RuntimeError):
                if isinstance(error, KeyboardInterrupt) and fabric.is_global_zero:
                    without = " without overwrite" if learner.config.overwrite else ""
                    status(
                        "interrupted",
                        f"stopped on request (Ctrl-C or SIGTERM); the same call{without} goes on",
                    )
                elif not isinstance(error, KeyboardInterrupt) and not has_lost_another(fabric, error):
                    status("failed", f"{type(error).__name__}: {error}")
            raise
        if fabric.is_global_zero:
            write_card(learner.folder)  # first: a run that says it is complete has one
            status("complete")


def _log_losses(losses: dict, log: Log) -> None:
    """One line on what the tokenizer loses, and another where it is much."""
    unknown, cut = loss_shares(losses)
    log(
        f"tokenizer {losses['tokenizer']}: of the validation captions {100 * unknown:.1f} % of the tokens"
        f" are unknown, {100 * cut:.1f} % are cut at {losses['max_tokens']} tokens"
    )
    if warning := losses_warning(losses):
        log(warning)
