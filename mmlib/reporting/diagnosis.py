"""Error diagnosis: figures by group of queries, and tables of what changed between runs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmlib.analysis import changed_queries
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.compare import check_comparable, mcnemar
from mmlib.metrics.resampling import sign_flip_test
from mmlib.reporting.scope import p_text, percent, recall_text, scope
from mmlib.reporting.style import BAR, DIRECTION_NAMES, DIRECTIONS, INK, MARK, SOFT, new_figure, styled
from mmlib.reporting.tables import Table
from mmlib.training.runs import read_queries, read_result, run_folder

KINDS = {
    "length": "by length of the caption",
    "cluster": "by image cluster",
    "word": "by word of the caption",
}
_WORDS = 16  # rows of the panel of words
_OFFSET = {"i2t": -0.16, "t2i": 0.16}  # of the two directions around a row's middle, in rows


@styled
def recall_by_group_figure(diagnosis: dict, k: int = 10) -> Figure:
    """R@K of groups of queries, both directions, with 95 % intervals and the recall of all queries.

    The intervals are of single groups: of forty, two miss the truth on average.  Clusters are those
    of k-means over image embeddings, named by the words that set their captions apart.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
        k: 1 or 10.

    Raises:
        ValueError: the diagnosis has no groups at this K.
    """
    groups = {d: {kind: _at_k(ks, k) for kind, ks in diagnosis["groups"][d].items()} for d in DIRECTIONS}
    panels = {kind: title for kind, title in KINDS.items() if groups["t2i"].get(kind)}
    names = {kind: [row["group"] for row in groups["t2i"][kind]][:_WORDS] for kind in panels}
    left = [kind for kind in panels if kind != "word"]
    rows = max(sum(len(names[kind]) + 3.2 for kind in left), len(names.get("word", ())) + 2.2)
    figure = new_figure(
        f"Which queries find their match: R@{k} by kind of query",
        f"{_scope(diagnosis)} · 95 % intervals · in brackets, the group's image / caption queries; an image"
        " has the words that half of its captions hold",
        f"Dot plots of recall at {k} {', '.join(panels.values())}, both directions, each with its interval,"
        " beside the recall of all queries.",
        height=0.24 * rows + 0.3,
        legend=[
            *(Line2D([], [], **DIRECTIONS[d], markersize=4.5, label=DIRECTION_NAMES[d]) for d in DIRECTIONS),
            Line2D([], [], color=SOFT, linestyle=":", label="all queries of the direction"),
        ],
    )
    grid = figure.add_gridspec(
        len(left), 2 if "word" in panels else 1, height_ratios=[len(names[kind]) for kind in left]
    )
    highest = max(row["high"] for of_kinds in groups.values() for rows in of_kinds.values() for row in rows)
    for kind, title in panels.items():
        axes = figure.add_subplot(grid[:, 1] if kind == "word" else grid[left.index(kind), 0])
        _group_panel(axes, {d: groups[d].get(kind, []) for d in DIRECTIONS}, names[kind], title)
        for direction, look in DIRECTIONS.items():
            overall = diagnosis["standard"][direction][f"r{k}"]["value"]
            axes.axvline(100 * overall, color=look["color"], linestyle=":", linewidth=1.1)
        axes.set_xlim(0, 100 * min(1.02, 1.04 * highest))
        axes.set_xlabel(f"R@{k} (%)")
    return figure


@styled
def similarity_figure(diagnosis: dict) -> Figure:
    """How alike pairs that belong together are, and each query's hardest negative.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    similarity = diagnosis["similarity"]
    edges = similarity["edges"]
    parts = {
        "positive": "caption and its image",
        "hardest_i2t": "image and its hardest wrong caption",
        "hardest_t2i": "caption and its hardest wrong image",
    }
    figure = new_figure(
        "Similarity of pairs that belong together, and of the hardest that do not",
        f"{_scope(diagnosis)} · a query is answered at rank 1 where its own best pair lies right of its"
        " hardest negative",
        "Histogram of the cosine similarity of captions with their own image, and two outlines: the most"
        " similar wrong caption of each image and the most similar wrong image of each caption.",
        height=2.7,
        legend=[
            Patch(facecolor=BAR, alpha=0.55, label=parts["positive"]),
            *(
                Line2D([], [], **_line(d), label=parts[f"hardest_{d}"])
                for d in DIRECTIONS
            ),
        ],
    )  # fmt: skip
    axes = figure.add_subplot()
    share = {name: [100 * c / similarity[name]["n"] for c in similarity[name]["counts"]] for name in parts}
    axes.stairs(share["positive"], edges, fill=True, color=BAR, alpha=0.55)
    for d in DIRECTIONS:
        axes.stairs(share[f"hardest_{d}"], edges, linewidth=1.6, **_line(d))
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("share of pairs (%)")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    return figure


@styled
def calibration_figure(diagnosis: dict) -> Figure:
    """R@1 by the margin between first and second result: does a wide margin mean a right answer?

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    figure = new_figure(
        "Does the model know when it is right?",
        f"{_scope(diagnosis)} · bins of equally many queries by the margin of the first result over the"
        " second; width: the bin's range, height: 95 % interval",
        "Two panels, one a direction: recall at 1 by the margin in cosine similarity between the first and"
        " the second result, with intervals, beside the recall of all queries.",
        height=2.6,
    )
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        look, rows = DIRECTIONS[direction], diagnosis["calibration"][direction]
        x = [(row["margin_low"] + row["margin_high"]) / 2 for row in rows]
        y = [100 * row["value"] for row in rows]
        axes.errorbar(
            x, y, fmt=look["marker"], color=look["color"], markersize=4.5, elinewidth=1.3, zorder=3,
            xerr=[[v - row["margin_low"] for v, row in zip(x, rows)],
                  [row["margin_high"] - v for v, row in zip(x, rows)]],
            yerr=_bars(rows),
        )  # fmt: skip
        axes.plot(x, y, linewidth=1, alpha=0.5, **_line(direction))
        overall = diagnosis["standard"][direction]["r1"]["value"]
        axes.axhline(100 * overall, color=SOFT, linestyle=":", linewidth=1.2)
        axes.annotate(
            "all queries", (1, 100 * overall), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color=SOFT,
        )  # fmt: skip
        axes.set_title(DIRECTION_NAMES[direction])
        axes.set_xlabel("margin, first less second cosine")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("R@1 (%)")
    return figure


def _line(direction: str) -> dict:
    return {key: DIRECTIONS[direction][key] for key in ("color", "linestyle")}


def _at_k(ks: dict, k: int) -> list[dict]:
    if f"r{k}" not in ks:
        raise ValueError(f"k: expected one of {', '.join(name[1:] for name in ks)}, found {k}")
    return ks[f"r{k}"]


def _scope(diagnosis: dict) -> str:
    return scope(diagnosis["data"]["name"], diagnosis["split"], diagnosis["standard"])


def _group_panel(axes: Axes, rows: dict[str, list[dict]], names: list[str], title: str) -> None:
    found = {d: {row["group"]: row for row in rows[d]} for d in DIRECTIONS}
    for direction, by_name in found.items():
        look = DIRECTIONS[direction]
        shown = [(y, by_name[name]) for y, name in enumerate(names) if name in by_name]
        if shown:
            axes.errorbar(
                [100 * row["value"] for _, row in shown], [y + _OFFSET[direction] for y, _ in shown],
                xerr=_bars([row for _, row in shown]), fmt=look["marker"], color=look["color"],
                markersize=4.2, elinewidth=1.2,
            )  # fmt: skip
    counts = [" / ".join(f"{found[d][name]['n']:,}" if name in found[d] else "–" for d in DIRECTIONS)
              for name in names]  # fmt: skip
    axes.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, counts)], color=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(title)
    axes.grid(axis="y", visible=False)


def _bars(rows: list[dict]) -> list[list[float]]:
    """Lengths of error bars below and above the values, in percent."""
    return [
        [100 * max(row["value"] - row["low"], 0) for row in rows],
        [100 * max(row["high"] - row["value"], 0) for row in rows],
    ]


_PEOPLE = {"expert": "three experts, 1–4", "crowdflower": "CrowdFlower, share of yes"}
_RULE = {4.0: "4 (no errors)", 3.0: "3 and above"}


class PrivateQueries(Table):
    """Queries that a report keeps out of the page that can be shared, as it does with private figures."""

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        bundle = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return bundle, {MARK: {"name": "changed-queries", "private": True}}


def hubness_table(diagnosis: dict) -> Table:
    """How evenly the first results are spread over the gallery, both directions.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    rows = []
    for direction in DIRECTIONS:
        hubs = diagnosis["hubness"][direction]
        rows.append(
            {
                "direction": DIRECTION_NAMES[direction],
                "gallery": f"{hubs['gallery']:,}",
                f"in a top {hubs['k']}, on average": f"{hubs['expected']:.1f}",
                "the largest hub": f"{hubs['largest']:,}",
                "skewness": f"{hubs['skewness']:.2f}",
                f"never in a top {hubs['k']}": f"{percent(hubs['never'])} %",
                "never, by chance": f"{percent(hubs['never_by_chance'])} %",
            }
        )
    return Table(
        pd.DataFrame(rows),
        f"{_scope(diagnosis)} · how often an item of the gallery is among the first"
        f" {diagnosis['hubness']['i2t']['k']} of all queries; skewness 0: evenly, large: a few items are"
        " retrieved whatever is asked",
    )


def agreement_table(diagnosis: dict) -> Table | None:
    """Kendall's tau between the model's scores and people's ratings; None without judgements.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    people = diagnosis["people"]
    if people is None:
        return None
    rows, notes = [], []
    for name, who in _PEOPLE.items():
        if (found := people[name]) is None:
            continue
        lacks = None in (found["tau"], found.get("low"), found.get("high"))
        tau = "–" if lacks else "{tau:.3f} ({low:.3f} to {high:.3f})".format_map(found)
        rows.append(
            {
                "rated by": who,
                "Kendall's tau": f"τ_{found['variant']}",
                "value (95 %)": tau,
                "ratings": f"{found['n']:,}",
                "images": f"{found.get('images') or 0:,}",
                "own captions left out": f"{found['own_left_out']:,}",
                "not scored": "; ".join(f"{n:,} {why}" for why, n in found["unscored"].items() if n) or "0",
            }
        )
        if "reason" in found:
            notes.append(f"No tau for {who}: {found['reason']}.")
    caption = (
        f"{_scope(diagnosis)} · as CLIPScore (Hessel et al. 2021) computes it, who report τ_c 0.512 and"
        " τ_b 0.344 for CLIP ViT-B/32, pretrained on 400 M pairs · intervals: bootstrap over images · caption"
        f" numbers from {people['caption_numbers']}"
    )
    return Table(pd.DataFrame(rows), " ".join([caption, *notes]))


def human_aware_table(diagnosis: dict) -> Table | None:
    """Recall where pairs that experts rate well count as hits, beside the standard; None without them.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    people = diagnosis["people"]
    if people is None or people["human_aware"] is None:
        return None
    rows = [_recall_row(diagnosis["standard"][d], d, "own captions (standard)", "", "") for d in DIRECTIONS]
    for found in people["human_aware"]:
        rule = f"or rated {_RULE[found['threshold']]}"
        rows += [
            _recall_row(found[d], d, rule, f"{found[d]['judged']:,}", f"{found[d]['extended']:,}")
            for d in DIRECTIONS
        ]
    return Table(
        pd.DataFrame(rows),
        f"{_scope(diagnosis)} · 95 % intervals · hits/n · mean of three experts · judged: queries with a"
        " rated pair beside their own; extended: queries with a right answer more than"
        " the standard's · people rated a small part of all pairs: true recall lies higher, by an unknown"
        " amount",
    )


def changed_queries_table(before: str, after: str, k: int = 1) -> Table:
    """How many queries a run wins and loses against another, standard protocol, with two tests.

    Args:
        before, after: names of evaluated runs.
        k: a hit is a match among the first k.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: its files are damaged, or the runs were not evaluated on the same queries.
    """
    result, ranks = _comparable(before, after)
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
        f"{after} against {before} · {_result_scope(result)} · hit: a match among the first {k} · won: hit by"
        f" {after} alone. McNemar's exact test takes queries as independent, which captions of one image are"
        " not: for text → image trust the permutation by image.",
    )


def changed_queries_list(before: str, after: str, direction: str, k: int = 1, top: int = 8) -> Table:
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
    result, ranks = _comparable(before, after)
    queries = read_queries(after)
    texts = queries["captions" if direction == "t2i" else "images"]
    there, here = (queries["fingerprint"], queries["split"]), (result["data"]["fingerprint"], result["split"])
    if there != here:
        raise ValueError(
            f"run {after!r}: expected queries.json of the evaluation in results.json, split and fingerprint"
            f" {here[1]} {here[0]}, found {there[1]} {there[0]}; evaluate it again with notebook 03_evaluate"
        )
    rank_a_Q, rank_b_Q = (of_run.of(direction) for of_run in ranks)
    changed = changed_queries(rank_a_Q, rank_b_Q, k=k)
    kinds = {"won": changed["gained"], "lost": changed["lost"]}
    rows = [
        (word, texts[q], f"{rank_a_Q[q]:,}", f"{rank_b_Q[q]:,}")
        for word, query_q in kinds.items()
        for q in query_q[:top]
    ]
    columns = ["", "query", "rank before", "rank after"]
    numbers = " and ".join(f"{min(top, len(q)):,} of {len(q):,} {word}" for word, q in kinds.items())
    table = Table if queries["redistributable"] else PrivateQueries
    return table(
        pd.DataFrame(rows, columns=columns),
        f"{after} against {before} · {_result_scope(result)} · {DIRECTION_NAMES[direction]} · {numbers},"
        " the largest changes of rank first",
    )


def _comparable(before: str, after: str) -> tuple[dict, list[RetrievalRanks]]:
    """The second run's result, and the ranks of both, if they are of the same queries."""
    results = [read_result(run) for run in (before, after)]
    ranks = [RetrievalRanks.load(run_folder(run) / "ranks.npz") for run in (before, after)]
    check_comparable(results, ranks=ranks)
    return results[1], ranks


def _recall_row(part: dict, direction: str, rule: str, judged: str, extended: str) -> dict:
    ks = [k for k in part if k[0] == "r" and k[1:].isdigit()]
    return {"a hit is": rule, "direction": DIRECTION_NAMES[direction]} | {
        f"R@{k[1:]}": f"{recall_text(part[k])}, {part[k]['hits']:,}/{part['n']:,}" for k in ks
    } | {"judged": judged, "extended": extended}  # fmt: skip


def _result_scope(result: dict) -> str:
    return scope(result["data"]["name"], result["split"], result["protocols"]["standard"])
