"""Ablations: each run trained once, each final one evaluated once, the claims judged on their ranks.

Each run is an ordinary run folder: an ablation that was stopped goes on with the run where it stopped.
What it found is in one file, `runs/<run>/ablation.json`; reports are made from it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mmlib.config import AblationConfig, EvaluateConfig, ParameterError, build, differences
from mmlib.data import Dataset
from mmlib.metrics import RetrievalRanks, summarise, summarise_seeds
from mmlib.metrics.compare import ALPHA, check_comparable, compare_seeds, holm, measured_on
from mmlib.metrics.summary import DIRECTIONS
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates, plan_grid
from mmlib.training.card import best_row, collapse_in
from mmlib.training.runs import (
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

FILE = "ablation.json"
CHECKPOINT = "best"  # of each final run, which is evaluated
KS = (1, 5, 10)


def run_grid(config: AblationConfig, log: Log = print) -> dict:
    """Trains what an ablation is missing, evaluates its final runs, and judges its claims.

    Called again it goes on where it was stopped, and only shows what is complete.  A run that diverges or
    collapses is a result: it is kept with its reason, not tried again, and no claim rests on it.

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
    with open_run(config.run, config.overwrite) as folder:
        for run in planned if config.overwrite else ():
            if run_folder(run.name).exists():
                with open_run(run.name, overwrite=True):
                    pass
        folder.write_status("running")
        try:
            _work_through(config, arms_of(planned), log)
            record = ablation_record(config, planned, _joined(config, arms_of(planned)))
            folder.write_json(FILE, record)
        except BaseException as error:
            state, reason = "failed", f"{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt):
                state, reason = "interrupted", "stopped on request; the same call goes on"
            with contextlib.suppress(OSError, RuntimeError):  # what went wrong first is what counts
                folder.write_status(state, reason)
            raise
        folder.write_status("complete")
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


def _work_through(config: AblationConfig, arms: dict[str, list[PlannedRun]], log: Log) -> None:
    from mmlib.training.evaluation import evaluate
    from mmlib.training.start import train

    total = sum(len(candidates(arm)) + len(config.seeds) for arm in arms.values())
    for number, (run, final) in enumerate(_due(arms), 1):
        if outcome(run) is None:
            with contextlib.suppress(FloatingPointError):  # its status.json says so
                train(run.config, lambda line: None, if_complete="show")
        end = outcome(run)
        if final and end["state"] == "complete" and not is_evaluated(run, config.split):
            wanted = {"split": config.split, "checkpoint": CHECKPOINT, "device": config.device}
            evaluate(build(EvaluateConfig, {"runs": [run.name], "data_root": config.data_root, **wanted}))
        log(f"{number}/{total}  {run.name}: {_line(run, end, final)}")


def _joined(
    config: AblationConfig, arms: dict[str, list[PlannedRun]]
) -> dict[str, dict[int, RetrievalRanks]]:
    """The ranks of each ensemble by seed, of those seeds with which all of its arms ended well."""
    from mmlib.training.evaluation import joined_ranks

    ranks: dict[str, dict[int, RetrievalRanks]] = {}
    datasets: dict[str, Dataset] = {}
    for name, joined in config.ensembles.items():
        ranks[name] = {}
        for seed in config.seeds:
            of_seed = [run for arm in joined for run in final_runs(arms[arm]) if run.config.seed == seed]
            if [outcome(run)["state"] for run in of_seed] == ["complete"] * len(joined):
                wanted = {"split": config.split, "checkpoint": CHECKPOINT, "device": config.device}
                wanted |= {"runs": [run.name for run in of_seed], "data_root": config.data_root}
                ranks[name][seed] = joined_ranks(build(EvaluateConfig, wanted), datasets)
    return ranks


def _due(arms: dict[str, list[PlannedRun]]) -> Iterator[tuple[PlannedRun, bool]]:
    """Each run, and whether it is a final one, which is evaluated too.

    The final runs of a tuned arm are asked for when its candidates have ended.
    """
    for arm in arms.values():
        yield from ((run, False) for run in candidates(arm))
        yield from ((run, True) for run in final_runs(arm))


def _line(run: PlannedRun, end: dict, final: bool) -> str:
    if end["state"] != "complete":
        return f"{end['state']}, {end['reason']}"
    by = "rsum" if run.config.select_by == "last" else run.config.select_by
    line = f"validation {by} {100 * end['validation']:.1f} % at epoch {end['epoch']}, {end['seconds']:.0f} s"
    if not final:
        return line
    result = read_result(run.name)
    i2t, t2i = (100 * result["protocols"]["standard"][d]["r1"]["value"] for d in DIRECTIONS)
    return f"{line} · {result['split']} R@1 {i2t:.2f} % i2t {t2i:.2f} % t2i"


def outcome(run: PlannedRun) -> dict | None:
    """How a run ended, as the record has it; None while something is left to train.

    A run whose loss or weights were no longer finite (`failed`), or whose embeddings lay at one point in
    its last two epochs (`collapsed`), has ended too: that is a result like any other.

    Raises:
        FileNotFoundError, ValueError: a file of the run is missing or damaged.
    """
    state, reason = run_state(run.name)
    diverged = state == "failed" and (reason or "").startswith(FloatingPointError.__name__)
    if not (state == "complete" or diverged):
        return None
    by, history = run.config.select_by, read_history(run.name)
    if not diverged and len(history) > 1 and all(map(collapse_in, history[-2:])):
        state, reason = "collapsed", collapse_in(history[-1])
    best = best_row(history, by) if state == "complete" else None
    return {
        "run": run.name,
        "seed": run.config.seed,
        "state": state,
        "reason": reason,
        "epoch": best and best["epoch"],
        "validation": best and best["val"]["rsum" if by == "last" else by],
        "trainable_weights": stored_environment(run.name)["trainable_weights"],
        "seconds": round(sum(row["seconds"] for row in history), 1),
    }


def chosen_values(arm: list[PlannedRun]) -> dict[str, Any] | None:
    """The tuned values of the first seed that are best on validation, the earliest of equals.

    None if none of them ended well, no values if nothing is tuned.  Expects that all have ended.
    """
    tried = [(run, outcome(run)) for run in candidates(arm)]
    complete = [(run.tuned, end["validation"]) for run, end in tried if end["state"] == "complete"]
    best, _ = max(complete, key=lambda pair: pair[1], default=(None, 0))
    return best if tried else {}


def final_runs(arm: list[PlannedRun]) -> list[PlannedRun]:
    """One run for each seed, with the chosen values; none where nothing was chosen."""
    chosen = chosen_values(arm)
    return [run for run in arm if run.tuned == chosen]


def is_evaluated(run: PlannedRun, split: str) -> bool:
    """Whether the run's `results.json` is of this split and its best weights."""
    try:
        result = read_result(run.name)
    except (OSError, ValueError):
        return False
    found = [result["split"], result["checkpoint"], result.get("wise_ft", 1.0), result["epoch"]]
    return found == [split, CHECKPOINT, 1.0, outcome(run)["epoch"]]


def ablation_record(
    config: AblationConfig, planned: list[PlannedRun], joined: dict[str, dict[int, RetrievalRanks]]
) -> dict:
    """Everything that a report says of an ablation whose runs have all ended.

    Args:
        config: the ablation.
        planned: its runs.
        joined: the ranks of its ensembles, by name and seed.

    Returns:
        `run`, `base`, `changes`, `seeds`, `select_by`; `scope` (what all final runs were measured on);
        `chance` by metric; `arms`, the base line first; `ensembles`, each with `name`, `of` (its arms),
        `seeds`, `interval` and `metrics`; and `claims`, see `judge_claims`.  An arm has
        `name`, `differs`, `tuned` (the chosen values), `tried` (runs of the first seed with their
        validation metric, if anything is tuned), `runs` (the final ones), `pretraining`,
        `interval` (what its intervals cover) and `metrics`: by name `mean`, `low`, `high` and
        `values`, one a seed.  Of one seed the intervals are those of `summarise`; of several, those
        of `summarise_seeds`.

    Raises:
        FileNotFoundError, ValueError: a run whose files are missing or damaged, or runs that were not
            measured on the same images and captions.
    """
    arms, results = [], []
    ranks: dict[str, dict[int, RetrievalRanks]] = {}
    for name, arm in arms_of(planned).items():
        chosen, final = chosen_values(arm), final_runs(arm)
        ends = [outcome(run) for run in final]
        complete = [run for run, end in zip(final, ends) if end["state"] == "complete"]
        of_arm = [read_result(run.name) for run in complete]
        ranks[name] = {r.config.seed: RetrievalRanks.load(run_folder(r.name) / "ranks.npz") for r in complete}
        tried = [outcome(r) | {"tuned": r.tuned, "chosen": r.tuned == chosen} for r in candidates(arm)]
        arms.append(
            {
                "name": name,
                "differs": arm[0].differs,
                "tuned": chosen or {},
                "tried": tried,
                "runs": ends,
                "pretraining": of_arm[0]["pretraining"] if of_arm else None,
                **_statistics(list(ranks[name].values())),
            }
        )
        results += of_arm
    check_comparable(results)
    ranks |= joined
    ensembles = [
        {"name": name, "of": of, "seeds": list(ranks[name]), **_statistics(list(ranks[name].values()))}
        for name, of in config.ensembles.items()
    ]
    chance = {}
    if results:
        standard = results[0]["protocols"]["standard"]
        chance = {f"{d}_r{k}": standard[d][f"r{k}"]["chance"] for d in DIRECTIONS for k in KS}
    return {
        "run": config.run,
        "base": config.base,
        "changes": config.changes,
        "seeds": config.seeds,
        "select_by": planned[0].config.select_by,
        "scope": measured_on(results[0]) if results else None,
        "chance": chance,
        "arms": arms,
        "ensembles": ensembles,
        "claims": judge_claims(config.claims, ranks),
    }


def read_ablation(run: str) -> dict | None:
    """The record of an ablation; None if the run of this name is none, or has none yet.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_folder(run) / FILE
    return read_stored(path, Ablation) if path.exists() else None


def ensembles_of(record: dict) -> list[dict]:
    """The ensembles of an ablation; older records do not have the field."""
    return record.get("ensembles") or []


def members(record: dict) -> tuple[str, ...]:
    """The runs of an ablation that ended well, the final ones last."""
    runs = [run for arm in record["arms"] for run in (*arm["tried"], *arm["runs"])]
    final = [run["run"] for arm in record["arms"] for run in arm["runs"] if run["state"] == "complete"]
    tried = [run["run"] for run in runs if run["state"] == "complete" and run["run"] not in final]
    return (*tried, *final)


def _statistics(ranks: list[RetrievalRanks]) -> dict[str, Any]:
    if len(ranks) > 1:
        return {"interval": "seeds and queries", "metrics": summarise_seeds(ranks)}
    metrics = {}
    for standard in map(summarise, ranks):
        values = {name: standard[name] for name in ("rsum", "mean_r1")}
        names = ("r1", "r5", "r10", "median_rank")
        values |= {f"{d}_{name}": standard[d][name] for d in DIRECTIONS for name in names}
        for name, value in values.items():
            one = value if isinstance(value, dict) else {"value": value, "low": None, "high": None}
            ends = {end: one[end] for end in ("low", "high")}
            metrics[name] = {"mean": one["value"], **ends, "values": [one["value"]]}
    return {"interval": "queries" if ranks else None, "metrics": metrics}


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
            sides = [over[seed] for seed in seeds], [arm[seed] for seed in seeds]
            found = compare_seeds(*sides, resamples=resamples)
        judged.append({**claim, **found, "seeds": seeds, "verdict": "not judged"})
    compared = [claim for claim in judged if claim["seeds"]]
    for claim, p in zip(compared, holm([claim["metrics"][DECIDES]["p"] for claim in compared])):
        difference = claim["metrics"][DECIDES]
        claim |= {"p_holm": float(p), "judged": len(compared), "verdict": "no evidence"}
        if p < ALPHA and difference["low"] > 0:
            claim["verdict"] = "supported"
        elif p < ALPHA and difference["high"] < 0:
            claim["verdict"] = "contradicted"
    return judged
