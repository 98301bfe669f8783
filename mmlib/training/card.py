"""What is said of a run: its best epoch, signs that it went wrong although its loss is finite, its card."""

import json
import logging
import re

from mmlib import files
from mmlib.config import IDENTITY, TrainConfig, unread
from mmlib.config.page import given, value_text
from mmlib.config.parameters import OWN, PLACE
from mmlib.data.tokenizers import losses_warning
from mmlib.metrics.summary import percent, result_rows, scope
from mmlib.output import plain_text, table_lines
from mmlib.training.runs import (
    RunFolder,
    pretrained_encoders,
    read_history,
    read_result,
    stored_config,
    stored_environment,
)

logger = logging.getLogger(__name__)

COLLAPSED = 0.01  # spread below which all embeddings count as one point
GUESSING = 0.98  # share of ln B from which a loss counts as that of guessing


def collapse_in(row: dict) -> str | None:
    """Which embeddings of this epoch of a history lie at one point, in words; None if none do."""
    if not (health := row.get("health")):
        return None
    spreads = {side: health[f"{side}_spread"] for side in ("image", "caption")}
    side = min(spreads, key=spreads.get)
    if spreads[side] >= COLLAPSED:
        return None
    return f"the {side} embeddings have collapsed to one point (spread {spreads[side]:.3f})"


def health_warning(rows: list[dict]) -> str | None:
    """What is wrong after the last of these epochs, in words; None if nothing is.

    Args:
        rows: of one phase's history, in order.
    """
    healths = [row.get("health") for row in rows]
    if not healths or healths[-1] is None:
        return None
    if collapse := collapse_in(rows[-1]):
        return f"{collapse}: nothing tells them apart; try less dropout, a lower lr or a warm-up"
    last_two = [
        health is not None and health["chance_loss"] and row["train_loss"] >= GUESSING * health["chance_loss"]
        for row, health in zip(rows[-2:], healths[-2:])
    ]
    if len(last_two) == 2 and all(last_two):
        return (
            f"the loss has stayed at ln B = {healths[-1]['chance_loss']:.3f}, that of guessing, for two"
            " epochs; try another lr, or look at the data"
        )
    return None


def phases(history: list[dict]) -> list[list[dict]]:
    """The rows of a history, one list a phase, in order.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError(
            "the history is empty: expected at least one finished epoch; the run stopped before its"
            " first validation, see its status.json"
        )
    return [
        [row for row in history if row["phase"] == phase] for phase in sorted({r["phase"] for r in history})
    ]


def best_row(rows: list[dict], by: str = "rsum") -> dict:
    """The epoch with the highest validation metric, the earliest of equals; by `last`, the last one.

    Raises:
        ValueError: the metric is not in the validation summary.
    """
    if by == "last":
        return rows[-1]
    for row in rows:
        if by not in row["val"]:
            raise ValueError(
                f"best by {by!r}: expected a metric of the validation summary ('rsum' or 'mean_r1'),"
                f" not found at epoch {row['epoch']}"
            )
    return max(rows, key=lambda row: row["val"][by])


def outcome(rows: list[dict], by: str = "rsum") -> str:
    """A sentence on what came of a phase on the validation split.

    Args:
        rows: of the phase's history.
        by: what chose its epoch, as for `best_row`.
    """
    best = best_row(rows, by)
    i2t, t2i = best["val"]["i2t"], best["val"]["t2i"]
    return (
        f"{best['run']} {'ended' if by == 'last' else 'was best'} after epoch {best['epoch']} of"
        f" {rows[-1]['epoch']}:"
        f" {percent(i2t['r1']['value'])} % of {i2t['n']:,} images find a caption of theirs first,"
        f" {percent(t2i['r1']['value'])} % of {t2i['n']:,} captions their image"
        f" (by chance {percent(t2i['r1']['chance'])} %)."
    )


# --- the card of a run, its README.md

_KINDS = {"published": "memory network", "cosine": "dual encoder with a memory", "none": "dual encoder"}
_DATA = {  # what a model knows, by its data set
    "shapes": "It knows drawn shapes alone: its numbers say nothing of photographs.",
    "folder": "It knows what the captions of these photos speak of, in their words, and hardly more.",
}
_NAMING = re.compile(r"^(Left out: [^:]*|Captions without text: [^,]*)(: |, of ).*", re.DOTALL)
_CONTINUE = "params/demo/02_continue.yaml"
_FEW = 100  # images below which an interval is wide


def write_card(folder: RunFolder) -> None:
    """Writes the card of a run into its folder, as its `README.md`.

    A card that cannot be made or written costs nothing else: it is told of in the log.

    Raises:
        RuntimeError: the folder was deleted, moved or replaced.
    """
    run = folder.path.name
    try:
        folder.write("README.md", card(run).encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        logger.warning("run %s has no card that is up to date: %s", run, error)


def card(run: str) -> str:
    """What one has to know of a complete run before one uses it, in Markdown, from the files of its folder.

    An evaluation that is damaged is told of.

    Raises:
        FileNotFoundError, ValueError: the run lacks another file, or it is damaged.
    """
    config, environment, history = stored_config(run), stored_environment(run), read_history(run)
    parent, rows, name = environment["parent"], phases(history)[-1], environment["data"]["name"]
    about = f"A {_KINDS[config.memory]} that finds images by a sentence and sentences by an image, trained on"
    about += f" {plain_text(name)}."
    if parent:
        link = f"[{plain_text(parent['run'])}](../{parent['run']}/README.md)"
        about += f" It goes on from {link}, checkpoint {parent['checkpoint']} of epoch {parent['epoch']}."
    used = rows[: rows.index(best_row(rows, config.select_by)) + 1]
    ill = {
        health_warning(part): part[-1]["epoch"] for part in (rows, used)
    }  # of equal words, those on `used`
    parts = {
        "Data": _data(config, environment),
        "Recipe": _recipe(config, environment),
        "Numbers": _numbers(run, config, rows, name),
        "Limits": [f"- {limit}" for limit in _limits(config, environment)],
        "Use": ["```sh", *_uses(run), "```"],
        "Make it again": ["```sh", _again(run, config, parent), "```", "", _origin(environment)],
    }
    lines = [f"# {plain_text(run)}", "", about]
    lines += [f"\n**Warning**, epoch {epoch}: {words}." for words, epoch in ill.items() if words]
    for title, part in parts.items():
        lines += ["", f"## {title}", "", *part]
    return "\n".join(lines) + "\n"


def _data(config: TrainConfig, environment: dict) -> list[str]:
    data = environment["data"]
    rows = [("split", "images", "captions", "chance R@1")]
    rows += [
        (split, f"{n['images']:,}", f"{n['captions']:,}", f"{percent(1 / max(n['images'], 1))} %")
        for split, n in data["splits"].items()
    ]
    notes = environment.get("notes") or []  # older runs did not keep them
    if config.private:  # those name photos
        notes = [_NAMING.sub(r"\1.", note) for note in notes]
    said = [f"{data['name']}, fingerprint {data['fingerprint']}.", *notes]
    if config.private:
        said.append("Private: photos and captions are not to be passed on.")
    return [*table_lines(rows), "", plain_text(" ".join(said))]


def _recipe(config: TrainConfig, environment: dict) -> list[str]:
    learned = pretrained_encoders(config)
    towers = [
        f"{side} encoder "
        + _without_folders(learned.get(side) or f"{getattr(config, f'{side}_encoder')}, from scratch")
        for side in ("image", "text")
    ]
    away = [f"{n} {_without_folders(getattr(config, n))}" for n in given(config) if n not in PLACE]
    size = f"{environment['trainable_weights']:,} weights that training changes"
    return [plain_text(f"{'; '.join([*towers, size])}. Away from the defaults: {', '.join(away)}.")]


def _without_folders(value) -> str:
    """A parameter in words, paths of this machine by their last part."""
    if isinstance(value, list):
        return ", ".join(map(_without_folders, value)) or "–"
    return re.sub(r"(?s)^(\w+:)?[/~].*/", r"\1…/", value_text(value))


def _numbers(run: str, config: TrainConfig, rows: list[dict], name: str) -> list[str]:
    best, by = best_row(rows, config.select_by), config.select_by
    cells = result_rows(f"validation, epoch {best['epoch']}", best["val"])
    how = "the last epoch" if by == "last" else f"best by {by}, which flatters a little"
    notes = [plain_text(f"Validation: {scope(name, 'val', best['val'])}; {how}.")]
    command = f"`python -m mmlib evaluate params/demo/03_evaluate.yaml -p runs {run}`"
    try:
        result = read_result(run)
    except FileNotFoundError:
        notes.append(f"Not evaluated yet: {command}.")
    except ValueError as error:
        why = plain_text(str(error).replace(f"{files.RUNS}/", ""))
        notes.append(f"There was an evaluation, which cannot be read ({why}): {command}.")
    else:
        where = f"epoch {result['epoch']}, checkpoint {result['checkpoint']}"
        if result.get("wise_ft", 1) != 1:
            where += f", {result['wise_ft']:g} of its weights, the rest those that it started from"
        for protocol, summary in result["protocols"].items():
            if protocol != "paired":  # for the reference experiment alone
                label = result["split"] + ("" if protocol == "standard" else f", {protocol}")
                measured = scope(result["data"]["name"], result["split"], summary)
                cells += result_rows(label, summary)
                notes.append(plain_text(f"Evaluation: {measured}; {where}."))
    head = ["measured on", *list(cells[0])[1:]]
    notes.append("95 % intervals over queries, hits/n.")
    said = plain_text(outcome(rows, by))
    return [said, "", *table_lines([head, *(row.values() for row in cells)]), "", " ".join(notes)]


def _limits(config: TrainConfig, environment: dict) -> list[str]:
    sizes, learned = environment["data"]["splits"], pretrained_encoders(config)
    limits = [
        f"One training with one seed ({config.seed}): what another seed would give is not in the intervals.",
        _DATA.get(config.dataset, "It knows what the captions of these photos speak of, in their words."),
    ]
    if learned:
        limits.append("What a pretrained encoder has seen is not known here; it may be these very photos.")
    held_out = {split: n["images"] for split, n in sizes.items() if split != "train"}
    words = plain_text(" and ".join(f"{n:,} {split}" for split, n in held_out.items()))
    few = ": few, so the intervals are wide" if min(held_out.values(), default=_FEW) < _FEW else ""
    limits.append(f"Held out are {words} images{few}; among more, every recall is lower.")
    shape = "squashed to a square" if config.resize == "squash" else "cut to the square in their middle"
    if config.dataset != "shapes":
        limits.append(f"Photos are {shape} of {config.image_size} pixels.")
    losses = environment.get("tokenizer_losses")
    if losses and (warning := losses_warning(losses)):
        limits.append(plain_text(warning))
    if config.private:
        limits.append("Files beside this hold private photos, captions and words: pass on this alone.")
    return [*limits, "A similarity orders the images of one query; it is no probability."]


def _uses(run: str) -> list[str]:
    return [
        f"python -m mmlib index {run} path/to/photos",
        f'python -m mmlib search {run} "a sentence"',
        f"python -m mmlib export {run} --out towers  # for use without torch",
        _command(_CONTINUE, f"{run}-next", {"parent": run, "epochs": 5, "lr": 0.0001}),
    ]


def _again(run: str, config: TrainConfig, parent: dict | None) -> str:
    """The command that trains a run anew."""
    if not parent:
        runs = files.shown(files.RUNS)
        place = f"{'$MMLIB_RUNS' if runs.startswith('/') else runs}/{run}/config.json"
        defaults = {name: TrainConfig.model_fields[name].default for name in unread(config)}
        return _command(place, f"{run}-again", defaults | ({"overwrite": False} if config.overwrite else {}))
    before = stored_config(parent["run"])
    named = {"parent": parent["run"], "parent_checkpoint": parent["checkpoint"]}
    named |= {"optimizer_state": "reset"} if parent.get("optimizer_state") == "reset" else {}
    named |= {name: getattr(config, name) for name in OWN}
    others = [name for name in TrainConfig.model_fields if name not in (*named, *IDENTITY, *PLACE)]
    named |= {n: getattr(config, n) for n in others if getattr(config, n) != getattr(before, n)}
    return _command(_CONTINUE, f"{run}-again", named)


def _command(file: str, run: str, named: dict) -> str:
    named = {"run": run if files.is_name(run) else "again", **named}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}
    return " ".join([f"python -m mmlib train {file}", *(f"-p {name} {text}" for name, text in texts.items())])


def _origin(environment: dict) -> str:
    versions = environment.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    changes = ", with changes" if environment.get("dirty") else ""
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "mmlib", "torch") if name in versions
    )
    return plain_text(
        f"Commit {environment.get('commit') or 'not known'}{changes}; {environment.get('device', '')};"
        f" {environment.get('started', '')}; {packages}; the rest in environment.json."
    )
