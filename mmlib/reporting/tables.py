"""Tables of a run, each number with its scope (data set, split, protocol, n); checks that end a notebook."""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from mmlib.config.page import given, value_text
from mmlib.data import Dataset
from mmlib.data.tokenizers import loss_shares, losses_warning
from mmlib.metrics.summary import percent, recall_text, scope
from mmlib.output import plain_text, table_lines
from mmlib.training.card import best_row, health_warning, outcome, phases
from mmlib.training.checkpoint import load_checkpoint
from mmlib.training.optimisation import learning_rate
from mmlib.training.runs import (
    pretrained_encoders,
    read_history,
    run_folder,
    run_state,
    stored_config,
    stored_environment,
)

MARK = "mmlib"  # key of our metadata: on an output its name, on a notebook why it stopped
SMALL_RUN = (
    "A small run on drawn shapes, to see how everything works: its numbers say nothing of photographs."
    " For real data: make report EXPERIMENT=flickr8k-cpu."
)


@dataclass(frozen=True)
class Table:
    """Sentences, a table of texts and its caption: as HTML in notebooks and pages, and as Markdown.

    pandas alone would show its row numbers in HTML, cut long cells and align them to the right.

    Attributes:
        frame: the table; None for sentences alone.
        caption: stands below it.
        sentences: stand above it, in bold.
        folded: a second table that a page shows on demand, under what it is called.
        private: name of an output that a report keeps out of the page that can be shared.
    """

    frame: pd.DataFrame | None = None
    caption: str = ""
    sentences: tuple[str, ...] = ()
    folded: tuple[str, pd.DataFrame] | None = None
    private: str = ""

    def __repr__(self) -> str:
        table = [] if self.frame is None else [self.frame.to_string(index=False)]
        if self.folded:
            table += [f"{self.folded[0]}:", self.folded[1].to_string(index=False)]
        return "\n".join([*self.sentences, *table, *([self.caption] if self.caption else [])])

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{html.escape(sentence)}</strong></p>" for sentence in self.sentences]
        if self.frame is not None:
            parts.append(_html_table(self.frame))
        if self.folded:
            title, frame = self.folded
            parts.append(f"<details><summary>{html.escape(title)}</summary>{_html_table(frame)}</details>")
        if self.caption:
            parts.append(f"<p><small>{html.escape(self.caption)}</small></p>")
        return "".join(parts)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        bundle = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return bundle, {MARK: {"name": self.private, "private": True}} if self.private else {}

    def markdown(self) -> list[str]:
        """The lines of a Markdown text; sentences become its list."""
        lines = [f"- {plain_text(sentence)}" for sentence in self.sentences]
        if self.frame is not None:
            lines += ["", *table_lines([list(self.frame), *self.frame.itertuples(index=False)])]
        return [*lines, *(["", plain_text(self.caption)] if self.caption else [])]


def _html_table(frame: pd.DataFrame) -> str:
    head = _html_row(frame.columns, frame.columns, "th")
    body = "".join(_html_row(frame.columns, row, "td") for row in frame.itertuples(index=False))
    return f'<table class="mmlib"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _html_row(names, row, tag: str) -> str:
    """Cells whose names and intervals stay on one line: breaks come at spaces of long texts alone.

    Each names its column, which a phone shows beside it.
    """
    cells = []
    for name, text in zip(names, map(str, row), strict=True):
        nowrap = ";white-space:nowrap" if tag == "td" and len(text) <= 16 else ""
        of = f' data-label="{html.escape(str(name))}"' if tag == "td" else ' scope="col"'
        content = html.escape(text).replace("–", "–&#8288;")
        cells.append(f'<{tag}{of} style="text-align:left;vertical-align:top{nowrap}">{content}</{tag}>')
    return f"<tr>{''.join(cells)}</tr>"


def p_text(p: float | None) -> str:
    """`0.032`, `< 0.001` where digits would say more than they know, nothing for None."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- tables of a run


def parameter_table(config: BaseModel) -> Table:
    """Parameters with value and meaning: those set away from their default, the others folded."""
    rows = [
        {"parameter": name, "value": value_text(getattr(config, name)), "meaning": field.description or ""}
        for name, field in type(config).model_fields.items()
    ]
    frame, is_given = pd.DataFrame(rows), np.isin([row["parameter"] for row in rows], given(config))
    others = frame[~is_given]
    return Table(
        frame[is_given], folded=(f"{len(others)} more at their defaults", others) if len(others) else None
    )


def dataset_table(dataset: Dataset) -> Table:
    """Images and captions of each split, captions per image, and what the loader noticed.

    Of drawn shapes it says that their numbers say nothing of photographs.
    """
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
    notes += [SMALL_RUN] if dataset.name == "shapes" else []
    return Table(pd.DataFrame(rows), " ".join(notes))


def model_table(model: Any) -> Table:
    """The parts of a torch module: name, kind (of plain containers, what they hold) and number of weights."""
    rows = []
    for name, part in model.named_children():
        held = ", ".join(type(child).__name__ for child in part.children())
        kind = held if type(part).__module__.startswith("torch.") else type(part).__name__
        weights = sum(p.numel() for p in part.parameters())
        rows.append({"part": name, "kind": kind, "weights": f"{weights:,}"})
    return Table(pd.DataFrame(rows), f"{sum(p.numel() for p in model.parameters()):,} weights in all.")


def lineage_table(*runs: str) -> Table:
    """Where runs come from: data, model size, epochs, parent, and what the tokenizer loses of the captions.

    Raises:
        FileNotFoundError, ValueError: a run that is missing or damaged.
    """
    rows, notes = [], ["Unknown and cut: of the validation captions. Weights: those that training changes."]
    for run in runs:
        config, environment = stored_config(run), stored_environment(run)
        parent, data = environment["parent"], environment["data"]
        learned = pretrained_encoders(config)
        losses = environment.get("tokenizer_losses")  # older runs did not count
        unknown, cut = (f"{percent(share)} %" for share in loss_shares(losses)) if losses else ("–", "–")
        if losses and (warning := losses_warning(losses)):
            notes.append(f"{run}: {warning}")
        rows.append(
            {
                "run": run,
                "from": f"{parent['run']}, {parent['checkpoint']}" if parent else "its start",
                "image encoder": learned.get("image", f"{config.image_encoder}, from scratch"),
                "text encoder": learned.get("text", f"{config.text_encoder}, from scratch"),
                "epochs": config.epochs,
                "first lr": f"{config.lr:g}",
                "tokenizer": config.tokenizer,
                "unknown tokens": unknown,
                "cut captions": cut,
                "weights": f"{environment['trainable_weights']:,}",
            }
        )
        images = ", ".join(f"{n['images']:,} {split}" for split, n in data["splits"].items())
        notes.append(f"Data: {data['name']}, fingerprint {data['fingerprint']}; images: {images}.")
    return Table(pd.DataFrame(rows), " ".join(dict.fromkeys(notes)))


def best_epochs_table(history: list[dict], dataset: str, best_by: str = "rsum") -> Table:
    """What came of a training: the best epoch of each phase on the validation split, with intervals.

    A sentence says it of the last phase, and another warns where that went wrong.

    Args:
        history: rows of `history.jsonl`.
        dataset: name of the data set.
        best_by: validation metric that decides, `rsum` or `mean_r1`, or `last`.

    Raises:
        ValueError: the history is empty or has no metric `best_by`.
    """
    rows, sentences = [], []
    for part in phases(history):
        best = best_row(part, best_by)
        i2t, t2i = best["val"]["i2t"], best["val"]["t2i"]
        sentences = [outcome(part, best_by)]
        if warning := health_warning(part):
            sentences.append(f"Epoch {part[-1]['epoch']}: {warning}.")
        rows.append(
            {
                "phase": best["phase"],
                "run": best["run"],
                "epochs": f"{part[0]['epoch']}–{part[-1]['epoch']}",
                "best epoch": best["epoch"],
                "image → text R@1": recall_text(i2t["r1"]),
                "text → image R@1": recall_text(t2i["r1"]),
                "mean R@1": f"{percent(best['val']['mean_r1'])} %",
                "rsum": percent(best["val"]["rsum"]),
                "training loss": f"{best['train_loss']:.3f}",
            }
        )
    chosen = (
        "last epoch" if best_by == "last" else f"best by {best_by}, which flatters a little: quote the test"
    )
    return Table(
        pd.DataFrame(rows),
        f"{scope(dataset, 'val', history[-1]['val'])} · {chosen} · 95 % intervals",
        tuple(sentences),
    )


# --- checks


def health_table(history: list[dict]) -> Table:
    """Whether the training went well: the first, best and last epoch of each phase, and a warning in words.

    Args:
        history: from `mmlib.training.read_history`; rows of older runs have no health and are left out.
    """
    rows, warnings = [], []
    for phase in phases(history):
        if warning := health_warning(phase):
            warnings.append(f"Epoch {phase[-1]['epoch']}: {warning}.")
        shown = {row["epoch"]: row for row in (phase[0], best_row(phase), phase[-1])}
        for row in (row for _, row in sorted(shown.items()) if row.get("health")):
            health = row["health"]
            rows.append(
                {
                    "phase": row["phase"],
                    "epoch": row["epoch"],
                    "training loss": f"{row['train_loss']:.3f}",
                    "ln B": _number(health["chance_loss"], 3),
                    "temperature": _number(row["temperature"], 3),
                    "gradient norm": _number(health["gradient_norm"], 2),
                    "spread of images": _number(health["image_spread"], 3),
                    "spread of captions": _number(health["caption_spread"], 3),
                    "modality gap": _number(health["modality_gap"], 3),
                    **_reads(health.get("memory")),
                }
            )
    caption = (
        "First, best and last epoch of each phase. ln B: the loss of guessing in a batch of B. Gradient norm:"
        " of the epoch's last step, before clipping. Spread: 1 − |mean unit embedding|² on the validation"
        " split, 0 if all lie at one point. Modality gap: distance between the means of images and captions."
    )
    if any("slots read" in row for row in rows):
        caption += (
            " Entropy of reads: of a head's attention on the central memory's slots, by images and captions,"
            " over its maximum: 1 if every slot is read alike. Slots read: given more than twice an even"
            " share by some head of the first 250 images and captions."
        )
    return (
        Table(pd.DataFrame(rows), caption, tuple(warnings)) if rows else Table(sentences=("Not recorded.",))
    )


def _reads(memory: dict | None) -> dict[str, str]:
    if memory is None:
        return {}
    return {
        "entropy of reads": f"{memory['image_entropy']:.2f}, {memory['caption_entropy']:.2f}",
        "slots read": f"{memory['live_slots']} of {memory['slots']}",
    }


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def passed(checks: list[tuple[str, str, Any, Any]], caption: str = "") -> Table:
    """One row per check, if all pass.

    Args:
        checks: run, what is checked, what is expected and what was found.
        caption: of the table.

    Raises:
        ValueError: a check failed; names each with what was expected and found.
    """
    failed = [
        f"run {run!r}: {what}: expected {expected}, found {found}"
        for run, what, expected, found in checks
        if expected != found
    ]
    if failed:
        raise ValueError(f"checks failed: {'; '.join(failed)}")
    return Table(pd.DataFrame([{"run": run, "check": what, "": "✓"} for run, what, *_ in checks]), caption)


def check_run(run: str) -> Table:
    """Compares a run's folder with what its parameters promise.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    config, history, environment = stored_config(run), read_history(run), stored_environment(run)
    parent = environment["parent"]
    first = 1 + (parent["epoch"] if parent else 0)
    own = [row for row in history if row["run"] == run]
    epochs = [row["epoch"] for row in own]
    checks = [
        ("state", "complete", run_state(run)[0]),
        ("epochs of this run", list(range(first, first + config.epochs)), epochs),
        ("no epoch is missing", list(range(1, len(history) + 1)), [row["epoch"] for row in history]),
    ]
    if own:
        best, kept = best_row(own, config.select_by), load_checkpoint(run_folder(run) / "best.pt")
        checks += [
            ("lr of the first step", learning_rate(config, 0, 0, own[0]["steps"]), own[0]["lr"]),
            ("best checkpoint is of the best epoch", best["epoch"], kept["best"]["epoch"]),
        ]
    if parent:
        there = stored_environment(parent["run"])["data"]["fingerprint"]
        checks.append(("data of the parent", there, environment["data"]["fingerprint"]))
    return passed([(run, *check) for check in checks])
