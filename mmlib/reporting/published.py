"""Published Flickr8k results to stand beside: other systems and the reference experiment.

All recalls in percent, as published; None where a figure was not published.
"""

from dataclasses import dataclass
from textwrap import shorten

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from mmlib.metrics import verdict_from_counts
from mmlib.reporting.results import result_scope, summary_of
from mmlib.reporting.style import DIRECTIONS, SHADE, SOFT, draw_dots, legend_handles, new_figure, show, styled
from mmlib.reporting.tables import DIRECTION_NAMES, Table, recall_text

TITLE_CHARACTERS = 100  # of a group of systems, that fit into a figure

Recalls = tuple[float | None, float | None, float | None]  # R@1, R@5, R@10 in %

NOTHING = "nothing: neither side pretrained"
IMAGENET = "ImageNet, some with text"
REGIONS = "detected regions (RCNN, Visual Genome)"
PAIRS = "400 million image–text pairs or more"
GROUPS = (NOTHING, IMAGENET, REGIONS, PAIRS)


@dataclass(frozen=True)
class Published:
    """One system's test result on Flickr8k: 1,000 images, 5 captions each, protocol `standard`."""

    system: str
    pretrained_on: str
    group: str
    i2t: Recalls
    t2i: Recalls
    note: str = ""


_ZERO_SHOT = "zero-shot; only R@5 is published"

PUBLISHED = (
    Published("DeViSE", "ImageNet + text", IMAGENET, (4.8, 16.5, 27.3), (5.9, 20.1, 29.6)),
    Published("SDT-RNN", "RCNN", REGIONS, (6.0, 22.7, 34.0), (6.6, 21.6, 31.7)),
    Published("DeFrag", "RCNN", REGIONS, (12.6, 32.9, 44.0), (9.7, 29.6, 42.5)),
    Published("m-RNN", "ImageNet", IMAGENET, (14.5, 37.2, 48.5), (11.5, 31.0, 42.4)),
    Published("DVSA (BRNN)", "RCNN", REGIONS, (16.5, 40.6, 54.2), (11.8, 32.1, 44.7)),
    Published("MNLM (VGG)", "ImageNet", IMAGENET, (18.0, 40.9, 55.0), (12.5, 37.0, 51.5)),
    Published("m-CNN", "ImageNet", IMAGENET, (24.8, 53.7, 67.1), (20.3, 47.6, 61.7), "ensemble"),
    Published("FV-HGLMM", "ImageNet + word2vec", IMAGENET, (31.0, 59.3, 73.7), (21.2, 50.0, 64.8)),
    Published("NAA (ResNet)", "ImageNet", IMAGENET, (37.2, 68.1, 79.1), (27.7, 59.6, 71.8)),
    Published("SCAN", "Visual Genome regions", REGIONS, (52.2, 81.0, 89.2), (38.3, 67.8, 78.9), "ensemble"),
    Published("IMRAM", "Visual Genome regions", REGIONS, (54.7, 84.2, 91.0), (41.0, 69.2, 79.9)),
    Published(
        "CLIP ViT-B/16 laion400m", "400 M pairs", PAIRS, (76.9, 94.1, None), (62.0, 85.8, None), "zero-shot"
    ),
    Published(
        "CLIP ViT-B/16, fine-tuned", "400 M pairs", PAIRS, (90.7, 99.0, 99.4), (77.1, 93.8, 96.9),
        "fine-tuned on Flickr8k; one community run",
    ),
    Published("CLIP B/32, OpenAI", "400 M pairs", PAIRS, (None, 91.4, None), (None, 80.5, None), _ZERO_SHOT),
    Published("CLIP B/16, OpenAI", "400 M pairs", PAIRS, (None, 91.4, None), (None, 82.9, None), _ZERO_SHOT),
    Published("CLIP L/14, OpenAI", "400 M pairs", PAIRS, (None, 94.1, None), (None, 86.3, None), _ZERO_SHOT),
    Published("CLIP B/32, LAION-2B", "2 B pairs", PAIRS, (None, 94.1, None), (None, 86.3, None), _ZERO_SHOT),
    Published("CLIP H/14, LAION-2B", "2 B pairs", PAIRS, (None, 97.3, None), (None, 92.8, None), _ZERO_SHOT),
)  # fmt: skip

TRAPS = (
    "Every Flickr8k photo is in Flickr30k, and 943 of the 1,000 test photos are in Flickr30k's training"
    " split: a system that saw Flickr30k in training has seen the answers.",
    "Some published Flickr8k rows were scored on all 8,091 images instead of the 1,000 test images.",
    "The original distribution lists captions of one image that does not exist and 91 images in no split.",
)


# The reference experiment, 5,000 queries a direction: its best validation R@1 of both directions, in %, after
# 30 epochs and after 50 more, and its test recalls under `paired`.
REFERENCE_QUERIES = 5000
REFERENCE_PHASES = ((0.38, 0.30), (0.38, 0.34))
REFERENCE_TEST = {"i2t": (0.32, 1.30, 2.54), "t2i": (0.24, 1.52, 2.72)}
# Exact when an image's five copies are identical: 5 × paired I→T R@1, and paired T→I R@5.
REFERENCE_TEST_STANDARD_R1 = {"i2t": 5 * REFERENCE_TEST["i2t"][0], "t2i": REFERENCE_TEST["t2i"][1]}


def why_not_published(result: dict) -> str | None:
    """Why a run's result may not stand beside the published figures; None when it may.

    Args:
        result: a run's `results.json`.
    """
    name, split = result["data"]["name"], result["split"]
    if name != "flickr8k":
        return f"the published figures are for Flickr8k; this run was evaluated on {name}"
    if split != "test":
        return f"the published figures are for the official test split; this run was evaluated on {split}"
    if "standard" not in result["protocols"]:
        return "the published figures use the standard protocol; this run was not evaluated under it"
    images = result["protocols"]["standard"]["i2t"]["n"]
    if images != 1000:
        return f"the published figures use 1,000 test images; this run was evaluated on {images:,}"
    return None


def check_publishable(results: list[dict]) -> None:
    """Refuses results that may not stand beside the published figures.

    Raises:
        ValueError: no results, or one that `why_not_published` gives a reason for.
    """
    if not results:
        raise ValueError("expected the results of at least one run, found none; run 03_evaluate first")
    for result in results:
        if reason := why_not_published(result):
            raise ValueError(f"run {result['run']!r} cannot stand beside the published figures: {reason}")


def _group_of(result: dict) -> str:
    return NOTHING if result["pretraining"] == "none" else result["pretraining"]


def published_table(results: list[dict] = ()) -> Table:
    """Published Flickr8k test figures, and our runs among them, by what each was pretrained on.

    Args:
        results: `results.json` of our runs on Flickr8k's test split; none shows the published alone.

    Raises:
        ValueError: a run that may not stand beside them, see `why_not_published`.
    """
    if results:
        check_publishable(results)
    i2t, t2i = (f"{DIRECTION_NAMES[d]} R@1/5/10" for d in DIRECTIONS)
    rows = []
    for result in results:
        parts = [result["protocols"]["standard"][d] for d in DIRECTIONS]
        rows.append(
            {
                "system": f"{result['run']} (this project)",
                "pretrained on": "nothing" if result["pretraining"] == "none" else result["pretraining"],
                i2t: _values(parts[0], 1),
                t2i: _values(parts[1], 1),
                "note": "R@1 I→T {}, T→I {}".format(*(recall_text(part["r1"]) for part in parts)),
            }
        )
    rows += [
        {"system": p.system, "pretrained on": p.pretrained_on, i2t: _triple(p.i2t), t2i: _triple(p.t2i)}
        | {"note": p.note}
        for p in sorted(PUBLISHED, key=lambda p: GROUPS.index(p.group))
    ]
    return Table(
        pd.DataFrame(rows),
        "flickr8k · test split · protocol standard · 1,000 image and 5,000 caption queries · percent · "
        + " ".join(TRAPS),
    )


def reference_table(results: list[dict]) -> Table:
    """Our Flickr8k runs beside the reference experiment, under its `paired` protocol and `standard`.

    Args:
        results: `results.json` of our runs on Flickr8k's test split, with both protocols.

    Raises:
        ValueError: a run that may not stand beside published figures, or without `paired`.
    """
    check_publishable(results)
    test, test_r1 = REFERENCE_TEST, REFERENCE_TEST_STANDARD_R1
    rows = [
        ["the reference, as published", *map(_triple, test.values()), *map("{:.2f}".format, test_r1.values())]
    ]
    for result in results:
        paired, standard = summary_of(result, "paired"), summary_of(result, "standard")
        of_paired = [_values(paired[d], 2) for d in DIRECTIONS]
        rows.append([result["run"], *of_paired, *(recall_text(standard[d]["r1"]) for d in DIRECTIONS)])
    columns = ["paired I→T R@1/5/10", "paired T→I R@1/5/10", "standard I→T R@1", "standard T→I R@1"]
    return Table(
        pd.DataFrame(rows, columns=["run", *columns]),
        "flickr8k · test split · 1,000 images with five captions each · percent, ours with 95 % intervals ·"
        " under paired a perfect model reaches 20 % I→T R@1, and T→I hangs on how an image's equal rows are"
        " ordered (ours counts ties against the model) · the reference drew its own random split, ours"
        " is the official one, so this shows the order of magnitude and is no test of a difference",
    )


def _values(part: dict, decimals: int) -> str:
    return "/".join(f"{100 * part[f'r{k}']['value']:.{decimals}f}" for k in (1, 5, 10))


def _triple(recalls: Recalls) -> str:
    return "/".join("–" if value is None else f"{value:g}" for value in recalls)


@styled
def published_figure(results: list[dict]) -> Figure:
    """Test R@1 of our runs beside published Flickr8k systems, grouped by what they were pretrained on.

    Args:
        results: `results.json` of each run, on Flickr8k's 1,000 test images, protocol `standard`.

    Raises:
        ValueError: no results, or one that may not stand beside them, see `why_not_published`.
    """
    check_publishable(results)
    rows: list[str | Published | dict] = []  # a group's title, a system of it, one of our results
    for group in [*GROUPS, *sorted({_group_of(r) for r in results} - set(GROUPS))]:
        systems = [p for p in PUBLISHED if p.group == group and p.i2t[0] is not None]
        ours = [result for result in results if _group_of(result) == group]
        title = f"pretrained on {group}" if group in GROUPS else f"ours, pretrained: {group}"
        if systems or ours:
            rows.append(shorten(title, TITLE_CHARACTERS, placeholder=" …"))
            rows += [*sorted(systems, key=lambda p: p.i2t[0]), *ours]
    figure = new_figure(
        "Beside published systems",
        f"{result_scope(results[0])} · R@1, ours with 95 % intervals; published rows give none",
        "Dot plot of recall at 1 on the Flickr8k test split for published systems and the runs"
        f" {', '.join(r['run'] for r in results)}, grouped by what each was pretrained on.",
        height=0.6 + 0.24 * len(rows),
        legend=legend_handles(line=""),
    )
    axes = figure.add_subplot()
    names = ["" if isinstance(row, str) else getattr(row, "system", None) or row["run"] for row in rows]
    found = {
        d: [summary_of(row, "standard")[d]["r1"] if isinstance(row, dict) else None for row in rows]
        for d in DIRECTIONS
    }
    draw_dots(axes, names, found, offset=0.085, named=False)
    for y, row in enumerate(rows):
        if isinstance(row, dict):
            axes.get_yticklabels()[y].set_fontweight("bold")
        elif isinstance(row, Published):
            for shift, (direction, look) in zip((-0.085, 0.085), DIRECTIONS.items()):
                value = getattr(row, direction)[0]
                axes.plot(value, y + shift, look["marker"], color=look["color"], markersize=5, mfc="white")
        else:
            axes.axhspan(y - 0.5, y + 0.5, color=SHADE, linewidth=0, zorder=0)
            inside = {"transform": axes.get_yaxis_transform(), "va": "center", "color": SOFT}
            axes.text(0.01, y, row, style="italic", **inside)
    axes.set_xlim(0, 100)
    axes.set_xlabel("R@1 (%)")
    return figure


def published_section(results: list[dict]) -> None:
    """Displays the published Flickr8k figures, with ours among them if data, split and protocol agree.

    Otherwise the published figures stand alone, under a sentence saying why ours do not.

    Args:
        results: `results.json` of each run, oldest phase first.
    """
    reasons = [reason for result in results if (reason := why_not_published(result))]
    if reasons:
        display(Markdown(f"Our results do not stand in this table: {reasons[0]}"))
        display(published_table())
    else:
        show(published_figure(results), "published")
        display(published_table(results))
        display(Markdown("The reference experiment, under its own protocol and the standard one:"))
        display(reference_table(results))
    display(Markdown("Traps of these figures:\n\n" + "\n".join(f"- {trap}" for trap in TRAPS)))


def reference_claim() -> Table:
    """The reference experiment's announced improvement between its phases, judged from its counts."""
    before, after = (round(sum(recalls) / 2 / 100 * REFERENCE_QUERIES) for recalls in REFERENCE_PHASES)
    verdict = verdict_from_counts(before, after, REFERENCE_QUERIES)["verdict"]
    return Table(sentences=(f"The reference experiment, 30 epochs against 50 more: {verdict}",))
