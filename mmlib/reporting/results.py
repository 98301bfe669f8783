"""Results side by side: of runs under each protocol, one against another, and their checks."""

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from mmlib.analysis import changed_queries
from mmlib.metrics import RetrievalRanks, compare_runs, summarise
from mmlib.metrics.compare import check_comparable, mcnemar, measured_on
from mmlib.metrics.protocols import PROTOCOLS
from mmlib.metrics.resampling import sign_flip_test
from mmlib.metrics.summary import DIRECTION_NAMES, ceilings_in_words, percent, result_rows, scope
from mmlib.reporting.style import DIRECTIONS, draw_dots, guide, legend, new_figure, styled
from mmlib.reporting.tables import Table, p_text, passed
from mmlib.training.runs import read_queries, read_result, run_folder

RECALLS = {f"{d}_r{k}": f"R@{k} {name}" for k in (1, 5, 10) for d, name in DIRECTION_NAMES.items()}
_CHANGED = ("query", "rank before", "rank after")
CHANGES_HEADING = (
    "### What changed\n\nQueries that the last phase answered differently from the first: a gain of a few"
    " points is the balance of many that were won and many that were lost."
)
METRICS = {"mean_r1": "mean R@1", **RECALLS, "rsum": "rsum"}


def result_scope(result: dict, protocol: str = "standard") -> str:
    """The scope of one run's `results.json` under a protocol.

    Raises:
        ValueError: the run was not evaluated under that protocol.
    """
    return scope(result["data"]["name"], result["split"], summary_of(result, protocol))


def summary_of(result: dict, protocol: str) -> dict:
    """A run's numbers under one protocol.

    Raises:
        ValueError: the run was not evaluated under that protocol.
    """
    if protocol not in result["protocols"]:
        raise ValueError(
            f"run {result['run']!r} has no result under protocol {protocol!r}, only under"
            f" {', '.join(map(repr, result['protocols']))}; evaluate it with 03_evaluate"
        )
    return result["protocols"][protocol]


def _summaries(results: list[dict], protocol: str) -> list[dict]:
    """The runs' numbers under one protocol, if they were measured on the same thing."""
    if not results:
        raise ValueError("expected the results of at least one run, found none; run 03_evaluate first")
    summaries = [summary_of(result, protocol) for result in results]
    check_comparable(results, protocol)
    return summaries


def results_table(results: list[dict], protocol: str = "standard") -> Table:
    """One row per run and direction: R@K with hits and interval, chance, ranks, rsum, ties.

    Args:
        results: `results.json` of each run, all measured on the same data.
        protocol: one that they were evaluated under.

    Raises:
        ValueError: no results, a run without that protocol, or runs measured on different data.
    """
    summaries = _summaries(results, protocol)
    rows = [row for result, part in zip(results, summaries) for row in result_rows(result["run"], part)]
    caption = f"{result_scope(results[0], protocol)} · {weights_of(results)} · 95 % intervals · hits/n"
    return Table(pd.DataFrame(rows), " · ".join([caption, *ceilings_in_words(summaries[0])]))


def weights_of(results: list[dict]) -> str:
    """Which weights of their runs results are of: `best checkpoint of each run`, or the last epoch's."""
    last = [result["run"] for result in results if "last" in (result["checkpoint"], result.get("select_by"))]
    if len(last) == len(results):
        return "last epoch of each run"
    return "best checkpoint of each run" + (f", of {' and '.join(last)} the last epoch" if last else "")


def protocols_of_results(results: list[dict]) -> list[str]:
    """`standard`, then the protocols named after the data set that all runs were evaluated under."""
    named = [name for name, protocol in PROTOCOLS.items() if protocol.dataset]
    return ["standard", *(name for name in named if all(name in r["protocols"] for r in results))]


def results_section(results: list[dict]) -> None:
    """Displays a sentence on the last run, and `results_table` for each of `protocols_of_results`.

    Raises:
        ValueError: as `results_table`.
    """
    display(Table(sentences=(_found_first(results[-1]),)))
    for protocol in protocols_of_results(results):
        display(Markdown(f"**{protocol}**: {PROTOCOLS[protocol].definition}"))
        display(results_table(results, protocol))


def _found_first(result: dict) -> str:
    """What a run is worth, in a sentence."""
    best = summary_of(result, "standard")
    i2t, t2i = (f"{percent(best[d]['r1']['value'])} % of {best[d]['n']:,}" for d in DIRECTIONS)
    return (
        f"{result['run']} finds a caption of theirs first for {i2t} images, and their image first for {t2i}"
        " captions."
    )


@styled
def results_figure(results: list[dict], protocol: str = "standard") -> Figure:
    """Test R@1, R@5 and R@10 of one or more runs with 95 % intervals and chance.

    Args and errors are those of `results_table`.
    """
    summaries = _summaries(results, protocol)
    runs = [result["run"] for result in results]
    figure = new_figure(
        "Recall on the test split" if results[0]["split"] == "test" else "Recall",
        f"{result_scope(results[0], protocol)} · {weights_of(results)}, 95 % intervals",
        f"Dot plots of recall at 1, 5, 10 for {', '.join(runs)}, both directions, each with its interval, and"
        " the chance level.",
        height=0.75 + 0.62 * len(results),
        legend=legend(),
    )
    for axes, k in zip(figure.subplots(1, 3, sharey=True), (1, 5, 10)):
        draw_dots(axes, runs, {d: [summary[d][f"r{k}"] for summary in summaries] for d in DIRECTIONS})
        for direction in DIRECTIONS:
            guide(axes, 100 * summaries[0][direction][f"r{k}"]["chance"], vertical=True)
        axes.set_xlabel(f"R@{k} (%)")
        axes.set_xlim(left=0)
        axes.margins(x=0.08)
    return figure


def evaluation_checks(results: list[dict]) -> Table:
    """Compares evaluated results with the definitions of their protocols.

    Args:
        results: `results.json` of each run.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    checks = []
    for result in results:
        run, sizes = result["run"], result["data"]["splits"][result["split"]]
        standard, paired = (summary_of(result, name) for name in ("standard", "paired"))
        ranks = RetrievalRanks.load(run_folder(run) / "ranks.npz")
        checks += [
            (run, "image queries are the split's images", sizes["images"], standard["i2t"]["n"]),
            (run, "caption queries are the split's captions", sizes["captions"], standard["t2i"]["n"]),
            (run, "the results are those of the kept ranks", summarise(ranks), standard),
        ]
        if len(set(np.bincount(ranks.image_of_text_M))) == 1:  # exact where images have equally many captions
            hits = [part["i2t"]["r1"]["hits"] for part in (standard, paired)]
            checks.append((run, "paired and standard agree on image → text hits at 1", *hits))
    return passed(checks)


def change_between(before: str, after: str) -> Table:
    """Compares the evaluated ranks of two runs, standard protocol, query by query.

    Runs on different data, splits or queries are not compared: the sentence says why, and there is no table.
    Of a run and itself it says what the run is worth.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: its files are damaged.
    """
    if before == after:
        result = read_result(after)
        rows = pd.DataFrame(result_rows(after, summary_of(result, "standard"))).drop(columns="run")
        caption = f"{result_scope(result)} · 95 % intervals · hits/n · one phase, compared with no other"
        return Table(rows, caption, (_found_first(result),))
    results, ranks = read_evaluated(before, after)
    a, b = (measured_on(result) for result in results)
    comparison = compare_runs(*ranks, provenance_a=a, provenance_b=b)
    verdict = (f"{after} against {before}: {comparison['verdict']}",)
    if not comparison["comparable"]:
        return Table(sentences=verdict)
    rows = change_rows(comparison)
    caption = (
        f"{result_scope(results[0])}. Interval: bootstrap over images, 10,000 resamples; p: permutation by"
        " image; Holm: corrected over the six R@K."
    )
    return Table(pd.DataFrame(rows), caption, verdict)


def change_rows(comparison: dict) -> list[dict]:
    """A row for each metric of a comparison that `compare_runs` made."""
    rows = []
    for name, words in METRICS.items():
        metric = comparison["metrics"][name]
        change, low, high = (f"{100 * metric[part]:+.2f}" for part in ("difference", "low", "high"))
        corrected = comparison.get("p_holm") if name == "mean_r1" else metric.get("p_holm")
        rows.append(
            {
                "metric": words,
                "before": f"{100 * metric['a']:.2f} %",
                "after": f"{100 * metric['b']:.2f} %",
                "change, points (95 %)": f"{change} ({low} to {high})",
                "p": p_text(metric["p"]),
                "p, Holm": p_text(corrected),
            }
        )
    return rows


def read_evaluated(*runs: str) -> tuple[list[dict], list[RetrievalRanks]]:
    """Results and standard ranks of evaluated runs.

    Raises:
        FileNotFoundError: there is no such run, or it was not evaluated.
        ValueError: its files are damaged.
    """
    results = [read_result(run) for run in runs]
    ranks = [RetrievalRanks.load(run_folder(run) / "ranks.npz") for run in runs]
    for result, of_run in zip(results, ranks):
        for direction in DIRECTIONS:
            expected, found = result["protocols"]["standard"][direction]["n"], len(of_run.of(direction))
            if found != expected:
                raise ValueError(
                    f"run {result['run']!r}: expected {expected:,} ranks {DIRECTION_NAMES[direction]} in"
                    f" ranks.npz, as results.json counts, found {found:,}; evaluate it again"
                )
    return results, ranks


def changes_section(before: str, after: str) -> None:
    """Displays which queries a run wins and loses against another; nothing for a run and itself.

    Args and errors are those of `changed_queries_list`.
    """
    if before != after:
        display(Markdown(CHANGES_HEADING), changed_queries_table(before, after))
        display(changed_queries_list(before, after, "t2i"))


def changed_queries_table(before: str, after: str, k: int = 1) -> Table:
    """How many queries a run wins and loses against another, standard protocol, with two tests.

    Args:
        before, after: names of evaluated runs.
        k: a hit is a match among the first k.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: its files are damaged, or the runs were not evaluated on the same queries.
    """
    results, ranks = read_evaluated(before, after)
    check_comparable(results, ranks=ranks)
    rows = []
    for direction in DIRECTIONS:
        hit_a_Q, hit_b_Q = (of_run.of(direction) <= k for of_run in ranks)
        change_Q = hit_b_Q.astype(float) - hit_a_Q
        image_Q = ranks[0].image_of_query(direction)
        p_image = sign_flip_test(np.bincount(image_Q, weights=change_Q)[:, None])[0]
        test = mcnemar(hit_a_Q, hit_b_Q)
        rows.append(
            {
                "direction": DIRECTION_NAMES[direction],
                "queries": f"{len(hit_a_Q):,}",
                "hit by both": f"{(hit_a_Q & hit_b_Q).sum():,}",
                "won": f"{test['only_b']:,}",
                "lost": f"{test['only_a']:,}",
                "hit by neither": f"{(~hit_a_Q & ~hit_b_Q).sum():,}",
                "p, McNemar": p_text(test["p"]),
                "p, by image": p_text(p_image),
            }
        )
    return Table(
        pd.DataFrame(rows),
        f"{after} against {before} · {result_scope(results[1])} · hit: a match among the first {k} · won: hit"
        f" by {after} alone. McNemar's exact test takes queries as independent, which captions of one image"
        " are not: for text → image trust the permutation by image.",
    )


def changed_queries_list(before: str, after: str, direction: str, k: int = 1, top: int = 5) -> Table:
    """The queries won and lost with the largest change of rank, with their captions.

    Private (kept out of the page that can be shared) unless the data set may be passed on.

    Args:
        before, after: names of evaluated runs.
        direction: `i2t` or `t2i`.
        k: a hit is a match among the first k.
        top: queries of each kind.

    Raises:
        FileNotFoundError: a run was not evaluated, or left no `queries.json`.
        ValueError: another direction, damaged files, or runs not evaluated on the same queries.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, found {direction!r}")
    results, ranks = read_evaluated(before, after)
    check_comparable(results, ranks=ranks)
    queries = read_queries(after)
    texts = queries["captions" if direction == "t2i" else "images"]
    there = f"{queries['split']} {queries['fingerprint']}"
    here = f"{results[1]['split']} {results[1]['data']['fingerprint']}"
    if there != here:
        raise ValueError(
            f"run {after!r}: expected queries.json of the evaluation in results.json, split and fingerprint"
            f" {here}, found {there}; evaluate it again with notebook 03_evaluate"
        )
    rank_a_Q, rank_b_Q = (of_run.of(direction) for of_run in ranks)
    changed = changed_queries(rank_a_Q, rank_b_Q, k=k)
    kinds = {"won": changed["gained"], "lost": changed["lost"]}
    rows = [
        (word, texts[q], f"{rank_a_Q[q]:,}", f"{rank_b_Q[q]:,}")
        for word, query_q in kinds.items()
        for q in query_q[:top]
    ]
    numbers = " and ".join(f"{min(top, len(q)):,} of {len(q):,} {word}" for word, q in kinds.items())
    return Table(
        None,
        f"{after} against {before} · {result_scope(results[1])} · {DIRECTION_NAMES[direction]} · {numbers},"
        " the largest changes of rank first",
        folded=("the queries themselves", pd.DataFrame(rows, columns=["", *_CHANGED])),
        private="" if queries["redistributable"] else "changed-queries",
    )
