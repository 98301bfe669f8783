"""Error diagnosis: figures by kind of query, and tables of hubs and of agreement with people."""

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmlib.metrics.summary import DIRECTION_NAMES, percent, recall_cells, scope
from mmlib.reporting.style import BAR, DIRECTIONS, draw_dots, error_bars, guide, legend, new_figure, styled
from mmlib.reporting.tables import Table

KINDS = {
    "length": "by length of the caption",
    "cluster": "by image cluster",
    "word": "by word of the caption",
}
_WORDS = 16  # rows of the panel of words
_RULES = {4.0: "or rated 4 (no errors)", 3.0: "or rated 3 and above"}
PEOPLE_HEADING = (
    "### Agreement with people\n\nFlickr8k comes with judgements of how well captions fit images, by experts"
    " (1–4) and by a crowd (share of yes): Kendall's τ between them and similarity, as CLIPScore computes it."
    " Human-aware recall also counts a result that experts found to fit: few pairs were judged, so it rises"
    " little, and shows how many misses are misses of the protocol."
)
_PEOPLE = {"expert": "three experts, 1–4", "crowdflower": "CrowdFlower, share of yes"}


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
    found = {kind: {d: _groups(diagnosis, d, kind, k) for d in DIRECTIONS} for kind in KINDS}
    found = {kind: of_kind for kind, of_kind in found.items() if of_kind["t2i"]}
    names = {kind: list(of_kind["t2i"])[:_WORDS] for kind, of_kind in found.items()}
    left = [kind for kind in found if kind != "word"]
    rows = max(sum(len(names[kind]) + 3.2 for kind in left), len(names.get("word", ())) + 2.2)
    figure = new_figure(
        f"Which queries find their match: R@{k} by kind of query",
        f"{_scope(diagnosis)} · 95 % intervals · in brackets, the group's image / caption queries; an image"
        " has the words that half of its captions hold",
        f"Dot plots of recall at {k} {', '.join(KINDS[kind] for kind in found)}, both directions, each with"
        " its interval, beside the recall of all queries.",
        height=0.24 * rows + 0.3,
        legend=legend("all queries of the direction", markersize=4.5),
    )
    heights = [len(names[kind]) for kind in left]
    grid = figure.add_gridspec(len(left), 2 if "word" in found else 1, height_ratios=heights)
    highest = max(row["high"] for of_kind in found.values() for by in of_kind.values() for row in by.values())
    for kind, of_kind in found.items():
        axes = figure.add_subplot(grid[:, 1] if kind == "word" else grid[left.index(kind), 0])
        labels = []
        for name in names[kind]:
            counts = [f"{by_name[name]['n']:,}" if name in by_name else "–" for by_name in of_kind.values()]
            labels.append(f"{name} ({' / '.join(counts)})")
        recalls = {d: [by_name.get(name) for name in names[kind]] for d, by_name in of_kind.items()}
        draw_dots(axes, labels, recalls, named=False, size=4.2)
        for direction, look in DIRECTIONS.items():
            overall = diagnosis["standard"][direction][f"r{k}"]["value"]
            guide(axes, 100 * overall, vertical=True, color=look["color"])
        axes.set_title(KINDS[kind])
        axes.set_xlim(0, 100 * min(1.02, 1.04 * highest))
        axes.set_xlabel(f"R@{k} (%)")
    return figure


def _groups(diagnosis: dict, direction: str, kind: str, k: int) -> dict[str, dict]:
    """Recalls by name of the group; none if this direction has no groups of the kind."""
    ks = diagnosis["groups"][direction].get(kind, {f"r{k}": []})
    if f"r{k}" not in ks:
        raise ValueError(f"k: expected one of {', '.join(name[1:] for name in ks)}, found {k}")
    return {row["group"]: row for row in ks[f"r{k}"]}


def _scope(diagnosis: dict) -> str:
    return scope(diagnosis["data"]["name"], diagnosis["split"], diagnosis["standard"])


def _line(direction: str) -> dict:
    return {key: DIRECTIONS[direction][key] for key in ("color", "linestyle")}


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
            *(Line2D([], [], **_line(d), label=parts[f"hardest_{d}"]) for d in DIRECTIONS),
        ],
    )
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
        low, high = (np.array([row[f"margin_{end}"] for row in rows]) for end in ("low", "high"))
        y = [100 * row["value"] for row in rows]
        axes.errorbar(
            (low + high) / 2, y, xerr=(high - low) / 2, yerr=error_bars(rows), fmt=look["marker"],
            color=look["color"], markersize=4.5, elinewidth=1.3, zorder=3,
        )  # fmt: skip
        axes.plot((low + high) / 2, y, linewidth=1, alpha=0.5, **_line(direction))
        guide(axes, 100 * diagnosis["standard"][direction]["r1"]["value"], "all queries")
        axes.set_title(DIRECTION_NAMES[direction])
        axes.set_xlabel("margin, first less second cosine")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel("R@1 (%)")
    return figure


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


def people_section(diagnosis: dict) -> None:
    """Displays how far the model agrees with people, where their judgements come with the data; else nothing.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`.
    """
    if people := diagnosis["people"]:
        display(Markdown(PEOPLE_HEADING), agreement_table(diagnosis))
        if people["human_aware"]:
            display(human_aware_table(diagnosis))


def agreement_table(diagnosis: dict) -> Table:
    """Kendall's tau between the model's scores and people's ratings.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`, with people's judgements.
    """
    people = diagnosis["people"]
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


def human_aware_table(diagnosis: dict) -> Table:
    """Recall where pairs that experts rate well count as hits, beside the standard.

    Args:
        diagnosis: from `mmlib.training.read_diagnosis`, with experts' judgements.
    """
    people = diagnosis["people"]
    by_rule = {"own captions (standard)": diagnosis["standard"]}
    by_rule |= {_RULES[found["threshold"]]: found for found in people["human_aware"]}
    rows = []
    for rule, found in by_rule.items():
        for direction in DIRECTIONS:
            part = found[direction]
            counts = {n: f"{part[n]:,}" if n in part else "" for n in ("judged", "extended")}
            names = {"a hit is": rule, "direction": DIRECTION_NAMES[direction]}
            rows.append(names | recall_cells(part) | counts)
    return Table(
        pd.DataFrame(rows),
        f"{_scope(diagnosis)} · 95 % intervals · hits/n · mean of three experts · judged: queries with a"
        " rated pair beside their own; extended: queries with a right answer more than"
        " the standard's · people rated a small part of all pairs: true recall lies higher, by an unknown"
        " amount",
    )
