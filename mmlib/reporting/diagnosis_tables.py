"""Tables of an error analysis: hubs, agreement with people, and queries that two runs answer differently."""

import numpy as np
import pandas as pd

from mmlib.analysis import changed_queries
from mmlib.metrics import RetrievalRanks
from mmlib.metrics.compare import check_comparable, mcnemar
from mmlib.metrics.resampling import sign_flip_test
from mmlib.metrics.summary import DIRECTIONS
from mmlib.reporting.display import MARK
from mmlib.reporting.scope import p_text, percent, recall_text, scope
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.reporting.tables import Table
from mmlib.training.runs import read_result, run_folder
from mmlib.training.stored_analysis import read_queries

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
        tau = "–" if found["tau"] is None else "{tau:.3f} ({low:.3f} to {high:.3f})".format_map(found)
        rows.append(
            {
                "rated by": who,
                "Kendall's tau": f"τ_{found['variant']}",
                "value (95 %)": tau,
                "ratings": f"{found['n']:,}",
                "images": f"{found.get('images', 0):,}",
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


def _scope(diagnosis: dict) -> str:
    return scope(diagnosis["data"]["name"], diagnosis["split"], diagnosis["standard"])


def _result_scope(result: dict) -> str:
    return scope(result["data"]["name"], result["split"], result["protocols"]["standard"])
