"""An ablation's plan, table, checks, verdicts and figure."""

import html
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.compare import held_out_fingerprint, measured_on, p_in_words, why_not_comparable
from mmlib.reporting.scope import SPLIT_NAMES, percent, recall_text, scope
from mmlib.reporting.style import (
    DIRECTION_NAMES,
    DIRECTIONS,
    INK,
    SHADE,
    SOFT,
    dot_handles,
    draw_dot,
    new_figure,
    styled,
)
from mmlib.reporting.tables import SMALL_RUN, Table
from mmlib.training.ablation import members
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates
from mmlib.training.runs import read_result, run_folder, run_state, stored_environment
from mmlib.training.stored import DECIDES

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
        runs = max(len(tried), 1) + len(seeds) - 1
        most += runs
        rows.append(
            {
                "arm": name,
                "what differs": _parameters(arm[0].differs) or ("nothing (base line)" if not number else ""),
                "tuned on validation": "; ".join(_parameters(run.tuned) for run in tried) or "–",
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
    low, high = rsum["low"], rsum["high"]
    between = "" if None in (low, high) else f" ({percent(low)}–{percent(high)})"
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
        values = {other["tuned"].get(name) for other in tried}
        if len(values) > 2 and all(isinstance(v, int | float) for v in values):
            edges += [
                f"{word} {name}"
                for word, edge in (("lowest", min(values)), ("highest", max(values)))
                if value == edge
            ]
    return "✓" + (f" (the {' and '.join(edges)} tried: a better one may lie beyond)" if edges else "")


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


_WORDS = {
    "supported": "Supported: “{claim}”",
    "contradicted": "Contradicted: “{claim}”; the opposite was found",
    "no evidence": "No evidence that “{claim}”",
    "not judged": "Not judged: “{claim}”",
}


@dataclass(frozen=True)
class Verdicts:
    """One sentence for each claim, and how they were reached."""

    sentences: tuple[str, ...]
    note: str = ""

    def __repr__(self) -> str:
        return "\n".join([*self.sentences, *([self.note] if self.note else [])])

    def _repr_html_(self) -> str:
        items = "".join(f"<li><strong>{html.escape(sentence)}</strong></li>" for sentence in self.sentences)
        return f"<ul>{items}</ul><p><small>{html.escape(self.note)}</small></p>"


def ablation_verdicts(record: dict) -> Verdicts:
    """One sentence for each claim, with the numbers that it rests on.

    Args:
        record: of `mmlib.training.ablation`; its claims are judged by `mmlib.training.ablation`.
    """
    claims = record["claims"]
    judged = [claim for claim in claims if claim["verdict"] != "not judged"]
    if not claims:
        return Verdicts(("No claim was put to the test.",))
    sentences = tuple(
        _sentence(claim, record) if claim in judged else _why_not_judged(claim, record) for claim in claims
    )
    return Verdicts(sentences, _how(judged) if judged else "")


def _how(judged: list[dict]) -> str:
    holm = f", corrected over the {len(judged)} claims (Holm)" if len(judged) > 1 else ""
    several = ", over seeds and queries together" if any(len(c["seeds"]) > 1 for c in judged) else ""
    return (
        "A claim is supported only if two things agree: the 95 % interval of the difference lies above"
        f" zero{several}, and a permutation test by image gives p < 0.05{holm}. What decides is the mean of"
        " both directions' R@1. No evidence is no proof of the contrary: the interval says how large a"
        " difference there may still be."
    )


def _sentence(claim: dict, record: dict) -> str:
    number, where = claim["metrics"][DECIDES], record["scope"]
    directions = "; ".join(
        f"{DIRECTION_NAMES[d]} {percent(both['b'])} against {percent(both['a'])}"
        for d in DIRECTIONS
        for both in (claim["metrics"][f"{d}_r1"],)
    )
    low, high = _points(number["low"]), _points(number["high"])
    holm = f", Holm over {claim['judged']} claims" if claim["judged"] > 1 else ""
    return (
        f"{_WORDS[claim['verdict']].format(**claim)}: {claim['arm']} {percent(number['b'])} % against"
        f" {claim['over']} {percent(number['a'])} % (mean R@1; {directions}; {_seeds(claim, record)},"
        f" n = {where['images']:,} images and {where['captions']:,} captions of the"
        f" {SPLIT_NAMES[where['split']]} split). Difference {_points(number['difference'])} points,"
        f" 95 % {low} to {high} over {claim['interval']}; {p_in_words(claim['p_holm'])}{holm}."
    )


def _seeds(claim: dict, record: dict) -> str:
    count, asked = len(claim["seeds"]), len(record["seeds"])
    if count == 1 and asked == 1:
        return "1 seed, which says nothing of others"
    return f"{count} seeds" if count == asked else f"{count} of {asked} seeds, the others failed"


def _why_not_judged(claim: dict, record: dict) -> str:
    arms = {arm["name"]: arm for arm in record["arms"]}
    reasons = []
    for name in (claim["arm"], claim["over"]):
        failed = [run for run in arms[name]["runs"] or arms[name]["tried"] if run["state"] != "complete"]
        reasons += [f"{run['run']}: {run['reason']}" for run in failed]
    return f"{_WORDS['not judged'].format(**claim)}: no seed with both arms complete. {'; '.join(reasons)}"


def _points(fraction: float) -> str:
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"


_OFFSET = {"i2t": -0.22, "t2i": 0.22}  # of the two directions around a row's middle, in rows
_SEED = {
    "linestyle": "none",
    "markersize": 3,
    "alpha": 0.6,
    "markeredgewidth": 0.8,
    "markerfacecolor": "none",
}


@styled
def ablation_figure(record: dict) -> Figure:
    """R@1 and R@10 of every arm, both directions, with 95 % intervals; seeds as small marks.

    Args:
        record: of `mmlib.training.ablation`.
    """
    arms = record["arms"]
    kinds = [kind for kind in dict.fromkeys(arm["interval"] for arm in arms) if kind]
    figure = new_figure(
        "What the arms bring",
        f"{ablation_scope(record)} · 95 % intervals over {' or '.join(kinds) or 'nothing'}",
        f"Forest plot of recall at 1 and at 10 for the arms {', '.join(arm['name'] for arm in arms)}, both"
        " directions, each with its interval and its single seeds, and the chance level.",
        height=0.75 + 0.62 * len(arms),
        legend=_handles(several=any(len(arm["runs"]) > 1 for arm in arms)),
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, k in zip(panels, (1, 10)):
        axes.axhspan(-0.5, 0.5, color=SHADE, linewidth=0, zorder=0)  # the base line
        for direction in DIRECTIONS:
            _column(axes, arms, f"{direction}_r{k}", direction)
            if chance := record["chance"].get(f"{direction}_r{k}"):
                axes.axvline(100 * chance, color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xlabel(f"R@{k} (%)")
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms], color=INK)
    return figure


@styled
def ablation_thumbnail(record: dict) -> Figure:
    """R@1 of every arm, small, for the index over all experiments."""
    arms = record["arms"]
    figure = Figure(figsize=(2.9, max(1.45, 0.3 * len(arms))), layout="constrained")
    figure.set_label(
        f"Small forest plot of recall at 1 for the arms {', '.join(arm['name'] for arm in arms)}, image to"
        " text as circles and text to image as squares."
    )
    axes = figure.add_subplot()
    for direction in DIRECTIONS:
        _column(axes, arms, f"{direction}_r1", direction, named=False)
    axes.set_xlim(left=0)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms], color=INK)
    axes.set_xlabel("R@1 (%)", fontsize=7.5)
    axes.tick_params(labelsize=7)
    return figure


def _column(axes: Axes, arms: list[dict], metric: str, direction: str, named: bool = True) -> None:
    look = DIRECTIONS[direction]
    for row, arm in enumerate(arms):
        y = row + _OFFSET[direction]
        if not arm["metrics"]:
            if named and direction == "i2t":
                axes.annotate(
                    "failed", (0, row), xytext=(4, 0), textcoords="offset points", va="center", color=SOFT
                )
            continue
        found = arm["metrics"][metric]
        draw_dot(axes, found["low"], found["mean"], found["high"], y, direction, named)
        if len(found["values"]) > 1:
            seeds = [100 * value for value in found["values"]]
            axes.plot(seeds, [y + 0.13] * len(seeds), marker=look["marker"], color=look["color"], **_SEED)


def _handles(several: bool) -> list[Line2D]:
    return [
        *dot_handles(),
        *([Line2D([], [], marker="o", color=SOFT, **_SEED, label="single seeds")] if several else []),
        Line2D([], [], color=SOFT, linestyle=":", label="chance"),
    ]
