"""Published Flickr8k results to stand beside: other systems (`published.csv`) and the reference experiment.

All recalls in percent, as published.
"""

from pathlib import Path
from textwrap import shorten

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from mmlib.metrics import verdict_from_counts
from mmlib.metrics.summary import DIRECTION_NAMES, recall_text
from mmlib.reporting.results import result_scope, results_table
from mmlib.reporting.style import DIRECTIONS, SHADE, SOFT, draw_dots, legend, new_figure, show, styled
from mmlib.reporting.tables import Table

NOTHING = "nothing: neither side pretrained"
COLUMNS = {direction: f"{name} R@1/5/10" for direction, name in DIRECTION_NAMES.items()}
TITLE_CHARACTERS = 100  # of a group of systems, that fit into a figure
TRAPS = (
    "Every Flickr8k photo is in Flickr30k, and 943 of the 1,000 test photos are in Flickr30k's training"
    " split: a system that saw Flickr30k in training has seen the answers.",
    "Some published Flickr8k rows were scored on all 8,091 images instead of the 1,000 test images.",
    "The original distribution lists captions of one image that does not exist and 91 images in no split.",
)
HEADING = (
    "### Beside published figures\n\nOnly results on the same data set, split and protocol stand in one"
    " comparison. What a system was pretrained on matters more than anything else here."
)
REFERENCE_QUERIES = 5000  # per direction
REFERENCE_PHASES = ((0.38, 0.30), (0.38, 0.34))  # best validation R@1 of both directions, in each phase
# Its R@1 under `standard` are exact when an image's five copies are identical: 5 × paired I→T R@1, and paired
# T→I R@5.
REFERENCE = (
    "The reference experiment published, under its own protocol `paired`, image → text R@1/5/10 of"
    " 0.32/1.30/2.54 % and text → image of 0.24/1.52/2.72 %; under `standard` that is an R@1 of 1.60 % and"
    " 1.52 %. It drew its own random split, ours is the official one, so this shows the order of magnitude"
    " and is no test of a difference. T→I hangs on how an image's equal rows are ordered (ours counts ties"
    " against the model). Ours under `paired`:"
)


def published_systems() -> pd.DataFrame:
    """Test results on Flickr8k, 1,000 images with 5 captions each, protocol `standard`, a system a row."""
    return pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


def why_not_published(result: dict) -> str | None:
    """Why a run's result may not stand beside the published figures; None when it may.

    Args:
        result: a run's `results.json`.
    """
    name, split = result["data"]["name"], result["split"]
    images = result["protocols"]["standard"]["i2t"]["n"]
    if name != "flickr8k":
        return f"the published figures are for Flickr8k; this run was evaluated on {name}"
    if split != "test":
        return f"the published figures are for the official test split; this run was evaluated on {split}"
    if images != 1000:
        return f"the published figures use 1,000 test images; this run was evaluated on {images:,}"
    return None


def published_table(results: list[dict] = ()) -> Table:
    """Published Flickr8k test figures, and our runs above them, by what each was pretrained on.

    Args:
        results: `results.json` of our runs that may stand beside them, see `why_not_published`.
    """
    rows = []
    for result in results:
        trained_on = "nothing" if result["pretraining"] == "none" else result["pretraining"]
        parts = [result["protocols"]["standard"][direction] for direction in COLUMNS]
        note = "R@1 I→T {}, T→I {}".format(*(recall_text(part["r1"]) for part in parts))
        row = {"system": f"{result['run']} (this project)", "pretrained on": trained_on, "note": note}
        for column, part in zip(COLUMNS.values(), parts):
            row[column] = "/".join(f"{100 * part[f'r{k}']['value']:.1f}" for k in (1, 5, 10))
        rows.append(row)
    frame = pd.concat([pd.DataFrame(rows), published_systems()])
    columns = ["system", "pretrained on", *COLUMNS.values(), "note"]
    return Table(
        None,
        "flickr8k · test split · protocol standard · 1,000 image and 5,000 caption queries · percent · "
        + " ".join(TRAPS),
        folded=("the published figures", frame[columns]),
    )


@styled
def published_figure(results: list[dict]) -> Figure:
    """Test R@1 of our runs beside published Flickr8k systems, grouped by what they were pretrained on.

    Args:
        results: `results.json` of our runs that may stand beside them, see `why_not_published`.
    """
    groups = {NOTHING: []}  # published systems and our results by what they were pretrained on
    for row in published_systems().to_dict("records"):
        if not row[COLUMNS["i2t"]].startswith("–"):
            groups.setdefault(row["group"], []).append(row)
    titles = {group: f"pretrained on {group}" for group in groups}
    for result in results:
        group = NOTHING if result["pretraining"] == "none" else result["pretraining"]
        groups.setdefault(group, []).append(result)
    rows = []
    for group in (group for group in groups if groups[group]):
        title = titles.get(group, f"ours, pretrained: {group}")
        rows += [shorten(title, TITLE_CHARACTERS, placeholder=" …"), *groups[group]]
    figure = new_figure(
        "Beside published systems",
        f"{result_scope(results[0])} · R@1, ours with 95 % intervals; published rows give none",
        "Dot plot of recall at 1 on the Flickr8k test split for published systems and the runs"
        f" {', '.join(r['run'] for r in results)}, grouped by what each was pretrained on.",
        height=0.6 + 0.24 * len(rows),
        legend=legend(line=""),
    )
    axes = figure.add_subplot()
    names = ["" if isinstance(row, str) else row.get("system") or row["run"] for row in rows]
    found = {
        d: [row["protocols"]["standard"][d]["r1"] if row in results else None for row in rows]
        for d in DIRECTIONS
    }
    draw_dots(axes, names, found, offset=0.085, named=False)
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.axhspan(y - 0.5, y + 0.5, color=SHADE, linewidth=0, zorder=0)
            inside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": SOFT}
            axes.text(0.01, y, row, style="italic", **inside)
        elif "system" in row:
            for shift, (direction, look) in zip((-0.085, 0.085), DIRECTIONS.items()):
                value = float(row[COLUMNS[direction]].split("/")[0])
                axes.plot(value, y + shift, look["marker"], color=look["color"], markersize=5, mfc="white")
        else:
            axes.get_yticklabels()[y].set_fontweight("bold")
    axes.set_xlim(0, 100)
    axes.set_xlabel("R@1 (%)")
    return figure


def published_section(results: list[dict]) -> None:
    """Displays published Flickr8k figures with ours among them.

    Nothing of results on other data; of another part of Flickr8k it says why there is nothing beside them.

    Args:
        results: `results.json` of each run, oldest phase first.
    """
    if any(result["data"]["name"] != "flickr8k" for result in results):
        return
    display(Markdown(HEADING))
    reasons = [reason for result in results if (reason := why_not_published(result))]
    if reasons:
        display(Table(sentences=(f"Nothing stands beside these results: {reasons[0]}.",)))
        return
    show(published_figure(results), "published")
    display(published_table(results))


def reference_section(results: list[dict]) -> None:
    """Displays the reference experiment's claim and our results under its protocol; nothing on other data.

    Args:
        results: `results.json` of each run, oldest phase first.
    """
    if not any(map(why_not_published, results)):
        display(Markdown(REFERENCE), results_table(results, "paired"), _reference_claim())


def _reference_claim() -> Table:
    """The reference experiment's announced improvement between its phases, judged from its counts."""
    before, after = (round(sum(recalls) / 2 / 100 * REFERENCE_QUERIES) for recalls in REFERENCE_PHASES)
    verdict = verdict_from_counts(before, after, REFERENCE_QUERIES)["verdict"]
    claim = (
        "The reference experiment announced that 50 more epochs improved on its first 30. By the same rule"
    )
    return Table(sentences=(f"{claim}: {verdict}",))
