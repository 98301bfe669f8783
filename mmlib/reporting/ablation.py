"""An ablation's plan, table, checks, verdicts and figure."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib.config.page import value_text
from mmlib.metrics import RetrievalRanks, summarise
from mmlib.metrics.compare import held_out_fingerprint, measured_on, p_in_words, why_not_comparable
from mmlib.metrics.summary import DIRECTION_NAMES, SPLIT_NAMES, percent, recall_text, scope
from mmlib.reporting.style import DIRECTIONS, SHADE, SOFT, draw_dots, guide, legend, new_figure, styled
from mmlib.reporting.tables import Table, passed
from mmlib.training.ablation import ensembles_of, members
from mmlib.training.ablation_plan import PlannedRun, arms_of, candidates
from mmlib.training.runs import read_result, run_folder, run_state, stored_environment
from mmlib.training.stored import DECIDES

INTERVALS = {
    "queries": "rows of one seed: 95 % interval over queries alone, which says nothing of other seeds",
    "seeds and queries": "rows of several seeds: mean over the seeds, 95 % interval over seeds and queries"
    " together, for what other seeds and other test images would give",
}
COLUMNS = (
    "arm", "what differs", "tuned", "seeds", "direction", "n", "R@1", "R@5", "R@10", "median rank", "rsum",
    "trained weights", "pretraining", "training, s",
)  # fmt: skip


def plan_table(planned: list[PlannedRun]) -> Table:
    """What an ablation will train: a row for each arm."""
    rows = []
    for number, (name, arm) in enumerate(arms_of(planned).items()):
        tried, seeds = candidates(arm), {run.config.seed: None for run in arm}
        rows.append(
            {
                "arm": name,
                "what differs": _parameters(arm[0].differs) or ("" if number else "nothing (base line)"),
                "tuned on validation": "; ".join(_parameters(run.tuned) for run in tried) or "–",
                "seeds": ", ".join(map(str, seeds)),
                "runs": max(len(tried), 1) + len(seeds) - 1,
            }
        )
    frame = pd.DataFrame(rows)
    return Table(frame, f"{frame['runs'].sum()} training runs; what is tuned is tried with the first seed.")


def ablation_table(record: dict) -> Table:
    """The final runs of each arm: recalls with intervals, cost, pretraining; and what failed."""
    rows = []
    for number, arm in enumerate(record["arms"]):
        complete = [run for run in arm["runs"] if run["state"] == "complete"]
        failed = [run for run in arm["runs"] if run["state"] != "complete"]
        if complete:
            of_images, of_captions = (_direction_row(arm["metrics"], record["scope"], d) for d in DIRECTIONS)
            rows += [of_images | _arm_row(arm, complete, number), of_captions]
        for run in failed:
            said = f"{run['state']}: {run['reason']}"
            rows.append({"arm": arm["name"], "seeds": f"{run['seed']}", "direction": said})
        if not arm["runs"]:
            said = "failed: it diverged or collapsed with every value that was tried"
            rows.append({"arm": arm["name"], "direction": said})
    for ensemble in ensembles_of(record):
        rows += _ensemble_rows(ensemble, record["scope"])
    tuned = any(arm["tried"] for arm in record["arms"])
    columns = [name for name in COLUMNS if tuned or name != "tuned"]
    frame = pd.DataFrame(rows, columns=columns, dtype=object).fillna("")
    kinds, by = {arm["interval"] for arm in record["arms"]}, record["select_by"]
    chance = record["chance"].get("i2t_r1")
    parts = [
        ablation_scope(record),
        "last epoch of each run" if by == "last" else f"best checkpoint of each run by {by} on validation",
        *([f"chance R@1 {percent(chance)} %"] if chance else []),
        *(text for kind, text in INTERVALS.items() if kind in kinds),
        "training: seconds of one run, validation included",
    ]
    return Table(frame, " · ".join(parts))


def best_arm(record: dict) -> dict[str, str] | None:
    """`run`, `scope` and R@1 by direction of the arm or ensemble with the highest mean R@1, None if none."""
    measured = [arm for arm in (*record["arms"], *ensembles_of(record)) if arm["metrics"]]
    if not measured:
        return None
    best = max(measured, key=lambda arm: arm["metrics"][DECIDES]["mean"])
    rows = {d: _direction_row(best["metrics"], record["scope"], d)["R@1"] for d in DIRECTIONS}
    return {"run": best["name"], "scope": ablation_scope(record)} | rows


def _ensemble_rows(ensemble: dict, where: dict | None) -> list[dict]:
    said = {
        "arm": ensemble["name"],
        "what differs": f"the embeddings of {' and '.join(ensemble['of'])}, joined",
    }
    if not ensemble["metrics"]:
        return [said | {"direction": "failed: with no seed have all of its arms ended well"}]
    of_images, of_captions = (_direction_row(ensemble["metrics"], where, d) for d in DIRECTIONS)
    seeds = ", ".join(map(str, ensemble["seeds"]))
    return [said | {"seeds": seeds, "rsum": _rsum_text(ensemble["metrics"])} | of_images, of_captions]


def _rsum_text(metrics: dict) -> str:
    low, high = metrics["rsum"]["low"], metrics["rsum"]["high"]
    between = "" if None in (low, high) else f" ({percent(low)}–{percent(high)})"
    return percent(metrics["rsum"]["mean"]) + between


def _direction_row(metrics: dict, where: dict, direction: str) -> dict:
    recalls = {k: metrics[f"{direction}_r{k}"] for k in (1, 5, 10)}
    return {
        "direction": DIRECTION_NAMES[direction],
        "n": f"{where['images' if direction == 'i2t' else 'captions']:,}",
        **{f"R@{k}": recall_text(metric | {"value": metric["mean"]}) for k, metric in recalls.items()},
        "median rank": f"{metrics[f'{direction}_median_rank']['mean']:g}",
    }


def _arm_row(arm: dict, complete: list[dict], number: int) -> dict:
    """What is said once of an arm, beside the first of its directions."""
    seconds = sum(run["seconds"] for run in complete) / len(complete)
    return {
        "arm": arm["name"],
        "what differs": _parameters(arm["differs"]) or ("" if number else "base line"),
        "tuned": _parameters(arm["tuned"]),
        "seeds": ", ".join(str(run["seed"]) for run in complete),
        "rsum": _rsum_text(arm["metrics"]),
        "trained weights": f"{complete[0]['trainable_weights']:,}",
        "pretraining": arm["pretraining"],
        "training, s": f"{seconds:,.0f}",
    }


def tuning_table(record: dict) -> Table:
    """What was tried on the validation split, and what was chosen; a sentence if nothing was tuned."""
    is_last = record["select_by"] == "last"
    by, epoch = ("rsum", "last epoch") if is_last else (record["select_by"], "best epoch")
    rows = []
    for arm in record["arms"]:
        for run in arm["tried"]:
            complete = run["state"] == "complete"
            found = f"{percent(run['validation'])} %" if complete else f"{run['state']}: {run['reason']}"
            rows.append(
                {
                    "arm": arm["name"],
                    "tried": _parameters(run["tuned"]),
                    f"validation {by}": found,
                    epoch: run["epoch"] or "",
                    "chosen": _chosen(run, arm["tried"]),
                }
            )
    if not rows:
        return Table(sentences=("Nothing was tuned: all values were fixed before.",))
    return Table(
        pd.DataFrame(rows),
        f"Validation split, seed {record['seeds'][0]} alone, {epoch} of each run; the highest {by} is"
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
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items())


def _chosen(run: dict, tried: list[dict]) -> str:
    """A tick, with a warning where the best value lies at the edge of those that were tried."""
    if not run["chosen"]:
        return ""
    edges = []
    for name, value in run["tuned"].items():
        values = {other["tuned"].get(name) for other in tried}
        if len(values) > 2 and all(isinstance(v, int | float) for v in values):
            ends = {min(values): "lowest", max(values): "highest"}
            edges += [f"{ends[value]} {name}"] if value in ends else []
    return "✓" + (f" (the {' and '.join(edges)} tried: a better one may lie beyond)" if edges else "")


def ablation_checks(record: dict) -> Table:
    """Compares the run folders of an ablation with what was planned.

    Returns:
        One row per check; the caption names the runs that diverged.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    arms, where = record["arms"], record["scope"] or {}
    runs = [run for arm in arms for run in (*arm["tried"], *arm["runs"])]
    final = [run["run"] for arm in arms for run in arm["runs"] if run["state"] == "complete"]
    results = {run: read_result(run) for run in final}
    planned = {key: where.get(key) for key in ("data", "fingerprint")}
    other_data, other_queries, other_ranks = set(), set(), []
    for run in members(record):
        data = stored_environment(run)["data"]
        found = {"data": data["name"], "fingerprint": held_out_fingerprint(data)}
        other_data.update(why_not_comparable(planned, found))
    for run, result in results.items():
        other_queries.update(why_not_comparable(where, measured_on(result)))
        ranks = RetrievalRanks.load(run_folder(run) / "ranks.npz")
        other_ranks += [] if summarise(ranks) == result["protocols"]["standard"] else [run]
    saw_test = {run["run"] for run in runs if run["run"] not in final and _saw_test(run["run"])}
    # An arm of which all tried values diverged has no final run.
    gone = [arm for arm in arms if arm["tried"] and all(run["state"] != "complete" for run in arm["tried"])]
    seeds = {arm["name"]: [] if arm in gone else record["seeds"] for arm in arms}
    # The folder of a run that collapsed says that its training went to the end.
    states = {run["run"]: run["state"].replace("collapsed", "complete") for run in runs}
    checks = [
        ("every planned run has ended", states, {run: run_state(run)[0] for run in states}),
        (
            "each arm has a final run for every seed",
            seeds,
            {a["name"]: [r["seed"] for r in a["runs"]] for a in arms},
        ),
        ("all runs have the same data", [], sorted(other_data)),
        ("all final runs have the split and its queries", [], sorted(other_queries)),
        ("the results are those of the kept ranks", [], other_ranks),
        ("no other run was evaluated on test", [], sorted(saw_test)),
    ]
    gone_wrong = {run["run"]: run["state"] for run in runs if run["state"] != "complete"}
    words = {"failed": "Diverged", "collapsed": "Collapsed"}
    caption = " ".join(
        f"{word}: {', '.join(run for run, found in gone_wrong.items() if found == state)}."
        for state, word in words.items()
        if state in gone_wrong.values()
    )
    return passed([(record["run"], *check) for check in checks], caption)


def _saw_test(run: str) -> bool:
    return (run_folder(run) / "results.json").exists() and read_result(run)["split"] == "test"


_WORDS = {
    "supported": "Supported: “{claim}”",
    "contradicted": "Contradicted: “{claim}”; the opposite was found",
    "no evidence": "No evidence that “{claim}”",
    "not judged": "Not judged: “{claim}”",
}


def ablation_verdicts(record: dict) -> Table:
    """One sentence for each claim, with the numbers that it rests on; the caption says how it was judged.

    Args:
        record: of `mmlib.training.ablation`; its claims are judged by `mmlib.training.ablation`.
    """
    judged = [claim for claim in record["claims"] if claim["verdict"] != "not judged"]
    sentences = [(_sentence if claim in judged else _not_judged)(claim, record) for claim in record["claims"]]
    holm = f", corrected over the {len(judged)} claims (Holm)" if len(judged) > 1 else ""
    several = ", over seeds and queries together" if any(len(c["seeds"]) > 1 for c in judged) else ""
    how = (
        "A claim is supported only if two things agree: the 95 % interval of the difference lies above"
        f" zero{several}, and a permutation test by image gives p < 0.05{holm}. What decides is the mean of"
        " both directions' R@1. No evidence is no proof of the contrary: the interval says how large a"
        " difference there may still be."
    )
    found = tuple(sentences) or ("No claim was put to the test.",)
    return Table(caption=how if judged else "", sentences=found)


def _sentence(claim: dict, record: dict) -> str:
    metrics, where, count = claim["metrics"], record["scope"], len(claim["seeds"])
    number = metrics[DECIDES]
    directions = "; ".join(
        f"{DIRECTION_NAMES[d]} {percent(metrics[f'{d}_r1']['b'])} against {percent(metrics[f'{d}_r1']['a'])}"
        for d in DIRECTIONS
    )
    # Adding zero turns a rounded -0.0 into 0.0.
    points, low, high = (f"{round(100 * number[n], 2) + 0.0:+.2f}" for n in ("difference", "low", "high"))
    holm = f", Holm over {claim['judged']} claims" if claim["judged"] > 1 else ""
    seeds = f"{count} seeds" if count > 1 else "1 seed, which says nothing of others"
    if count < len(record["seeds"]):
        seeds = f"{count} of {len(record['seeds'])} seeds, the others failed"
    return (
        f"{_WORDS[claim['verdict']].format(**claim)}: {claim['arm']} {percent(number['b'])} % against"
        f" {claim['over']} {percent(number['a'])} % (mean R@1; {directions}; {seeds},"
        f" n = {where['images']:,} images and {where['captions']:,} captions of the"
        f" {SPLIT_NAMES[where['split']]} split). Difference {points} points,"
        f" 95 % {low} to {high} over {claim['interval']}; {p_in_words(claim['p_holm'])}{holm}."
    )


def _not_judged(claim: dict, record: dict) -> str:
    arms = {arm["name"]: arm for arm in record["arms"]}
    asked = [claim["arm"], claim["over"]]
    parts = {ensemble["name"]: ensemble["of"] for ensemble in ensembles_of(record)}
    reasons = []
    for name in dict.fromkeys(part for each in asked for part in parts.get(each, [each])):
        failed = [run for run in arms[name]["runs"] or arms[name]["tried"] if run["state"] != "complete"]
        reasons += [f"{run['run']}: {run['reason']}" for run in failed]
    return f"{_WORDS['not judged'].format(**claim)}: no seed with both arms complete. {'; '.join(reasons)}"


_SEED = {"linestyle": "none", "markersize": 3, "alpha": 0.6, "markeredgewidth": 0.8, "mfc": "none"}


@styled
def ablation_figure(record: dict) -> Figure:
    """R@1 and R@10 of every arm, both directions, with 95 % intervals; seeds as small marks.

    Args:
        record: of `mmlib.training.ablation`.
    """
    arms = [*record["arms"], *ensembles_of(record)]
    kinds = [kind for kind in dict.fromkeys(arm["interval"] for arm in arms) if kind]
    several = "seeds and queries" in kinds
    seeds = [Line2D([], [], marker="o", color=SOFT, **_SEED, label="single seeds")] if several else []
    figure = new_figure(
        "What the arms bring",
        f"{ablation_scope(record)} · 95 % intervals over {' or '.join(kinds) or 'nothing'}",
        f"Forest plot of recall at 1 and at 10 for the arms {', '.join(arm['name'] for arm in arms)}, both"
        " directions, each with its interval and its single seeds, and the chance level.",
        height=0.75 + 0.62 * len(arms),
        legend=[*legend(), *seeds],
    )
    for axes, k in zip(figure.subplots(1, 2, sharey=True), (1, 10)):
        axes.axhspan(-0.5, 0.5, color=SHADE, linewidth=0, zorder=0)  # the base line
        _draw_arms(axes, arms, k)
        for direction in DIRECTIONS:
            if chance := record["chance"].get(f"{direction}_r{k}"):
                guide(axes, 100 * chance, vertical=True)
        axes.margins(x=0.08)
    return figure


def _draw_arms(axes: Axes, arms: list[dict], k: int) -> None:
    found = {d: [arm["metrics"].get(f"{d}_r{k}") for arm in arms] for d in DIRECTIONS}
    recalls = {d: [m and m | {"value": m["mean"]} for m in metrics] for d, metrics in found.items()}
    draw_dots(axes, [arm["name"] for arm in arms], recalls, offset=0.22)
    for direction, shift in (("i2t", -0.09), ("t2i", 0.35)):
        for row, metric in enumerate(found[direction]):
            values = metric["values"] if metric else []
            if len(values) > 1:
                look = {n: DIRECTIONS[direction][n] for n in ("color", "marker")}
                axes.plot([100 * value for value in values], [row + shift] * len(values), **look, **_SEED)
    for row, arm in enumerate(arms):
        if not arm["metrics"]:
            axes.annotate(
                "failed", (0, row), xytext=(4, 0), textcoords="offset points", va="center", color=SOFT
            )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"R@{k} (%)")
