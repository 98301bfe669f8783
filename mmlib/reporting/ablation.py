"""Tables of an ablation, from its record (`mmlib.training.ablation`)."""

from typing import Any

import pandas as pd

from mmlib.reporting.scope import DIRECTIONS, percent, recall_text, scope
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.reporting.tables import SMALL_RUN, Table
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates

INTERVALS = {
    "queries": "rows of one seed: 95 % interval over queries alone, which says nothing of other seeds",
    "seeds and queries": "rows of several seeds: mean over the seeds, 95 % interval over seeds and queries"
    " together, for what other seeds and other test images would give",
}


def plan_table(planned: list[PlannedRun]) -> Table:
    """What an ablation will train: a row for each arm."""
    rows, most = [], 0
    for number, (name, arm) in enumerate(arms_of(planned).items()):
        tried, seeds = candidates(arm), list(dict.fromkeys(run.config.seed for run in arm))
        runs = len(tried) + len(seeds) - 1
        most += runs
        rows.append(
            {
                "arm": name,
                "what differs": _parameters(arm[0].differs) or ("nothing (base line)" if not number else ""),
                "tuned on validation": "; ".join(_parameters(run.tuned) for run in tried if run.tuned) or "–",
                "seeds": ", ".join(map(str, seeds)),
                "runs": runs,
            }
        )
    small = f" {SMALL_RUN}" if planned[0].config.dataset == "shapes" else ""
    return Table(
        pd.DataFrame(rows), f"{most} training runs; what is tuned is tried with the first seed.{small}"
    )


def ablation_table(record: dict) -> Table:
    """The final runs of each arm: recalls with intervals, cost, pretraining; and what failed."""
    rows = []
    for number, arm in enumerate(record["arms"]):
        complete = [run for run in arm["runs"] if run["state"] == "complete"]
        for place, direction in enumerate(DIRECTIONS if complete else ()):
            row = _recalls(arm["metrics"], direction) | {"n": _n(record["scope"], direction)}
            row["direction"] = DIRECTION_NAMES[direction]
            rows.append(row | (_arm_columns(arm, complete, number) if not place else {}))
        failed = [run for run in arm["runs"] if run["state"] != "complete"]
        rows += [
            {"arm": arm["name"], "seeds": f"{r['seed']}", "direction": f"failed: {r['reason']}"}
            for r in failed
        ]
        if not arm["runs"]:
            rows.append(
                {"arm": arm["name"], "direction": "failed: it diverged with every value that was tried"}
            )
    columns = [*_COLUMNS, *(["tuned"] if any(arm["tried"] for arm in record["arms"]) else [])]
    frame = pd.DataFrame(rows, columns=[c for c in _ORDER if c in columns]).fillna("")
    return Table(frame, _caption(record))


_ORDER = (
    "arm", "what differs", "tuned", "seeds", "direction", "n", "R@1", "R@5", "R@10", "median rank", "rsum",
    "trained weights", "pretraining", "training, s",
)  # fmt: skip
_COLUMNS = tuple(name for name in _ORDER if name != "tuned")


def tuning_table(record: dict) -> Table | str:
    """What was tried on the validation split, and what was chosen; a sentence if nothing was tuned."""
    by = record["select_by"]
    rows = []
    for arm in record["arms"]:
        for run in arm["tried"]:
            value = (
                f"{percent(run['validation'])} %"
                if run["state"] == "complete"
                else f"failed: {run['reason']}"
            )
            rows.append(
                {
                    "arm": arm["name"],
                    "tried": _parameters(run["tuned"]),
                    f"validation {by}": value,
                    "best epoch": run["epoch"] or "",
                    "chosen": _chosen(run, arm["tried"]),
                }
            )
    if not rows:
        return "nothing was tuned"
    return Table(
        pd.DataFrame(rows),
        f"Validation split, seed {record['seeds'][0]} alone, best epoch of each run; the highest {by} is"
        " chosen, the earlier of equals, and used for all seeds. No other run of this table is evaluated.",
    )


def ablation_scope(record: dict) -> str:
    """Data set, split, protocol and n of the final runs."""
    where = record["scope"]
    if where is None:
        return "no run was completed"
    numbers = {"protocol": where["protocol"], "i2t": {"n": where["images"]}, "t2i": {"n": where["captions"]}}
    return scope(where["data"], where["split"], numbers)


def _parameters(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _recalls(metrics: dict, direction: str) -> dict:
    def text(name: str) -> str:
        metric = metrics[name]
        return recall_text({"value": metric["mean"], "low": metric["low"], "high": metric["high"]})

    return {f"R@{k}": text(f"{direction}_r{k}") for k in (1, 5, 10)} | {
        "median rank": f"{metrics[f'{direction}_median_rank']['mean']:g}"
    }


def _n(where: dict, direction: str) -> str:
    return f"{where['images' if direction == 'i2t' else 'captions']:,}"


def _arm_columns(arm: dict, complete: list[dict], number: int) -> dict:
    """What is said once of an arm, beside the first of its directions."""
    rsum = arm["metrics"]["rsum"]
    between = "" if rsum["low"] is None else f" ({percent(rsum['low'])}–{percent(rsum['high'])})"
    seconds = sum(run["seconds"] for run in complete) / len(complete)
    return {
        "arm": arm["name"],
        "what differs": _parameters(arm["differs"]) or ("base line" if not number else ""),
        "tuned": _parameters(arm["tuned"]),
        "seeds": ", ".join(str(run["seed"]) for run in complete),
        "rsum": percent(rsum["mean"]) + between,
        "trained weights": f"{complete[0]['trainable_weights']:,}",
        "pretraining": arm["pretraining"],
        "training, s": f"{seconds:,.0f}",
    }


def _caption(record: dict) -> str:
    kinds = {arm["interval"] for arm in record["arms"]}
    chance = record["chance"].get("i2t_r1")
    parts = [
        ablation_scope(record),
        f"best checkpoint of each run by {record['select_by']} on validation",
        *([f"chance R@1 {percent(chance)} %"] if chance else []),
        *(text for kind, text in INTERVALS.items() if kind in kinds),
        "training: seconds of one run, validation included",
    ]
    return " · ".join(parts)


def _chosen(run: dict, tried: list[dict]) -> str:
    """A tick, with a warning where the best value lies at the edge of those that were tried."""
    if not run["chosen"]:
        return ""
    edges = []
    for name, value in run["tuned"].items():
        values = {other["tuned"][name] for other in tried}
        if len(values) > 2 and all(isinstance(v, int | float) for v in values):
            edges += [
                f"{word} {name}"
                for word, edge in (("lowest", min(values)), ("highest", max(values)))
                if value == edge
            ]
    return "✓" + (f" (the {' and '.join(edges)} tried: a better one may lie beyond)" if edges else "")
