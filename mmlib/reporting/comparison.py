"""Pages and tables that set results side by side, whatever their lineage: runs, embeddings of any model."""

import base64
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from mmlib.analysis import changed_queries
from mmlib.config import ParameterError
from mmlib.config.parameters import PLACE
from mmlib.files import printable, write_text_atomic
from mmlib.metrics import RetrievalRanks, summarise_seeds
from mmlib.metrics.compare import (
    ALPHA,
    compare_pairs,
    compare_seeds,
    holm,
    measured_on,
    verdict_in_words,
    why_not_comparable,
)
from mmlib.metrics.summary import DIRECTION_NAMES, ceilings_in_words, percent, result_rows, scope
from mmlib.reporting.curves import compared_curves
from mmlib.reporting.explorer import thumbnails
from mmlib.reporting.pages import SCRIPT, page_from
from mmlib.reporting.results import change_rows, read_evaluated, result_scope, results_table
from mmlib.reporting.style import in_both_schemes
from mmlib.reporting.tables import Table, p_text
from mmlib.training.runs import read_history, read_queries, stored_config, stored_environment

SHOWN_QUERIES = 5  # of a kind, a direction and a pair
SHOWN_PAIRS = 6  # whose queries are shown
LONGEST_LINE = 20  # of runs that continue each other, looked at for a recipe
PRIVATE = ".private.html"  # how the name of a page ends that may hold what must not be passed on


class _Compared:
    """Evaluated runs and what every pair of them shows."""

    def __init__(self, runs: Sequence[str]):
        if len(runs) < 2 or len(set(runs)) < len(runs):
            raise ParameterError(
                f"expected two or more different runs to compare, found {', '.join(runs)}; name each once"
            )
        self.runs = list(runs)
        self.results, self.ranks = read_evaluated(*runs)
        self.facts = [measured_on(result) for result in self.results]
        self.pairs = list(itertools.combinations(range(len(runs)), 2))
        self.found = compare_pairs(list(zip(self.ranks, self.facts)), self.pairs)

    def comparable(self) -> list[tuple[int, int, dict]]:
        return [(a, b, found) for (a, b), found in zip(self.pairs, self.found) if found["comparable"]]

    def refused(self) -> list[str]:
        """A sentence for each pair that cannot be compared."""
        return [
            f"{self.runs[b]} against {self.runs[a]}: {found['verdict']}"
            for (a, b), found in zip(self.pairs, self.found)
            if not found["comparable"]
        ]

    def groups(self) -> list[list[int]]:
        """The runs in lists of those that can be compared with each other."""
        groups: list[list[int]] = []
        for run in range(len(self.runs)):
            for group in groups:
                if not why_not_comparable(
                    self.facts[group[0]], self.facts[run], self.ranks[group[0]], self.ranks[run]
                ):
                    group.append(run)
                    break
            else:
                groups.append([run])
        return groups

    def table(self) -> Table:
        rows, runs_of = [], {}
        for a, b, found in self.comparable():
            metric = found["metrics"]["mean_r1"]
            change, low, high = (100 * metric[part] for part in ("difference", "low", "high"))
            # Pairs of several data sets can stand in one table: each run is named with its own.
            here = runs_of.setdefault(result_scope(self.results[a]), {})
            here.update({self.runs[a]: None, self.runs[b]: None})
            rows.append(
                {
                    "run": self.runs[b],
                    "against": self.runs[a],
                    "mean R@1": f"{100 * metric['b']:.2f} % against {100 * metric['a']:.2f} %",
                    "points (95 %)": f"{change:+.2f} ({low:+.2f} to {high:+.2f})",
                    "p, Holm": p_text(found["p_holm"]),
                    "better": "no evidence" if found["better"] is None else self.runs[found["better"]],
                }
            )
        refused = tuple(self.refused())
        if not rows:
            return Table(sentences=refused)
        corrected = f", corrected over {len(rows)} comparisons (Holm)" if len(rows) > 1 else ""
        scopes = [f"{', '.join(names)}: {scope}" for scope, names in runs_of.items()]
        caption = (
            f"{'; '.join(scopes if len(scopes) > 1 else runs_of)}. Interval: bootstrap over images, 10,000"
            f" resamples; p: permutation by image{corrected}. Better: where both agree. What another seed of"
            " a training would change is not in these intervals; an ablation has it."
        )
        return Table(pd.DataFrame(rows), caption, refused)


def comparison_table(*runs: str) -> Table:
    """Every pair of runs under the standard protocol, whatever their lineage: who is better, and by how much.

    Decided by the mean R@1 of both directions; p is corrected by Holm over all pairs that can be compared.

    Args:
        runs: names of two or more evaluated runs.

    Raises:
        ParameterError: fewer than two runs, or one twice.
        FileNotFoundError: there is no such run, or it was not evaluated.
        ValueError: its files are damaged.
    """
    return _Compared(runs).table()


def write_comparison(page: Path, *runs: str) -> Table:
    """Writes a page that compares runs, and returns the table of `comparison_table`.

    On the page: who is better on what, results, differences of every pair, runs of one recipe over their
    seeds, curves, and queries that one of two runs answers alone.  Of data that may not be passed on it holds
    no query, unless the page's name ends in `.private.html`.

    Args and errors as `comparison_table`; OSError if the page cannot be written.
    """
    compared = _Compared(runs)
    table, seeds = compared.table(), _over_seeds(compared)
    parts = []
    for group in compared.groups():
        results = [compared.results[run] for run in group]
        parts.append(("Results", [results_table(results)]))
    pairs = [
        Table(
            pd.DataFrame(change_rows(found)).rename(
                columns={"before": compared.runs[a], "after": compared.runs[b]}
            ),
            f"{compared.runs[b]} against {compared.runs[a]} · {result_scope(compared.results[a])} · p, Holm:"
            " of the mean R@1 over the pairs, of R@K over the six",
        )
        for a, b, found in compared.comparable()
    ]
    if pairs:
        parts.append(("Differences", [Table(table.frame, table.caption), *pairs]))
    if seeds:
        parts.append(("Over seeds", seeds))
    queries, private = _queries_that_differ(compared, page.name.endswith(PRIVATE))
    html = page_from(
        "compare.html.j2",
        SCRIPT,
        title=f"Comparison of {', '.join(runs[:-1])} and {runs[-1]}",
        kicker="Decided by the mean R@1 of both directions under the protocol standard.",
        private=private,
        verdicts=[_sentence(compared, a, b, found) for a, b, found in compared.comparable()],
        refused=compared.refused(),
        parts=_as_html(parts),
        figures=_curves(runs),
        queries=queries,
        shown_pairs=SHOWN_PAIRS if len(pairs) > SHOWN_PAIRS else 0,
    )
    write_text_atomic(page, html)
    return table


def write_evaluation(
    page: Path, name: str, data: str, summary: dict, comparisons: dict[str, dict], note: str = ""
) -> None:
    """Writes a page of one result, as `evaluate --images` and `--model` give it.

    Args:
        page: the file, replaced as a whole.
        name: what was evaluated.
        data: data set and split, in words.
        summary: of `evaluate_embeddings`.
        comparisons: by the name of what it is compared with, of `compare_pairs`.
        note: what a reader must know of the comparisons.

    Raises:
        OSError: it cannot be written.
    """
    where = scope(printable(data), "", summary)
    caption = f"{where} · 95 % intervals · hits/n · ties count against the model"
    rows = [{k: v for k, v in row.items() if k != "run"} for row in result_rows(name, summary)]
    parts = [("Result", [Table(pd.DataFrame(rows), " · ".join([caption, *ceilings_in_words(summary)]))])]
    shown = {printable(other): found for other, found in comparisons.items()}
    differences = [
        Table(
            pd.DataFrame(change_rows(found)).rename(columns={"before": other, "after": "this"}),
            f"against {other}",
        )
        for other, found in shown.items()
    ]
    if differences:
        parts.append(("Differences", [*differences, Table(sentences=(note,))]))
    html = page_from(
        "compare.html.j2",
        SCRIPT,
        title=printable(name),
        kicker=where,
        private=False,
        verdicts=[{"text": f"Against {other}: {found['verdict']}"} for other, found in shown.items()],
        refused=[],
        parts=_as_html(parts),
        figures=[],
        queries=[],
        shown_pairs=0,
    )
    write_text_atomic(page, html)


def _as_html(parts: list[tuple[str, list[Table]]]) -> list[tuple[str, list[Markup]]]:
    return [(title, [Markup(table._repr_html_()) for table in tables]) for title, tables in parts]


def _sentence(compared: _Compared, a: int, b: int, found: dict) -> dict:
    """Who of two is better on what, in a sentence."""
    main, better = found["metrics"]["mean_r1"], found["better"]
    corrected = f"p {'= ' if found['p_holm'] >= 0.001 else ''}{p_text(found['p_holm'])} by Holm"
    if better is None:
        text = f"No evidence that {compared.runs[a]} and {compared.runs[b]} differ in mean R@1"
        return {"text": f"{text} ({corrected}; {found['evidence']})."}
    worse, sign = (a, 1) if better == b else (b, -1)
    ends = sorted(100 * sign * main[end] for end in ("low", "high"))
    names = [
        f"R@{k} {DIRECTION_NAMES[d]}"
        for d in DIRECTION_NAMES
        for k in (1, 5, 10)
        if (part := found["metrics"][f"{d}_r{k}"])["p_holm"] < ALPHA
        and not part["low"] <= 0 <= part["high"]
        and part["difference"] * sign > 0
    ]
    text = (
        f"{compared.runs[better]} is better than {compared.runs[worse]} by"
        f" {abs(100 * main['difference']):.2f} points of mean R@1 (95 % {ends[0]:.2f} to {ends[1]:.2f};"
        f" {corrected})"
    )
    return {
        "better": compared.runs[better],
        "text": f"{text}, on {', '.join(names)}." if names else f"{text}.",
    }


def _recipe(run: str, below: int = 0) -> tuple[str, tuple[int, ...]] | None:
    """What the run shares with those that differ by seed alone, and its seed and those of its parents.

    Args:
        run: its name.
        below: how many runs continue it, one after the other.

    Returns:
        None if its files do not say.
    """
    try:
        parameters, environment = stored_config(run).model_dump(mode="json"), stored_environment(run)
    except (OSError, ValueError):
        return None
    parent, seeds = environment["parent"], (parameters["seed"],)
    if parent and below < LONGEST_LINE:  # runs of several seeds continue parents of several seeds
        recipe, before = _recipe(parent["run"], below + 1) or (parent["run"], ())
        parent, seeds = parent | {"run": recipe, "epoch": None}, seeds + before
    shared = {name: value for name, value in parameters.items() if name not in (*PLACE, "seed")}
    return json.dumps([shared, environment["data"]["fingerprint"], parent], sort_keys=True), seeds


def _over_seeds(compared: _Compared) -> list[Table]:
    """Runs that differ by seed alone: their means, and recipes against each other seed by seed."""
    tables = []
    for group in compared.groups():
        recipes: dict[str, dict[tuple[int, ...], int]] = {}
        sentences, p_values, found = [], [], []
        for run in group:
            if found_recipe := _recipe(compared.runs[run]):
                recipe, seeds = found_recipe
                first = recipes.setdefault(recipe, {}).setdefault(seeds, run)
                if first != run:
                    sentences.append(
                        f"{compared.runs[run]} has the recipe and the seed of {compared.runs[first]} and is"
                        " counted in no mean."
                    )
        several = [runs for runs in recipes.values() if len(runs) > 1]
        rows = []
        for runs in several:
            summary = summarise_seeds([compared.ranks[run] for run in runs.values()])
            part = summary["mean_r1"]
            rows.append(
                {
                    "runs of one recipe": ", ".join(compared.runs[run] for run in runs.values()),
                    "seeds": ", ".join(" after ".join(map(str, seeds)) for seeds in runs),
                    "mean R@1 (95 %)": f"{percent(part['mean'])} % ({percent(part['low'])}"
                    f"–{percent(part['high'])})",
                    "standard deviation over seeds": f"{percent(part['sd'])} %",
                }
            )
        for first, second in itertools.combinations(several, 2):
            if not first.keys() & second.keys():  # one continues the other: by the seed that each began with
                first, second = ({seeds[-1:]: run for seeds, run in side.items()} for side in (first, second))
            if seeds := sorted(first.keys() & second.keys()):
                sides = [[compared.ranks[side[seed]] for seed in seeds] for side in (first, second)]
                metric = compare_seeds(*sides)["metrics"]["mean_r1"]
                names = [", ".join(compared.runs[side[s]] for s in seeds) for side in (first, second)]
                found.append((names, metric, len(seeds)))
                p_values.append(metric["p"])
        for (names, metric, seeds), p in zip(found, holm(p_values) if p_values else []):
            evidence = f"mean R@1 {percent(metric['b'])} % vs {percent(metric['a'])} % over"
            evidence += f" {seeds} seeds" if seeds > 1 else " one seed"
            verdict = verdict_in_words(
                metric["difference"], metric["low"], metric["high"], float(p), evidence
            )
            sentences.append(f"{names[1]} against {names[0]}: {verdict}")
        if rows:
            caption = f"{result_scope(compared.results[group[0]])} · intervals over seeds and queries"
            tables.append(Table(pd.DataFrame(rows), caption, tuple(sentences)))
    return tables


def _curves(runs: Sequence[str]) -> list[dict]:
    """Loss and recall of all runs by epoch, one figure each for the runs of one data set."""
    histories, data_of = {}, {}
    for run in runs:
        try:
            history, data = read_history(run), stored_environment(run)["data"]
        except (OSError, ValueError):
            continue
        if history:
            histories[run] = history
            key = (data["name"], data.get("held_out_fingerprint") or data["fingerprint"])
            data_of.setdefault(key, []).append(run)
    figures = []
    for (name, _), members in data_of.items():
        drawn = {run: histories[run] for run in members}
        figures += [compared_curves(drawn, name, "loss"), compared_curves(drawn, name, "recall")]
    shown = []
    for figure in figures:
        light, dark = (base64.b64encode(png).decode() for png in in_both_schemes(figure))
        shown.append({"light": light, "dark": dark, "alt": figure.get_label()})
    return shown


def _queries(run: str, result: dict) -> dict:
    """The queries of a run's evaluation; none if they are of another one, or not there."""
    try:
        queries = read_queries(run)
    except (OSError, ValueError):
        return {}
    here = (result["split"], result["data"]["fingerprint"])
    return queries if (queries["split"], queries["fingerprint"]) == here else {}


def _queries_that_differ(compared: _Compared, with_private: bool) -> tuple[list[dict], bool]:
    """Of the first pairs, queries that one run answers at rank 1 and the other does not.

    Also whether some of them are private; those are in the list only if asked for.
    """
    shown, private = [], False
    for a, b, _ in compared.comparable()[:SHOWN_PAIRS]:
        sources = {run: _queries(compared.runs[run], compared.results[run]) for run in (b, a)}
        sources = {run: queries for run, queries in sources.items() if queries}
        if not sources:
            continue
        is_private = not all(queries["redistributable"] for queries in sources.values())
        private = private or is_private
        if is_private and not with_private:
            continue
        source, queries = next(iter(sources.items()))
        picture = thumbnails(compared.runs[source])
        for direction, words in DIRECTION_NAMES.items():
            rank_a_Q, rank_b_Q = (compared.ranks[run].of(direction) for run in (a, b))
            image_Q = compared.ranks[b].image_of_query(direction)
            changed = changed_queries(rank_a_Q, rank_b_Q)
            texts = queries["captions" if direction == "t2i" else "images"]
            rows = [
                {
                    "winner": compared.runs[winner],
                    "text": printable(texts[q]),
                    "ranks": (f"{rank_a_Q[q]:,}", f"{rank_b_Q[q]:,}"),
                    "picture": picture(int(image_Q[q])) if picture else None,
                }
                for winner, kind in ((b, "gained"), (a, "lost"))
                for q in changed[kind][:SHOWN_QUERIES]
            ]
            counts = (len(changed["lost"]), len(changed["gained"]))
            names = (compared.runs[a], compared.runs[b])
            shown.append({"names": names, "direction": words, "rows": rows, "counts": counts})
    return shown, private


def compared_with(
    others: Sequence[str], ranks: RetrievalRanks | None, facts: dict | None
) -> tuple[dict[str, dict], bool]:
    """These ranks against those of files and of evaluated runs, corrected by Holm over all of them.

    Args:
        others: files of ranks (`RetrievalRanks.save`), or names of evaluated runs.
        ranks: from `evaluate_embeddings`.
        facts: what they were measured on (`measured_on`); None where nobody knows, and ranks alone decide.

    Returns:
        By name what `compare_pairs` gives, `better` in words (`this` or `other`), and whether it is known of
        all that they were measured on the same data.

    Raises:
        FileNotFoundError: neither such a file nor such a run, or a run that was not evaluated.
        ValueError: no ranks, as under a protocol of folds; no file of ranks; ranks of other queries.
    """
    if ranks is None:
        raise ValueError("expected ranks to compare, found folds, which have none; compare under standard")
    # Where one side does not say what it was measured on, what can be seen of the ranks decides.
    runs, pairs, known = [(ranks, facts), (ranks, None)], [], True
    for other in others:
        theirs = None
        if Path(other).is_file():
            theirs_ranks = RetrievalRanks.load(other)
        else:
            (result,), (theirs_ranks,) = read_evaluated(other)
            theirs = measured_on(result) if facts else None
        known = known and theirs is not None
        pairs.append((len(runs), 0 if theirs else 1))
        runs.append((theirs_ranks, theirs))
    found = {}
    for other, result in zip(others, compare_pairs(runs, pairs)):
        if not result["comparable"]:
            raise ValueError(f"{other}: {result['verdict']}; evaluate both models on the same queries")
        better = result["better"]
        found[other] = result | {"better": better if better is None else "this" if better < 2 else "other"}
    return found, known
