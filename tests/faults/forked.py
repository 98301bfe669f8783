"""Processes that train and are ended from within, at a moment that is always the same.

They are forked from a server that imported torch once: a new interpreter for each would cost seconds.
"""

import os
import signal
import sys
from pathlib import Path

from tiny_runs import half_written, tiny_train
from together import SERVER, settle

PATIENCE = 300  # seconds after which a process counts as stuck


def kill_at(moment: str, runs: Path, cache: Path, changes: dict) -> int:
    """Trains in a process that kills itself at `moment`, a name of `MOMENTS`; returns its exit code."""
    return ended(_train_until, moment, runs, cache, changes)


def ended(target, *arguments) -> int:
    """Runs `target` in a forked process to its end; returns the exit code, negative for a signal."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the process was stuck after {PATIENCE} s")
    return process.exitcode


def _train_until(moment: str, runs: Path, cache: Path, changes: dict) -> None:
    settle(runs, cache)
    MOMENTS[moment]()
    tiny_train(**changes)
    sys.exit("the moment never came")


def _die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _inside_a_step() -> None:
    """In the second epoch's second step, after its forward pass."""
    from mmlib.model import InfoNCE

    _on_call(InfoNCE, "forward", 6, _die)


def _inside_a_checkpoint_write() -> None:
    """With half of the second epoch's last.pt on the disk."""
    from mmlib import files

    files.open = half_written("last.pt", 2, _die)


def _between_best_and_last() -> None:
    """After the first epoch's best.pt and before its last.pt."""
    from mmlib import files

    files.open = half_written("last.pt", 1, _die)


def _between_history_and_last() -> None:
    """After the second epoch's line in the history and before its last.pt."""
    from mmlib.training.runs import RunFolder

    append = RunFolder.append_history

    def then_die(folder, row):
        append(folder, row)
        if row["epoch"] == 2:
            _die()

    RunFolder.append_history = then_die


def _inside_the_history_line() -> None:
    """With half of the second epoch's line in the history."""
    from mmlib.training.runs import RunFolder

    def half_a_line(folder, row):
        with open(folder.path / "history.jsonl", "a") as file:
            file.write('{"epoch": 2, "phase"')
        _die()

    _on_call(RunFolder, "append_history", 2, half_a_line)


def _before_the_first_checkpoint() -> None:
    """In the very first step: the folder holds parameters and nothing to go on from."""
    from mmlib.model import InfoNCE

    _on_call(InfoNCE, "forward", 1, _die)


def _before_the_parameters() -> None:
    """While the folder is begun: its data are described, its parameters are not."""
    from mmlib.training.runs import RunFolder

    _on_call(RunFolder, "write_history", 1, _die)


def _on_call(owner: type, name: str, number: int, act) -> None:
    """Puts `act` in the place of the `number`-th call of a method."""
    method, calls = getattr(owner, name), []

    def counted(*arguments, **named):
        calls.append(name)
        return (act if len(calls) == number else method)(*arguments, **named)

    setattr(owner, name, counted)


MOMENTS = {
    "inside a step": _inside_a_step,
    "inside a checkpoint write": _inside_a_checkpoint_write,
    "between best.pt and last.pt": _between_best_and_last,
    "between history and last.pt": _between_history_and_last,
    "inside a line of the history": _inside_the_history_line,
    "before the first checkpoint": _before_the_first_checkpoint,
    "before the parameters": _before_the_parameters,
}
