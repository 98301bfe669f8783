"""Where a model is right and wrong: recall by kind of query, similarities, calibration, hubs, people."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmlib.reporting.scope import scope
from mmlib.reporting.style import BAR, DIRECTION_NAMES, DIRECTIONS, INK, SOFT, new_figure, styled

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
