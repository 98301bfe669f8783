"""Tables of a run for notebooks and reports, and the checks that a notebook ends with."""

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel

from mmlib.data import Dataset
from mmlib.data.tokenizers import loss_shares, losses_warning
from mmlib.metrics import RetrievalRanks, summarise
from mmlib.reporting import published
from mmlib.reporting.scope import (
    DIRECTIONS,
    RECALLS,
    best_row,
    check_one_scope,
    percent,
    phases,
    recall_text,
    result_scope,
    scope,
    summary_of,
)
from mmlib.reporting.style import DIRECTION_NAMES
from mmlib.training.checkpoint import load_checkpoint
from mmlib.training.optimisation import learning_rate
from mmlib.training.runs import read_history, run_folder, run_state, stored_config, stored_environment

SMALL_RUN = (
    "A small run on drawn shapes, to see how everything works: its numbers say nothing of photographs."
    " For real data: make report EXPERIMENT=flickr8k-cpu."
)


@dataclass(frozen=True)
class Table:
    """A table of texts and its caption, drawn the same in Jupyter, in a report and in plain text.

    pandas alone would show its row numbers, cut long cells and align them to the right.
    """

    frame: pd.DataFrame
    caption: str = ""

    def __repr__(self) -> str:
        width = {c: max(len(str(v)) for v in [c, *self.frame[c]]) for c in self.frame}
        rows = [list(self.frame), *self.frame.itertuples(index=False)]
        lines = ["  ".join(str(v).ljust(width[c]) for c, v in zip(self.frame, row)).rstrip() for row in rows]
        return "\n".join([*lines, *([self.caption] if self.caption else [])])

    def _repr_html_(self) -> str:
        def cells(row, tag):
            return "".join(_html_cell(str(value), tag) for value in row)

        head = f"<thead><tr>{cells(self.frame, 'th')}</tr></thead>"
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.frame.itertuples(index=False))
        caption = f"<p><small>{html.escape(self.caption)}</small></p>" if self.caption else ""
        return f'<table class="mmlib">{head}<tbody>{body}</tbody></table>{caption}'


def parameter_table(config: BaseModel) -> Table:
    """Every parameter with its value and its meaning; the meaning is the field's description.

    A run on embedded data says under the table that it is a small one.
    """
    rows = [
        {"parameter": name, "value": repr(getattr(config, name)), "meaning": field.description or ""}
        for name, field in type(config).model_fields.items()
    ]
    small = getattr(config, "dataset", None) == "shapes"
    return Table(pd.DataFrame(rows), SMALL_RUN if small else "")


def dataset_table(dataset: Dataset) -> Table:
    """Images and captions of each split, captions per image, and what the loader noticed."""
    rows = []
    for split in dataset.splits.values():
        per_image = np.bincount(split.image_of_caption_M, minlength=len(split.images))
        low, high = per_image.min(), per_image.max()
        rows.append(
            {
                "split": split.name,
                "images": f"{len(split.images):,}",
                "captions": f"{len(split.captions):,}",
                "captions per image": f"{low}" if low == high else f"{low}–{high}",
                "chance R@1": f"{percent(1 / len(split.images))} %",
            }
        )
    notes = [f"{dataset.name}, fingerprint {dataset.fingerprint}.", *dataset.notes]
    return Table(pd.DataFrame(rows), " ".join(notes))


def lineage_table(*runs: str) -> Table:
    """Where runs come from: data, model size, epochs, parent, and what the tokenizer loses of the captions.

    Raises:
        FileNotFoundError, ValueError: a run that is missing or damaged.
    """
    rows, warnings = [], []
    for run in runs:
        config, environment = stored_config(run), stored_environment(run)
        parent = environment["parent"]
        data = environment["data"]
        losses = environment.get("tokenizer_losses")
        unknown, cut = ("–", "–")  # older runs did not count
        if losses:
            unknown, cut = (f"{percent(share)} %" for share in loss_shares(losses))
            warnings += [f"{run}: {warning}"] if (warning := losses_warning(losses)) else []
        rows.append(
            {
                "run": run,
                "from": f"{parent['run']}, {parent['checkpoint']}" if parent else "scratch",
                "epochs": config.epochs,
                "first lr": f"{config.lr:g}",
                "tokenizer": config.tokenizer,
                "unknown tokens": unknown,
                "cut captions": cut,
                "weights": f"{environment['trainable_weights']:,}",
                "data": f"{data['name']} {data['fingerprint']}",
                "images": " / ".join(f"{n['images']:,}" for n in data["splits"].values()),
            }
        )
    caption = (
        "Unknown and cut: of the validation captions. Weights: those that training changes."
        " Images: train / val / test."
    )
    return Table(pd.DataFrame(rows), " ".join([caption, *warnings]))


def results_table(results: list[dict], protocol: str = "standard") -> Table:
    """One row per run and direction: R@K with hits and interval, chance, ranks, rsum, ties.

    Args:
        results: `results.json` of each run, all measured on the same data.
        protocol: `standard` or `paired`.

    Raises:
        ValueError: no results, a run without that protocol, or runs measured on different data.
    """
    check_one_scope(results, protocol)
    rows = []
    for result in results:
        summary = summary_of(result, protocol)
        for direction in DIRECTIONS:
            part = summary[direction]
            rows.append(
                {"run": result["run"], "direction": DIRECTION_NAMES[direction]}
                | {
                    f"R@{k[1:]}": f"{recall_text(part[k])}, {part[k]['hits']:,}/{part['n']:,}"
                    for k in RECALLS
                }
                | {"chance R@1": f"{percent(part['r1']['chance'])} %"}
                | {"median rank": f"{part['median_rank']:g} of {part['gallery']:,}"}
                | {"tied": f"{part['tied']:,}", "rsum": percent(summary["rsum"])}
            )
    caption = f"{result_scope(results[0], protocol)} · best checkpoint of each run · 95 % intervals · hits/n"
    for name, ceiling in (summary_of(results[0], protocol).get("ceiling") or {}).items():
        if ceiling < 1:
            direction, k = name.split("_r")
            caption += f" · a perfect model reaches {percent(ceiling)} % {DIRECTION_NAMES[direction]} R@{k}"
    return Table(pd.DataFrame(rows), caption)


def best_epochs_table(history: list[dict], dataset: str, best_by: str = "rsum") -> Table:
    """The best epoch of each phase on the validation split, with intervals.

    Args:
        history: rows of `history.jsonl`.
        dataset: name of the data set.
        best_by: validation metric that decides, `rsum` or `mean_r1`.

    Raises:
        ValueError: the history is empty or has no metric `best_by`.
    """
    rows = []
    for part in phases(history):
        best = best_row(part, best_by)
        rows.append(
            {
                "phase": best["phase"],
                "run": best["run"],
                "epochs": f"{part[0]['epoch']}–{part[-1]['epoch']}",
                "best epoch": best["epoch"],
                "image → text R@1": recall_text(best["val"]["i2t"]["r1"]),
                "text → image R@1": recall_text(best["val"]["t2i"]["r1"]),
                "mean R@1": f"{percent(best['val']['mean_r1'])} %",
                "rsum": percent(best["val"]["rsum"]),
                "training loss": f"{best['train_loss']:.3f}",
            }
        )
    return Table(
        pd.DataFrame(rows),
        f"{scope(dataset, 'val', history[-1]['val'])} · best by {best_by} · 95 % intervals",
    )


def published_table(results: list[dict] = ()) -> Table:
    """Published Flickr8k test figures, and our runs among them, by what each was pretrained on.

    Args:
        results: `results.json` of our runs on Flickr8k's test split; none shows the published alone.

    Raises:
        ValueError: a run that may not stand beside them (`published.why_not_published`).
    """
    if results:
        published.check_publishable(results)
    rows = [
        {"system": p.system, "pretrained on": p.pretrained_on, "image → text R@1/5/10": _triple(p.i2t)}
        | {"text → image R@1/5/10": _triple(p.t2i), "note": p.note}
        for p in sorted(published.PUBLISHED, key=lambda p: published.GROUPS.index(p.group))
    ]
    ours = [_our_row(result) for result in results]
    return Table(
        pd.DataFrame([*ours, *rows]),
        "flickr8k · test split · protocol standard · 1,000 image and 5,000 caption queries · percent · "
        + " ".join(published.TRAPS),
    )


def reference_table(results: list[dict]) -> Table:
    """Our Flickr8k runs beside the reference experiment, under its `paired` protocol and `standard`.

    Args:
        results: `results.json` of our runs on Flickr8k's test split, with both protocols.

    Raises:
        ValueError: a run that may not stand beside published figures, or without `paired`.
    """
    published.check_publishable(results)
    reference = {
        "run": "the reference, as published",
        "paired I→T R@1/5/10": _triple(published.REFERENCE_TEST["i2t"]),
        "paired T→I R@1/5/10": _triple(published.REFERENCE_TEST["t2i"]),
        "standard I→T R@1": f"{published.REFERENCE_TEST_STANDARD_R1['i2t']:.2f}",
        "standard T→I R@1": f"{published.REFERENCE_TEST_STANDARD_R1['t2i']:.2f}",
    }
    rows = [reference]
    for result in results:
        paired, standard = summary_of(result, "paired"), summary_of(result, "standard")
        rows.append(
            {
                "run": result["run"],
                "paired I→T R@1/5/10": _values(paired["i2t"], 2),
                "paired T→I R@1/5/10": _values(paired["t2i"], 2),
                "standard I→T R@1": recall_text(standard["i2t"]["r1"]),
                "standard T→I R@1": recall_text(standard["t2i"]["r1"]),
            }
        )
    return Table(
        pd.DataFrame(rows),
        "flickr8k · test split · 1,000 images with five captions each · percent, ours with 95 % intervals ·"
        " under paired a perfect model reaches 20 % I→T R@1, and T→I hangs on how an image's equal rows are"
        " ordered (ours counts ties against the model) · the reference drew its own random split, ours"
        " is the official one, so this shows the order of magnitude and is no test of a difference",
    )


def _html_cell(text: str, tag: str) -> str:
    """A cell whose names and intervals stay on one line: breaks come at spaces of long texts alone."""
    nowrap = ";white-space:nowrap" if tag == "td" and len(text) <= 16 else ""
    style = f"text-align:left;vertical-align:top{nowrap}"
    return f'<{tag} style="{style}">{html.escape(text).replace("–", "–&#8288;")}</{tag}>'


def _our_row(result: dict) -> dict:
    summary = summary_of(result, "standard")
    return {
        "system": f"{result['run']} (this project)",
        "pretrained on": "nothing" if result["pretraining"] == "none" else result["pretraining"],
        "image → text R@1/5/10": _values(summary["i2t"], 1),
        "text → image R@1/5/10": _values(summary["t2i"], 1),
        "note": "R@1 "
        + ", ".join(f"{d.replace('2', '→').upper()} {recall_text(summary[d]['r1'])}" for d in DIRECTIONS),
    }


def _values(part: dict, decimals: int) -> str:
    return "/".join(f"{100 * part[f'r{k}']['value']:.{decimals}f}" for k in (1, 5, 10))


def _triple(recalls: published.Recalls) -> str:
    return "/".join("–" if value is None else f"{value:g}" for value in recalls)


def check_run(run: str) -> Table:
    """Compares a run's folder with what its parameters promise.

    Returns:
        One row per check.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    config, history = stored_config(run), read_history(run)
    environment = stored_environment(run)
    parent = environment["parent"]
    first = 1 + (parent["epoch"] if parent else 0)
    own = [row for row in history if row["run"] == run]
    best = max(own, key=lambda row: row["val"][config.select_by])["epoch"] if own else None
    first_lr = learning_rate(config, 0, 0, own[0]["steps"]) if own else None
    checks = [
        ("state", "complete", run_state(run)[0]),
        ("epochs of this run", list(range(first, first + config.epochs)), [row["epoch"] for row in own]),
        (
            "no epoch of the lineage is missing",
            list(range(1, len(history) + 1)),
            [r["epoch"] for r in history],
        ),
        ("lr of the first step", first_lr, own[0]["lr"] if own else None),
        ("best checkpoint is of the best epoch", best, _epoch_of_best(run)),
        ("data of the parent", *_fingerprints(environment, parent)),
    ]
    return _passed(run, [check for check in checks if check[2] is not None])


def evaluation_checks(results: list[dict]) -> Table:
    """Compares evaluated results with the definitions of their protocols.

    Args:
        results: `results.json` of each run.

    Returns:
        One row per run and check.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    tables = []
    for result in results:
        standard, paired = (summary_of(result, name) for name in ("standard", "paired"))
        sizes = result["data"]["splits"][result["split"]]
        ranks = RetrievalRanks.load(run_folder(result["run"]) / "ranks.npz")
        per_image = np.bincount(ranks.image_of_text_M)
        checks = [
            ("image queries are the split's images", sizes["images"], standard["i2t"]["n"]),
            ("caption queries are the split's captions", sizes["captions"], standard["t2i"]["n"]),
            ("the results are those of the kept ranks", summarise(ranks), standard),
        ]
        if len(set(per_image)) == 1:  # exact only where every image has as many captions
            hits = [part["i2t"]["r1"]["hits"] for part in (standard, paired)]
            checks.append(("paired and standard agree on image → text hits at 1", *hits))
        tables.append(_passed(result["run"], checks).frame)
    return Table(pd.concat(tables))


def _passed(run: str, checks: list[tuple]) -> Table:
    """A table of (what, expected, found), if all are equal; a ValueError otherwise."""
    failed = [
        f"{what}: expected {expected}, found {found}" for what, expected, found in checks if expected != found
    ]
    if failed:
        raise ValueError(f"run {run!r} fails its checks: {'; '.join(failed)}")
    return Table(pd.DataFrame([{"run": run, "check": what, "": "✓"} for what, _, _ in checks]))


def _epoch_of_best(run: str) -> int:
    return load_checkpoint(run_folder(run) / "best.pt")["best"]["epoch"]


def _fingerprints(environment: dict, parent: dict | None) -> tuple[str | None, str | None]:
    if parent is None:
        return None, None
    there = stored_environment(parent["run"])["data"]["fingerprint"]
    return there, environment["data"]["fingerprint"]
