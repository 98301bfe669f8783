"""How far the runs of an ablation are, read from their folders alone, so that all processes see the same."""

from mmlib.metrics import RetrievalRanks, summarise
from mmlib.training.ablation_plan import PlannedRun, candidates
from mmlib.training.runs import read_history, read_result, run_folder, run_state

CHECKPOINT = "best"  # of each final run, which is evaluated


def has_diverged(run: str) -> bool:
    """Whether a run ended because its loss or weights were no longer finite: a result, like any other."""
    state, reason = run_state(run)
    return state == "failed" and (reason or "").startswith(FloatingPointError.__name__)


def has_ended(run: str) -> bool:
    """Whether nothing is left to train: the run is complete, or it diverged."""
    return run_state(run)[0] == "complete" or has_diverged(run)


def best_epoch(run: PlannedRun) -> dict:
    """The row of the history whose weights are the best checkpoint, the earliest of equals.

    Raises:
        FileNotFoundError, ValueError: there is no history, or it is damaged.
    """
    own = [row for row in read_history(run.name) if row["run"] == run.name]
    return max(own, key=lambda row: row["val"][run.config.select_by])


def chosen_run(arm: list[PlannedRun]) -> PlannedRun | None:
    """The run of the first seed whose tuned values are best on validation, the earliest of equals.

    None if all of them diverged.  Expects that all have ended.
    """
    complete = [run for run in candidates(arm) if not has_diverged(run.name)]
    by = {run.name: best_epoch(run)["val"][run.config.select_by] for run in complete}
    return max(complete, key=lambda run: by[run.name], default=None)


def final_runs(arm: list[PlannedRun]) -> list[PlannedRun]:
    """One run for each seed, with the chosen values; none as long as, or because, nothing was chosen."""
    tried = candidates(arm)
    if len(tried) == 1:
        return arm
    chosen = chosen_run(arm) if all(has_ended(run.name) for run in tried) else None
    return [run for run in arm if chosen and run.tuned == chosen.tuned]


def is_evaluated(run: PlannedRun, split: str) -> bool:
    """Whether the run's `results.json` is of this split and of the weights that are there now."""
    folder = run_folder(run.name)
    try:
        result, ranks = read_result(run.name), RetrievalRanks.load(folder / "ranks.npz")
        found = [result["split"], result["checkpoint"], result.get("wise_ft", 1.0), result["epoch"]]
        if found != [split, CHECKPOINT, 1.0, best_epoch(run)["epoch"]]:
            return False
        # Weights that were replaced would be younger than what was measured on them.
        weights, measured = folder / f"{CHECKPOINT}.pt", folder / "results.json"
        return (
            measured.stat().st_mtime_ns >= weights.stat().st_mtime_ns
            and summarise(ranks) == result["protocols"]["standard"]
        )
    except (OSError, ValueError, KeyError):
        return False
