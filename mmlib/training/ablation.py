"""What an ablation found, in one file: `runs/<run>/ablation.json`, from its run folders alone.

Reports are made from it, and every process that ran a part of the ablation writes the same.
"""

from typing import Any

from mmlib.config import AblationConfig
from mmlib.files import write_json
from mmlib.metrics import RetrievalRanks, summarise_seeds
from mmlib.metrics.compare import check_comparable, measured_on
from mmlib.metrics.summary import DIRECTIONS
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates
from mmlib.training.claims import judge_claims
from mmlib.training.grid_state import best_epoch, chosen_run, final_runs
from mmlib.training.runs import now, read_history, read_result, run_folder, run_state, stored_environment
from mmlib.training.stored import Record, read_stored

FILE = "ablation.json"
KS = (1, 5, 10)


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


def write_ablation(record: dict) -> None:
    """Writes the record into the ablation's folder, whole or not at all."""
    write_json(run_folder(record["run"]) / FILE, record)


def read_ablation(run: str) -> dict | None:
    """The record of an ablation; None if the run of this name is none, or has none yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_folder(run) / FILE
    return read_stored(path, Record) if path.exists() else None


def members(record: dict) -> tuple[str, ...]:
    """The runs of an ablation that ended well, the final ones last."""
    runs = [run for arm in record["arms"] for run in (*arm["tried"], *arm["runs"])]
    final = [run["run"] for arm in record["arms"] for run in arm["runs"] if run["state"] == "complete"]
    tried = [run["run"] for run in runs if run["state"] == "complete" and run["run"] not in final]
    return (*tried, *final)


def record_status(run: str, state: str, reason: str | None = None) -> None:
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
        found = summarise_seeds(ranks, ks=KS)
        keys = ("mean", "low", "high", "values")
        metrics = {n: {key: found[n][key] for key in keys} for n in (*names, "rsum", "mean_r1")}
        return {"interval": "seeds and queries", "metrics": metrics}
    standard = results[0]["protocols"]["standard"]
    values = {name: standard[name] for name in ("rsum", "mean_r1")}
    values |= {name: standard[name[:3]][name[4:]] for name in names}
    metrics = {}
    for name, value in values.items():
        one = value if isinstance(value, dict) else {"value": value, "low": None, "high": None}
        metrics[name] = {
            "mean": one["value"],
            "low": one["low"],
            "high": one["high"],
            "values": [one["value"]],
        }
    return {"interval": "queries", "metrics": metrics}
