"""Running an ablation: each run trained once, each final one evaluated once.

Each run is an ordinary run folder: an ablation that was stopped goes on with the run where it stopped.
"""

import contextlib
from collections.abc import Callable, Iterator

from mmlib.config import AblationConfig, EvaluateConfig, ParameterError, build, differences
from mmlib.training.ablation import ablation_record, record_status, write_ablation
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates, plan_grid
from mmlib.training.evaluation import evaluate
from mmlib.training.grid_state import (
    CHECKPOINT,
    best_epoch,
    final_runs,
    has_diverged,
    has_ended,
    is_evaluated,
)
from mmlib.training.processes import process_count
from mmlib.training.runs import open_run, read_history, read_result, run_folder, run_state, stored_config
from mmlib.training.start import train

__all__ = ["plan_grid", "run_grid"]

Log = Callable[[str], None]
Arms = dict[str, list[PlannedRun]]


def run_grid(config: AblationConfig, log: Log = print) -> dict:
    """Trains what an ablation is missing, evaluates its final runs, and judges its claims.

    Called again it goes on where it was stopped, and only shows what is complete.  A run that diverges
    is a result: it is kept as failed, with its reason, and not tried again.

    Args:
        config: the ablation; everything in it is checked before anything is started.
        log: takes one line for each run that ended.

    Returns:
        The content of `runs/<run>/ablation.json`, see `mmlib.training.ablation.ablation_record`.

    Raises:
        ParameterError, FileNotFoundError: as `plan_grid`; or under torchrun, whose processes train one
            run together.
        FileExistsError: a run of the ablation is there with other parameters.
        RuntimeError: another process is running this ablation, or one of its runs.
        KeyboardInterrupt: stopped on request; the same call goes on.
    """
    if process_count() > 1:
        raise ParameterError(
            f"ablation {config.run!r}: expected one process, found {process_count()} of torchrun, which train"
            " one run together; start the command without torchrun"
        )
    planned = plan_grid(config)
    if not config.overwrite:
        _check_folders(config, planned)
    arms = arms_of(planned)
    with _announced(config, planned, arms):
        _work_through(config, arms, log)
        record = ablation_record(config, planned)
        write_ablation(record)
    return record


def _check_folders(config: AblationConfig, planned: list[PlannedRun]) -> None:
    differ = [
        f"  {run.name}: {line}"
        for run in planned
        if (run_folder(run.name) / "config.json").exists()
        for line in differences(stored_config(run.name), run.config)
    ]
    if differ:
        raise FileExistsError(
            f"ablation {config.run!r} has runs that were started with other parameters:\n"
            + "\n".join(differ)
            + "\nchoose another run name, or overwrite=True to replace them"
        )


@contextlib.contextmanager
def _announced(config: AblationConfig, planned: list[PlannedRun], arms: Arms) -> Iterator[None]:
    """Holds the ablation's folder and keeps its `status.json` true; its runs are emptied under its lock."""
    with open_run(config.run, config.overwrite):
        for run in planned if config.overwrite else ():
            if run_folder(run.name).exists():
                with open_run(run.name, overwrite=True):
                    pass
        if not all(_is_done(run, final, config.split) for run, final in _due(arms)):
            record_status(config.run, "running")
        try:
            yield
        except KeyboardInterrupt:
            record_status(config.run, "interrupted", "stopped on request; the same call goes on")
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # on a full disk, what went wrong first is what counts
                record_status(config.run, "failed", f"{type(error).__name__}: {error}")
            raise
        if run_state(config.run)[0] != "complete":
            record_status(config.run, "complete")


def _due(arms: Arms) -> Iterator[tuple[PlannedRun, bool]]:
    """Each run, and whether it is a final one, which is evaluated too.

    The final runs of a tuned arm are asked for when its candidates have ended.
    """
    for arm in arms.values():
        tried = candidates(arm)
        if len(tried) > 1:
            yield from ((run, False) for run in tried)
        yield from ((run, True) for run in final_runs(arm))


def _is_done(run: PlannedRun, final: bool, split: str) -> bool:
    if not has_ended(run.name):
        return False
    return not final or has_diverged(run.name) or is_evaluated(run, split)


def _work_through(config: AblationConfig, arms: Arms, log: Log) -> None:
    total = sum(
        len({run.config.seed for run in arm}) + len(candidates(arm)) * (len(candidates(arm)) > 1)
        for arm in arms.values()
    )
    for number, (run, final) in enumerate(_due(arms), 1):
        if not has_ended(run.name):
            with contextlib.suppress(FloatingPointError):  # its status.json says so
                train(run.config, _quiet, if_complete="show")
        if not _is_done(run, final, config.split):
            wanted = {"split": config.split, "checkpoint": CHECKPOINT, "device": config.device}
            evaluate(build(EvaluateConfig, {"runs": [run.name], "data_root": config.data_root, **wanted}))
        log(f"{number}/{total}  {_line(run, final)}")


def _quiet(line: str) -> None:
    """The log of a single run: an ablation says one line for each."""


def _line(run: PlannedRun, final: bool) -> str:
    if has_diverged(run.name):
        return f"{run.name}: failed, {run_state(run.name)[1]}"
    best, by = best_epoch(run), run.config.select_by
    seconds = sum(row["seconds"] for row in read_history(run.name))
    line = (
        f"{run.name}: validation {by} {100 * best['val'][by]:.1f} % at epoch {best['epoch']}, {seconds:.0f} s"
    )
    if not final:
        return line
    result = read_result(run.name)
    i2t, t2i = (100 * result["protocols"]["standard"][d]["r1"]["value"] for d in ("i2t", "t2i"))
    return f"{line} · {result['split']} R@1 {i2t:.2f} % i2t {t2i:.2f} % t2i"
