"""A run folder: everything that one training run leaves behind, and the only thing reports read.

`config.json`, `environment.json`, `tokenizer.json`, `history.jsonl`, `status.json`, `last.pt`,
`best.pt`, `model.safetensors`, `README.md` (its card); evaluation adds `results.json`, `ranks.npz`,
`diagnosis.json`, `slots.npz`, `gallery.npz` and `queries.json` (the last two hold images and captions of the
data set).
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mmlib import files
from mmlib.arrays import read_npz
from mmlib.config import JOIN, ParameterError, TrainConfig, build
from mmlib.training import stored

_OF_WEIGHTS = (
    "best.pt", "model.safetensors", "results.json", "ranks.npz", "diagnosis.json", "slots.npz", "gallery.npz",
    "neighbours.npz", "queries.json", "README.md",
)  # fmt: skip
TRAIN_AGAIN = "bring it back from a copy, or train again with overwrite=True"
_EVALUATE_AGAIN = "evaluate the run again"


def run_folder(run: str) -> Path:
    """Where the run of this name lies, or will lie.

    Raises:
        ValueError: the name cannot be that of a folder, see `checked_name`.
    """
    return files.RUNS / files.checked_name(run, "run")


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_history(run: str) -> list[dict]:
    """The epochs of a run in order, its ancestors' first; a last line cut short by a crash is left out.

    Raises:
        FileNotFoundError: the run has no history.
        ValueError: a line other than the last is damaged, or the epochs are not in order.
    """
    path = run_folder(run) / "history.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"run {run!r} has no history: expected {files.shown(path)}; train it first")
    rows = parse_history(path)
    for number, row in enumerate(rows, 1):
        where = f"{files.shown(path)}, line {number},"
        stored.checked(row, stored.Epoch, where, TRAIN_AGAIN)
        before = rows[number - 2]["epoch"] if number > 1 else 0
        if row["epoch"] <= before:
            raise ValueError(
                f"{where} is damaged: expected an epoch after {before}, found {row['epoch']}; {TRAIN_AGAIN}"
            )
    return rows


def stored_config(run: str) -> TrainConfig:
    """The parameters that a run was started with.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or its `config.json` is damaged.
    """
    path = run_folder(run) / "config.json"
    values = files.read_json(path)
    try:
        return build(TrainConfig, {k: v for k, v in values.items() if k in TrainConfig.model_fields})
    except ParameterError as error:
        raise ValueError(f"{files.shown(path)} is damaged: {error}") from None


def pretrained_encoders(config: TrainConfig) -> dict[str, str]:
    """`image` and `text` to what that encoder had learned before the run: its name and weights."""
    learned = {}
    for side in ("image", "text"):
        encoder, weights = (getattr(config, f"{side}_{part}") for part in ("encoder", "weights"))
        if weights != "none":
            parts = weights.split(JOIN) if JOIN in encoder else [weights]
            learned[side] = f"{encoder} ({JOIN.join(Path(part).name for part in parts)})"
    return learned


def stored_choice(run: str) -> str:
    """The validation metric that chose a run's best epoch, also of a run that today's code could not train.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or its `config.json` is damaged.
    """
    return stored.read_stored(run_folder(run) / "config.json", stored.Choice).get("select_by") or "rsum"


def stored_environment(run: str) -> dict:
    """What a run was started in: among it its `data` (name, fingerprint, …) and `parent`.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or its `environment.json` is damaged.
    """
    return stored.read_stored(run_folder(run) / "environment.json", stored.Environment, TRAIN_AGAIN)


def read_result(run: str) -> dict:
    """The evaluation of a run, `results.json`.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: the file is damaged.
    """
    return stored.read_stored(evaluated_file(run, "results.json"), stored.Result)


def evaluated_file(run: str, name: str) -> Path:
    """A file that the evaluation of a run left.

    Raises:
        FileNotFoundError: there is no such run, or it was not evaluated.
    """
    path = run_folder(run) / name
    if not path.parent.is_dir():
        known = [folder.name for folder in files.RUNS.glob("*") if folder.is_dir()]
        raise FileNotFoundError(f"no run {run!r} in {files.shown(files.RUNS)}{files.nearest(run, known)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"run {run!r} was not evaluated: expected {files.shown(path)}; run notebook 03_evaluate first"
        )
    return path


def read_diagnosis(run: str) -> dict:
    """The diagnosis of a run.

    Raises:
        FileNotFoundError: the run was not evaluated, or before there were diagnoses.
        ValueError: the file is damaged.
    """
    return stored.read_stored(evaluated_file(run, "diagnosis.json"), stored.Diagnosis, _EVALUATE_AGAIN)


def read_queries(run: str) -> dict:
    """What `queries_of` gave, from the run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or lacks queries that `results.json` counts.
    """
    queries = stored.read_stored(evaluated_file(run, "queries.json"), stored.Queries, _EVALUATE_AGAIN)
    standard = read_result(run)["protocols"]["standard"]
    for name, direction in (("images", "i2t"), ("captions", "t2i")):
        expected, found = standard[direction]["n"], len(queries[name])
        if found != expected:
            raise ValueError(
                f"run {run!r}: expected {expected:,} {name} in queries.json, as results.json counts, found"
                f" {found:,}; {_EVALUATE_AGAIN}"
            )
    return queries


def read_arrays(run: str, name: str) -> dict[str, np.ndarray]:
    """The arrays that the evaluation of a run left, `gallery` or `slots`.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: the file is damaged.
    """
    path = evaluated_file(run, f"{name}.npz")
    try:
        return read_npz(path)
    except ValueError as error:
        raise ValueError(f"{files.shown(path)} is damaged ({error.__cause__}); {_EVALUATE_AGAIN}") from None


def parse_history(path: Path) -> list[dict]:
    """The rows of a history file whose lines are whole; a last one without its end was cut by a crash."""
    *lines, _ = files.read_bounded(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        row = None
        with contextlib.suppress(ValueError):
            row = files.parse_json(line, path.name)
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise ValueError(
                f"{files.shown(path)}, line {number} is damaged: expected one JSON object per line, with its"
                f" epoch; {TRAIN_AGAIN}"
            )
        rows.append(row)
    return rows


def read_status(run: str) -> dict:
    """What a run says of itself, `status.json`: its `state` and the `reason`, if any.

    Raises:
        FileNotFoundError, ValueError: there is no such run, or the file is damaged.
    """
    return stored.read_stored(run_folder(run) / "status.json", stored.Status)


def run_state(run: str) -> tuple[str, str | None]:
    """State of a run and the reason, if any.

    A run that says `running` while no process holds its folder was killed: nothing had the time to
    write that down, so it is found out here.  One that is held and has said nothing yet is being started.
    Nothing is written, and no other process is held up.
    """
    said = _said(run)
    if said[0] not in ("running", "nothing"):
        return said
    if files.holder(run_folder(run)):
        return "running", None
    state, reason = _said(run)  # it may have ended, and said so, since it was read
    if state == "running":
        return "killed", "a process of it ended without a word (killed, or the machine went down)"
    return ("failed" if state == "nothing" else state), reason


def _said(run: str) -> tuple[str, str | None]:
    """State and reason as a run's `status.json` has them; `nothing`, and what was expected, without one."""
    try:
        status = read_status(run)
    except (OSError, ValueError) as error:
        return "nothing" if isinstance(error, FileNotFoundError) else "failed", str(error)
    return status["state"], status.get("reason")


def require_complete(run: str) -> None:
    """Passes if the run is complete.

    Raises:
        FileNotFoundError: there is no such run; names those that exist.
        ValueError: it is not complete; says what it is.
    """
    if not run_folder(run).is_dir():
        known = sorted(path.name for path in files.RUNS.glob("*") if path.is_dir())
        there = f"the runs there are: {', '.join(known)}" if known else "there are no runs yet"
        raise FileNotFoundError(f"no run {run!r} in {files.shown(files.RUNS)}; {there}. Train it first")
    state, reason = run_state(run)
    if state != "complete":
        why = f" ({reason})" if reason else ""
        raise ValueError(
            f"run {run!r} is not complete but {state}{why}; start its training again, it goes on where it"
            " stopped"
        )


class RunFolder:
    """The writing side of a run folder.  Open with `open_run`, which locks it.

    Every write checks that the folder is still the one that was opened, and none makes it anew: who deletes
    a run that is at work has it deleted.

    Args:
        path: of the folder.
        check: of its lock (`locked`); None in those of several processes that leave the writing to the first.
    """

    def __init__(self, path: Path, check: Callable[[], None] | None = None):
        self.path = path
        self._check = check or (lambda: None)

    def clear(self) -> None:
        """Removes what an earlier run left that was killed before it said anything of itself.

        Results must not be taken for those of other weights.
        """
        for name in _OF_WEIGHTS:
            (self.path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Writes a file of the run, whole or not at all.

        Raises:
            OSError: the disk is full or the folder cannot be written; the file before it is intact.
            RuntimeError: the folder was deleted, moved or replaced.
        """
        self._check()
        path = self.path / name
        kept = "; the previous one is intact" if path.exists() else "; there is none before it"
        with files.explained(path, f" ({len(data) / 2**20:.1f} MiB)", kept):
            files.write_bytes_atomic(path, data)

    def write_json(self, name: str, value: dict) -> None:
        """`write` of an object as JSON."""
        self.write(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def write_status(self, state: str, reason: str | None = None, **progress: int) -> None:
        """Writes `status.json`; of a run, `epoch` is the last finished one, `epochs` the last one planned."""
        self.write_json("status.json", {"state": state, "reason": reason, **progress, "updated": now()})

    def append_history(self, row: dict) -> None:
        """Appends one epoch and flushes it to disk.

        Raises:
            OSError: the disk is full or the folder cannot be written; the epochs before are intact.
            RuntimeError: the folder was deleted, moved or replaced.
        """
        self._check()
        path, line = self.path / "history.jsonl", json.dumps(row, allow_nan=False) + "\n"
        with files.explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def keep_history(self, last_epoch: int) -> None:
        """Cuts the history back to the epochs up to `last_epoch`, and any half line."""
        path = self.path / "history.jsonl"
        if path.exists():
            self.write_history([row for row in parse_history(path) if row["epoch"] <= last_epoch])

    def write_history(self, rows: list[dict]) -> None:
        """Replaces the history."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        self.write("history.jsonl", "".join(lines).encode())


@contextlib.contextmanager
def open_run(run: str, overwrite: bool = False) -> Iterator[RunFolder]:
    """The run folder, made if it is missing and locked against a second writer.

    Args:
        run: name.
        overwrite: empty the folder first.

    Raises:
        InUse: another process is writing this run, which is named.
        OSError: the folder cannot be written to.
    """
    folder = run_folder(run)
    with files.locked(folder, f"run {run!r}") as check:
        # Under the lock, unfinished files can only be a killed process's.
        doomed = list(folder.glob("*.part"))
        if overwrite:
            # What says "a complete run" goes first: killed halfway, the rest must not pass for one.
            first = ("status.json", "config.json", "last.pt")
            doomed = [*(folder / name for name in first), *folder.iterdir()]
        for path in doomed:
            if path.name != ".lock":
                remove(path)
        yield RunFolder(folder, check)


def remove(path: Path) -> None:
    """Removes a file or a folder; of a link, the link alone."""
    with files.explained(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def traces(run: str) -> dict[str, tuple]:
    """What tells whether a run's folder was written to: its parameters and what a run goes on from."""
    found = {}
    for name in ("config.json", "history.jsonl", "last.pt", "best.pt"):
        with contextlib.suppress(FileNotFoundError):
            file = (run_folder(run) / name).stat()
            found[name] = (file.st_ino, file.st_size, file.st_mtime_ns)
    return found


PACKAGES = (
    "mmlib", "torch", "torchvision", "lightning-fabric", "numpy", "pillow", "timm", "open-clip-torch",
    "transformers", "tokenizers",
)  # fmt: skip


def describe_machine(device) -> dict:
    """What a run is started on: code, versions and hardware.

    Args:
        device: torch's, that the model is on.
    """
    import torch  # which reading a run folder does not need

    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": now(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the repository and whether tracked files differ from it; None outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=files.ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
