"""Starting, resuming and continuing runs.

*Resume*: the same run with the same parameters goes on where it stopped.  *Continue*: a new run
starts from a parent's checkpoint, with the parent's data, tokenizer and architecture.
Everything that can be wrong with the input is found before the run folder is touched.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import seed_everything

from mmlib.config import ParameterError, TrainConfig, build, continued, differences
from mmlib.data import Dataset, Tokenizer, load_dataset, tokenizer_for
from mmlib.model import build_loss, build_model, load_learned
from mmlib.params import training_of
from mmlib.training import environment
from mmlib.training.assembly import standardise_heads, training_data
from mmlib.training.checkpoint import check_fits, evaluated_weights, load_checkpoint, load_weights
from mmlib.training.engine import build_fabric, compiles
from mmlib.training.lineage import Parent, check_same_data, stored_tokenizer
from mmlib.training.loop import Training
from mmlib.training.optimisation import build_optimizer, keep_optimizer_state, rate_scales
from mmlib.training.processes import Processes, check_divides
from mmlib.training.resuming import check_history, last_checkpoint
from mmlib.training.runs import (
    RunFolder,
    open_run,
    read_history,
    require_complete,
    run_folder,
    run_state,
    stored_config,
    stored_environment,
    write_json,
)

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
    if parameters["dataset"] != "shapes":
        raise FileNotFoundError(f"the parent run {parent!r} is missing; train it first:\n  {command}")
    log(f"the parent run {parent!r} is missing; its data are embedded, so it is trained first")
    train(build(TrainConfig, parameters), log, if_complete="show")
    return None


def _train(config: TrainConfig, parent: Parent | None, log: Log, if_complete: str) -> list[dict]:
    lineage = parent.lineage if parent else None
    fabric = build_fabric(config)
    processes = Processes.of(fabric)
    check_divides(config.batch_size, processes.count)
    log = log if processes.writes else _silent
    if not config.overwrite and _is_finished(config, lineage, if_complete, log):
        return read_history(config.run)
    dataset = load_dataset(config)
    for note in dataset.notes:
        log(f"{dataset.name}: {note}")
    for run in [config.run] * (not config.overwrite) + ([parent.run] if parent else []):
        check_same_data(run, dataset.name, dataset.fingerprint)

    path, resumed = last_checkpoint(config) or (_parent_path(parent), None)
    content = resumed or (parent and parent.content)
    tokenizer = Tokenizer.from_state(content["tokenizer"]) if content else _new_tokenizer(config, dataset)
    if resumed:
        check_fits(path, resumed, config.model_dump(), tokenizer.fingerprint)
    seed_everything(config.seed, verbose=False)
    model = build_model(
        config, tokenizer.size, tokenizer.padding_id,
        load_pretrained=not content, architecture=content and content.get("architecture"),
    )  # fmt: skip
    loss = build_loss(config)
    _load_modules(path, content, model, loss, bool(resumed))
    compiled = compiles(config, fabric, len(dataset.splits["train"].captions))
    source, val_data = training_data(config, dataset, tokenizer, model, processes, compiled)
    if not content:
        standardise_heads(model, source, processes)
    # Nobody may find the run begun while it is still asked whether it was.
    processes.wait()
    with _folder(config, processes) as folder:
        model.to(fabric.device)
        loss.to(fabric.device)
        rates = {}
        for side in ("image", "text"):
            blocks = [parameters for _, parameters in getattr(model, f"{side}_encoder").blocks]
            rates |= rate_scales(blocks, getattr(config, f"{side}_lr_scale"), config.layer_decay)
        training = Training(
            folder, config, fabric, model, loss, build_optimizer(config, (model, loss), rates), tokenizer,
            source, val_data,
            phase=1 + (parent.content["phase"] if parent else 0),
            parent_epoch=parent.epoch if parent else 0,
            log=log,
            compiled=compiled,
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
                _start_folder(training, parent, dataset.identity)
            if parent and parent.optimizer_state == "keep":
                keep_optimizer_state(training.optimizer, parent.content, (model, loss))
        _run(training)
    processes.wait()
    return read_history(config.run)


def _new_tokenizer(config: TrainConfig, dataset: Dataset) -> Tokenizer:
    return tokenizer_for(config, dataset.splits["train"].captions, config.text_encoder)


def _silent(line: str) -> None:
    """The log of processes that write nothing."""


@contextlib.contextmanager
def _folder(config: TrainConfig, processes: Processes) -> Iterator[RunFolder]:
    """The run folder, opened for writing by one process before the others look into it."""
    if processes.writes:
        with open_run(config.run, config.overwrite) as folder:
            processes.wait()
            yield folder
    else:
        processes.wait()
        yield RunFolder(run_folder(config.run))


def _run(training: Training) -> None:
    """Runs, and leaves the truth in `status.json` whatever happens."""
    folder, last_epoch = training.folder, training.last_epoch

    def status(state: str, reason: str | None = None) -> None:
        folder.write_status(state, training.position.epoch - 1, last_epoch, reason)

    writes = training.processes.writes
    if writes:
        status("running")
    try:
        training.run()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        # Whichever process sees another one die says so: it may be the one that writes that died.
        if writes or not interrupted:
            # On a full disk the status cannot be written either; what went wrong first is what counts.
            with contextlib.suppress(OSError):
                if interrupted:
                    without = " without overwrite" if training.config.overwrite else ""
                    status(
                        "interrupted",
                        f"stopped on request (Ctrl-C or SIGTERM); the same call{without} goes on",
                    )
                else:
                    status("failed", f"{type(error).__name__}: {error}")
        raise
    if writes:
        status("complete")


def _is_finished(config: TrainConfig, lineage: dict | None, if_complete: str, log: Log) -> bool:
    """Whether this very run is complete.

    Raises:
        FileExistsError: a run of this name has other parameters or another parent, or is complete
            and `if_complete` is `refuse`.
    """
    folder = run_folder(config.run)
    if not (folder / "config.json").exists():
        return False
    state, _ = run_state(config.run)
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
    return True


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
    described = environment.describe(
        config.seed,
        training.fabric.device,
        data_identity,
        parent.lineage if parent else None,
        sum(p.numel() for group in training.optimizer.param_groups for p in group["params"]),
    )
    folder.clear()
    write_json(folder.path / "environment.json", described)
    write_json(folder.path / "tokenizer.json", training.tokenizer.state)
    rows = read_history(parent.run) if parent else []
    folder.write_history([row for row in rows if row["epoch"] <= parent.epoch])
    # Last, since its presence says that the folder holds a run.
    write_json(folder.path / "config.json", config.model_dump(mode="json"))
