"""The checks that end an ablation's notebook: what must be true for its arms to be compared."""

import pandas as pd

from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.compare import held_out_fingerprint, measured_on, why_not_comparable
from mmlib.reporting.tables import Table
from mmlib.training.ablation import members
from mmlib.training.runs import read_result, run_folder, run_state, stored_environment


def ablation_checks(record: dict) -> Table:
    """Compares the run folders of an ablation with what was planned.

    Returns:
        One row per check.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    arms, where = record["arms"], record["scope"] or {}
    runs = [run for arm in arms for run in (*arm["tried"], *arm["runs"])]
    final = [run["run"] for arm in arms for run in arm["runs"] if run["state"] == "complete"]
    others = {run["run"] for run in runs} - set(final)
    results = {run: read_result(run) for run in final}
    data = {key: where.get(key) for key in ("data", "fingerprint")}
    other_data = [reason for run in members(record) for reason in why_not_comparable(data, _data(run))]
    other_queries = [
        reason for result in results.values() for reason in why_not_comparable(where, measured_on(result))
    ]
    short = [arm["name"] for arm in arms if not _has_all(arm, record)]
    checks = [
        ("every planned run is complete or diverged", _states(runs), _states(runs, now=True)),
        ("each arm has a final run for every seed", [], short),
        ("all runs have the same data", [], sorted(set(other_data))),
        ("all final runs have the split and its queries", [], sorted(set(other_queries))),
        ("the results are those of the kept ranks", [], [r for r in final if not _agree(r, results[r])]),
        ("no other run was evaluated on test", [], sorted(run for run in others if _saw_test(run))),
    ]
    failed = [
        f"{what}: expected {expected}, found {found}" for what, expected, found in checks if expected != found
    ]
    if failed:
        raise ValueError(f"ablation {record['run']!r} fails its checks: {'; '.join(failed)}")
    return Table(pd.DataFrame([{"check": what, "": "✓"} for what, _, _ in checks]), _diverged(runs))


def _has_all(arm: dict, record: dict) -> bool:
    """Whether an arm was trained with every seed; one of which all tried values diverged has no final run."""
    gone = bool(arm["tried"]) and all(run["state"] != "complete" for run in arm["tried"])
    return [run["seed"] for run in arm["runs"]] == ([] if gone else record["seeds"])


def _states(runs: list[dict], now: bool = False) -> dict[str, str]:
    return {run["run"]: run_state(run["run"])[0] if now else run["state"] for run in runs}


def _data(run: str) -> dict:
    data = stored_environment(run)["data"]
    return {"data": data["name"], "fingerprint": held_out_fingerprint(data)}


def _agree(run: str, result: dict) -> bool:
    return summarise(RetrievalRanks.load(run_folder(run) / "ranks.npz")) == result["protocols"]["standard"]


def _saw_test(run: str) -> bool:
    return (run_folder(run) / "results.json").exists() and read_result(run)["split"] == "test"


def _diverged(runs: list[dict]) -> str:
    names = list(dict.fromkeys(run["run"] for run in runs if run["state"] != "complete"))
    return f"Diverged, and kept as failed: {', '.join(names)}." if names else ""
