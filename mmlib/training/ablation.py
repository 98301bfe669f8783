"""Ablations: each run trained once, each final one evaluated once, the claims judged on their ranks.

Each run is an ordinary run folder: an ablation that was stopped goes on with the run where it stopped.
What it found is in one file, `runs/<run>/ablation.json`; reports are made from it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mmlib.config import AblationConfig, EvaluateConfig, ParameterError, build, differences
from mmlib.files import write_json
from mmlib.metrics import RetrievalRanks, summarise_seeds
from mmlib.metrics.compare import ALPHA, check_comparable, compare_seeds, holm, measured_on
from mmlib.metrics.summary import DIRECTIONS
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates, plan_grid
from mmlib.training.runs import (
    now,
    open_run,
    read_history,
    read_result,
    run_folder,
    run_state,
    stored_config,
    stored_environment,
)
from mmlib.training.stored import DECIDES, Ablation, read_stored

Log = Callable[[str], None]
Arms = dict[str, list[PlannedRun]]

FILE = "ablation.json"
CHECKPOINT = "best"  # of each final run, which is evaluated
KS = (1, 5, 10)


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
    from mmlib.training.processes import process_count  # torch's, as are the others'

    if process_count() > 1:
        raise ParameterError(
            f"ablation {config.run!r}: expected one process, found {process_count()} of torchrun, which train"
            " one run together; start the command without torchrun"
        )
    planned = plan_grid(config)
    if not config.overwrite:
        _check_folders(config, planned)
    with open_run(config.run, config.overwrite):
        for run in planned if config.overwrite else ():
            if run_folder(run.name).exists():
                with open_run(run.name, overwrite=True):
                    pass
        try:
            _work_through(config, arms_of(planned), log)
            record = ablation_record(config, planned)
            write_json(run_folder(config.run) / FILE, record)
        except BaseException as error:
            state, reason = "failed", f"{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                state, reason = "interrupted", "stopped on request; the same call goes on"
            with contextlib.suppress(OSError):  # on a full disk, what went wrong first is what counts
                _record_status(config.run, state, reason)
            raise
        if run_state(config.run)[0] != "complete":
            _record_status(config.run, "complete")
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
    from mmlib.training.evaluation import evaluate
    from mmlib.training.start import train

    total = sum(
        len({run.config.seed for run in arm}) + len(candidates(arm)) * (len(candidates(arm)) > 1)
        for arm in arms.values()
    )
    for number, (run, final) in enumerate(_due(arms), 1):
        if not _is_done(run, final, config.split):
            _record_status(config.run, "running")
        if not has_ended(run.name):
            with contextlib.suppress(FloatingPointError):  # its status.json says so
                train(run.config, lambda line: None, if_complete="show")
        if not _is_done(run, final, config.split):
            wanted = {"split": config.split, "checkpoint": CHECKPOINT, "device": config.device}
            evaluate(build(EvaluateConfig, {"runs": [run.name], "data_root": config.data_root, **wanted}))
        log(f"{number}/{total}  {_line(run, final)}")


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
    """Whether the run's `results.json` is of this split and its best weights."""
    try:
        result = read_result(run.name)
    except (OSError, ValueError):
        return False
    found = [result["split"], result["checkpoint"], result.get("wise_ft", 1.0), result["epoch"]]
    return found == [split, CHECKPOINT, 1.0, best_epoch(run)["epoch"]]


def ablation_record(config: AblationConfig, planned: list[PlannedRun]) -> dict:
    """Everything that a report says of an ablation whose runs have all ended.

    Returns:
        `run`, `base`, `changes`, `seeds`, `select_by`; `scope` (what all final runs were measured on);
        `chance` by metric; `arms`, the base line first; and `claims`, see `judge_claims`.  An arm has
        `name`, `differs`, `tuned` (the chosen values), `tried` (runs of the first seed with their
        validation metric, if anything is tuned), `runs` (the final ones), `pretraining`,
        `interval` (what its intervals cover) and `metrics`: by name `mean`, `low`, `high` and
        `values`, one a seed.  Of one seed the intervals are those of `summarise`; of several, those
        of `summarise_seeds`.

    Raises:
        FileNotFoundError, ValueError: a run whose files are missing or damaged, or runs that were not
            measured on the same images and captions.
    """
    arms = arms_of(planned)
    finals = {name: final_runs(arm) for name, arm in arms.items()}
    complete = {
        name: [run for run in runs if run_state(run.name)[0] == "complete"] for name, runs in finals.items()
    }
    results = {name: [read_result(run.name) for run in runs] for name, runs in complete.items()}
    ranks = {
        name: {r.config.seed: RetrievalRanks.load(run_folder(r.name) / "ranks.npz") for r in runs}
        for name, runs in complete.items()
    }
    every = [result for of_arm in results.values() for result in of_arm]
    check_comparable(every)
    standard = every[0]["protocols"]["standard"] if every else None
    return {
        "run": config.run,
        "base": config.base,
        "changes": config.changes,
        "seeds": config.seeds,
        "select_by": planned[0].config.select_by,
        "scope": measured_on(every[0]) if every else None,
        "chance": {f"{d}_r{k}": standard[d][f"r{k}"]["chance"] for d in DIRECTIONS for k in KS}
        if every
        else {},
        "arms": [
            {
                "name": name,
                "differs": arm[0].differs,
                "tuned": finals[name][0].tuned if finals[name] else {},
                "tried": _tried(arm),
                "runs": [_final(run) for run in finals[name]],
                "pretraining": results[name][0]["pretraining"] if results[name] else None,
                **_statistics(results[name], list(ranks[name].values())),
            }
            for name, arm in arms.items()
        ],
        "claims": judge_claims(config.claims, ranks),
    }


def read_ablation(run: str) -> dict | None:
    """The record of an ablation; None if the run of this name is none, or has none yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_folder(run) / FILE
    return read_stored(path, Ablation) if path.exists() else None


def members(record: dict) -> tuple[str, ...]:
    """The runs of an ablation that ended well, the final ones last."""
    runs = [run for arm in record["arms"] for run in (*arm["tried"], *arm["runs"])]
    final = [run["run"] for arm in record["arms"] for run in arm["runs"] if run["state"] == "complete"]
    tried = [run["run"] for run in runs if run["state"] == "complete" and run["run"] not in final]
    return (*tried, *final)


def _record_status(run: str, state: str, reason: str | None = None) -> None:
    """Writes the ablation's `status.json`."""
    write_json(run_folder(run) / "status.json", {"state": state, "reason": reason, "updated": now()})


def _tried(arm: list[PlannedRun]) -> list[dict]:
    tried = candidates(arm)
    if len(tried) == 1:
        return []
    chosen = chosen_run(arm)
    return [_ended(run) | {"tuned": run.tuned, "chosen": run is chosen} for run in tried]


def _final(run: PlannedRun) -> dict:
    return _ended(run) | {
        "trainable_weights": stored_environment(run.name)["trainable_weights"],
        "seconds": round(sum(row["seconds"] for row in read_history(run.name)), 1),
    }


def _ended(run: PlannedRun) -> dict:
    state, reason = run_state(run.name)
    best = best_epoch(run) if state == "complete" else None
    return {
        "run": run.name,
        "seed": run.config.seed,
        "state": state,
        "reason": reason,
        "epoch": best and best["epoch"],
        "validation": best and best["val"][run.config.select_by],
    }


def _statistics(results: list[dict], ranks: list[RetrievalRanks]) -> dict[str, Any]:
    if not results:
        return {"interval": None, "metrics": {}}
    names = [f"{d}_{field}" for d in DIRECTIONS for field in (*(f"r{k}" for k in KS), "median_rank")]
    if len(results) > 1:
        found = summarise_seeds(ranks)
        keys = ("mean", "low", "high", "values")
        metrics = {n: {key: found[n][key] for key in keys} for n in (*names, "rsum", "mean_r1")}
        return {"interval": "seeds and queries", "metrics": metrics}
    standard = results[0]["protocols"]["standard"]
    values = {name: standard[name] for name in ("rsum", "mean_r1")}
    values |= {name: standard[name[:3]][name[4:]] for name in names}
    metrics = {}
    for name, value in values.items():
        one = value if isinstance(value, dict) else {"value": value, "low": None, "high": None}
        ends = {end: one[end] for end in ("low", "high")}
        metrics[name] = {"mean": one["value"], **ends, "values": [one["value"]]}
    return {"interval": "queries", "metrics": metrics}


def judge_claims(
    claims: list[dict[str, str]], ranks: dict[str, dict[int, RetrievalRanks]], resamples: int = 10_000
) -> list[dict]:
    """A verdict for each claim, from R@1 averaged over both directions.

    A claim is supported only where two things agree: the test over queries, its p corrected over all
    claims (Holm 1979), is below 0.05; and the interval of the difference, which covers seeds too where
    there are several, lies above zero.  Below zero it is contradicted.  Anything else is no evidence,
    for or against.

    Args:
        claims: each with `claim`, `arm` and `over`.
        ranks: by arm and seed, of the runs that are complete.
        resamples: of bootstrap and permutation test.

    Returns:
        Each claim with `verdict`, one of four words, `seeds` (those that both arms have), and,
        where it was judged, `interval`, `metrics` (of `compare_seeds`), `p_holm` and `judged`, the number of
        claims that p was corrected over.
    """
    judged = []
    for claim in claims:
        arm, over = ranks[claim["arm"]], ranks[claim["over"]]
        seeds = [seed for seed in over if seed in arm]
        found = {}
        if seeds:
            found = compare_seeds(
                [over[seed] for seed in seeds], [arm[seed] for seed in seeds], resamples=resamples
            )
        judged.append({**claim, **found, "seeds": seeds, "verdict": "not judged"})
    compared = [claim for claim in judged if claim["seeds"]]
    for claim, p in zip(compared, holm([claim["metrics"][DECIDES]["p"] for claim in compared])):
        difference = claim["metrics"][DECIDES]
        claim |= {"p_holm": float(p), "judged": len(compared)}
        claim["verdict"] = _verdict(difference["low"], difference["high"], float(p))
    return judged


def _verdict(low: float, high: float, p: float) -> str:
    if p >= ALPHA or low <= 0 <= high:
        return "no evidence"
    return "supported" if low > 0 else "contradicted"
