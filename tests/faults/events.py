"""What a working process does, as a sequence of events; at one of them something may happen to it.

Events of the disk (`open`, half of the first `write`, `fsync`, `replace`) are those of files under given
folders, in whichever thread; events of the training are a step's begin, its loss and its way back, a
validation, and features of a frozen encoder.
"""

import builtins
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

DISK = ("open", "write", "fsync", "replace")
Happens = Callable[[int, str, str], None]  # number of the event from 1, its kind, the file's name or ""


@contextlib.contextmanager
def watched(folders: list[Path], happens: Happens) -> Iterator[None]:
    """Calls `happens` at every event, right before what it names; for `write`, when half is written."""
    numbers = itertools.count(1)
    folders = [os.fspath(folder) for folder in folders]
    names: dict[int, str] = {}  # of open files, by descriptor

    def event(kind: str, path="") -> None:
        name = os.path.basename(path)
        if name.endswith(".part"):  # <name>.<random>.part
            name = name.removesuffix(".part").rsplit(".", 1)[0]
        happens(next(numbers), kind, name)

    def inside(path) -> bool:
        return isinstance(path, str | Path) and os.fspath(path).startswith(tuple(folders))

    class Written:
        """A file whose first write is an event."""

        def __init__(self, file, path):
            self._file, self._path, self._written = file, path, False

        def write(self, data):
            if self._written:
                return self._file.write(data)
            self._written = True
            half = len(data) // 2
            count = self._file.write(data[:half])
            self._file.flush()
            event("write", self._path)
            return count + self._file.write(data[half:])

        def fileno(self):
            names[self._file.fileno()] = self._path
            return self._file.fileno()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            self._file.__enter__()
            return self

        def __exit__(self, *error):
            names.pop(self._file.fileno(), None)
            return self._file.__exit__(*error)

    def opened(path, mode="r", *arguments, **named):
        if (mode.startswith("r") and "+" not in mode) or not inside(path):
            return open_(path, mode, *arguments, **named)
        event("open", path)
        return Written(open_(path, mode, *arguments, **named), os.fspath(path))

    def synced(descriptor):
        if descriptor in names:
            event("fsync", names[descriptor])
        return fsync(descriptor)

    def replaced(source, target, **named):
        if inside(target):
            event("replace", target)
        return replace(source, target, **named)

    open_, fsync, replace = builtins.open, os.fsync, os.replace
    with contextlib.ExitStack() as undo:
        for owner, name, new in (
            (builtins, "open", opened), (os, "fsync", synced), (os, "replace", replaced)
        ):  # fmt: skip
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        for owner, name, kind in _training_calls():
            method = getattr(owner, name)
            undo.callback(setattr, owner, name, method)
            setattr(owner, name, _announced(method, lambda kind=kind: event(kind)))
        yield


def _training_calls() -> list[tuple[object, str, str]]:
    from lightning_fabric import Fabric

    from mmlib.model.losses import Loss
    from mmlib.model.pretrained import PretrainedEncoder
    from mmlib.training import loop

    return [
        (loop.Learner, "backward", "step"),
        (Loss, "forward", "loss"),
        (Fabric, "backward", "backward"),
        (loop, "rank_split", "validate"),
        (PretrainedEncoder, "features", "features"),
    ]


def _announced(method, announce):
    def call(*arguments, **named):
        announce()
        return method(*arguments, **named)

    return call
