"""What the files of a run must hold to be reported on, checked as they are read.

Each schema names the fields that a table, figure or page relies on, and no others: files of a later
version may say more.  Values are handed on as they were read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from mmlib import files
from mmlib.config.parameters import Name
from mmlib.files import printable, read_json

AGAIN = "bring it back from a copy, or make it again"
DECIDES = "mean_r1"  # the one figure that decides an ablation's claims, named before anything is measured

_DEPTH = 30  # brackets within brackets; no file of ours has half as many

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(max_length=1000)]  # of a title, an axis or a cell
Values = dict[Words, Any]  # of parameters
Metric = Literal["rsum", "mean_r1", "last"]


def fields(may_lack: str = "", check: Callable | None = None, **kinds: Any) -> type[BaseModel]:
    """A JSON object with these fields: strict, since a text is not a number, and open to more of them.

    Args:
        may_lack: the names of those that may be missing or null.
        check: raises ValueError where the fields do not fit together.
        kinds: type of each.
    """
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    parts = {n: (kind | None, None) if n in may_lack.split() else (kind, ...) for n, kind in kinds.items()}
    checks = {"check": model_validator(mode="after")(check)} if check else None
    return create_model("Object", __config__=strict, __validators__=checks, **parts)


def _expect(holds: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}")


# --- history.jsonl, environment.json, status.json, results.json

_Recall = fields(value=Share, hits=Count, low=Share, high=Share, chance=Share)
_OneWay = fields(
    n=Positive,
    gallery=Annotated[float, Field(ge=0, le=2**53)],  # the mean over folds may be no whole number
    median_rank=Number,
    tied=Count,
    **dict.fromkeys(("r1", "r5", "r10"), _Recall),
)
_Ceiling = dict[Annotated[str, Field(pattern=r"^(i2t|t2i)_r\d+$")], Share]
Summary = fields(
    "folds ceiling",
    protocol=Words, folds=Count, rsum=Number, mean_r1=Share, i2t=_OneWay, t2i=_OneWay, ceiling=_Ceiling,
)  # fmt: skip
_Sizes = fields(images=Count, captions=Count)
Data = fields(
    "held_out_fingerprint",
    name=Words, fingerprint=Words, splits=dict[Words, _Sizes], held_out_fingerprint=Words,
)  # fmt: skip
_Losses = fields(
    tokenizer=Words, **dict.fromkeys(("max_tokens", "captions", "cut", "tokens", "unknown", "longest"), Count)
)
_Parent = fields(run=Name, checkpoint=Literal["best", "last"], epoch=Count)
Environment = fields(
    "tokenizer_losses notes",  # which older runs did not keep
    data=Data, parent=_Parent | None, trainable_weights=Count, tokenizer_losses=_Losses, notes=list[Words],
)  # fmt: skip
Choice = fields("select_by", select_by=Metric)
Status = fields("reason", state=Literal["running", "complete", "failed", "interrupted", "killed"], reason=str)
_Reads = fields(image_entropy=Number, caption_entropy=Number, live_slots=Count, slots=Count)
Health = fields(
    "gradient_norm chance_loss memory",
    memory=_Reads | None,  # None without a memory; older runs did not record it
    **dict.fromkeys(
        ("image_spread", "caption_spread", "modality_gap", "gradient_norm", "chance_loss"), Number
    ),
)
Epoch = fields(
    "health temperature",  # older runs have no health
    temperature=Number, health=Health,
    epoch=Positive, phase=Positive, run=Name, lr=Number, steps=Count, train_loss=Number, val=Summary,
    seconds=Number, pairs_per_s=Number,
)  # fmt: skip


def _has_standard(result: BaseModel) -> BaseModel:
    _expect("standard" in result.protocols, "numbers under the protocol 'standard'")
    return result


Result = fields(
    "select_by",  # older ones do not say what chose the checkpoint
    check=_has_standard,
    select_by=Metric,
    run=Name, checkpoint=Words, epoch=Count, split=Words, data=Data, pretraining=Words,
    protocols=dict[Words, Summary],
)  # fmt: skip

# --- queries.json, diagnosis.json

Queries = fields(fingerprint=Words, split=Words, redistributable=bool, images=list[str], captions=list[str])
_Interval = {"value": Share, "low": Share, "high": Share}
_Group = fields(group=Words, n=Count, **_Interval)
_Groups = dict[Words, fields(r1=list[_Group], r10=list[_Group])]
_Hubs = fields(
    k=Count, gallery=Count, expected=Number, largest=Count, skewness=Number, never=Share,
    never_by_chance=Share,
)  # fmt: skip
_HISTOGRAMS = ("positive", "hardest_i2t", "hardest_t2i")
_Margins = list[fields(**_Interval, margin_low=Number, margin_high=Number)]
_Agreement = fields(
    "tau low high images reason",
    tau=Number, low=Number, high=Number, variant=Words, n=Count, images=Count, own_left_out=Count,
    unscored=dict[Words, Count], reason=Words,
)  # fmt: skip
_Hits = dict.fromkeys(("r1", "r5", "r10"), fields(**_Interval, hits=Count))
_Judged = fields(n=Count, judged=Count, extended=Count, **_Hits)
_HumanAware = fields(threshold=Literal[3.0, 4.0], i2t=_Judged, t2i=_Judged)
_People = fields(
    expert=_Agreement | None, crowdflower=_Agreement | None, human_aware=list[_HumanAware] | None,
    caption_numbers=Words,
)  # fmt: skip


def _has_groups_and_bins(diagnosis: BaseModel) -> BaseModel:
    length, bins = diagnosis.groups.t2i.get("length"), len(diagnosis.similarity.edges) - 1
    _expect(length and length.r1 and length.r10, "groups of captions by length at 1 and 10")
    for part in _HISTOGRAMS:
        _expect(len(getattr(diagnosis.similarity, part).counts) == bins, f"{bins} counts in {part}")
    return diagnosis


Diagnosis = fields(
    check=_has_groups_and_bins,
    data=Data,
    split=Words,
    standard=Summary,
    groups=fields(i2t=_Groups, t2i=_Groups),
    hubness=fields(i2t=_Hubs, t2i=_Hubs),
    similarity=fields(
        edges=Annotated[list[Number], Field(min_length=2)],
        **dict.fromkeys(_HISTOGRAMS, fields(n=Positive, counts=list[Count])),
    ),
    calibration=fields(i2t=_Margins, t2i=_Margins),
    people=_People | None,
)

# --- ablation.json

_End = Number | None  # of an interval that not every metric has
_METRICS = ("i2t_median_rank", "t2i_median_rank", "rsum", "mean_r1")
_RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
_Metrics = fields(
    **dict.fromkeys(_METRICS, fields(mean=Number, low=_End, high=_End, values=list[Number])),
    **dict.fromkeys(_RECALLS, fields(mean=Number, low=Number, high=Number, values=list[Number])),
)


def _ended(**kinds: Any) -> Any:
    """A run that is complete, or diverged."""
    kinds |= {"run": Name, "seed": Count, "epoch": Count | None}
    complete = fields(state=Literal["complete"], validation=Number, **kinds)
    diverged = fields(state=Literal["failed", "collapsed"], reason=str | None, **kinds)
    return Annotated[complete | diverged, Field(discriminator="state")]


_Tried = _ended(tuned=dict[Words, str | bool | int | float | None], chosen=bool)
_Final = _ended(trainable_weights=Count, seconds=Number)
_Arm = fields(
    name=Words,
    differs=Values,
    tuned=Values,
    tried=Annotated[list[_Tried], Field(max_length=1000)],
    runs=Annotated[list[_Final], Field(max_length=1000)],
    pretraining=Words | None,
    interval=Literal["queries", "seeds and queries"] | None,
    metrics=_Metrics | Annotated[dict, Field(max_length=0)],
)
_Ensemble = fields(
    name=Words,
    of=list[Words],
    seeds=list[int],
    interval=Literal["queries", "seeds and queries"] | None,
    metrics=_Metrics | Annotated[dict, Field(max_length=0)],
)
_Scope = fields(
    data=Words, fingerprint=Words, split=Literal["val", "test"], protocol=Words, images=Count, captions=Count
)
_Difference = fields(a=Number, b=Number, difference=Number, low=Number, high=Number)
_CLAIM = {"claim": Words, "arm": Words, "over": Words, "seeds": list[int]}
_NotJudged = fields(verdict=Literal["not judged"], **_CLAIM)
_Verdict = fields(
    verdict=Literal["supported", "contradicted", "no evidence"],
    interval=Words,
    judged=Count,
    p_holm=Share,
    metrics=fields(**dict.fromkeys((DECIDES, "i2t_r1", "t2i_r1"), _Difference)),
    **_CLAIM,
)


def _fits_together(record: BaseModel) -> BaseModel:
    for arm in record.arms:
        complete = any(run.state == "complete" for run in arm.runs)
        _expect(arm.metrics or not complete, f"metrics of arm {arm.name!r}, of which a run is complete")
    known = {arm.name for arm in (*record.arms, *(record.ensembles or ()))}
    _expect(all({c.arm, c.over} <= known for c in record.claims), "the arms of each claim among arms")
    measured = [arm for arm in record.arms if arm.metrics]
    judged = [claim for claim in record.claims if claim.verdict != "not judged"]
    _expect(record.scope or not (measured or judged), "the scope of what was measured")
    return record


Ablation = fields(
    "ensembles",
    check=_fits_together,
    run=Name,
    seeds=Annotated[list[int], Field(min_length=1)],
    select_by=Metric,
    scope=_Scope | None,
    chance=dict[Words, Share],
    arms=Annotated[list[_Arm], Field(min_length=1, max_length=500)],
    ensembles=list[_Ensemble],
    claims=list[Annotated[_Verdict | _NotJudged, Field(discriminator="verdict")]],
)

# --- reports/<experiment>/results.json, as far as the index reads it

_RunOfReport = fields(
    "curve",  # which older reports do not have: the validation mean R@1 of each epoch
    data=Data | None, best=list[fields(epoch=Count, val=Summary)], test=Result | None, curve=list[Share],
)  # fmt: skip
Report = fields(
    "ablations command explorer provenance",
    command=Words,
    state=Literal["failed", "killed", "interrupted", "running", "incomplete", "complete"],
    reason=str | None,
    notebooks=dict[Words, fields(page=Name | None)],
    metrics=dict[Words, _RunOfReport],
    ablations=dict[Words, Ablation],
    explorer=Words,
    provenance=dict[Words, fields("started", started=Words)],
)


def read_stored(path: Path, schema: type[BaseModel], what_to_do: str = AGAIN) -> dict:
    """The object in a JSON file of a run, as it stands there.

    Args:
        path: of the file.
        schema: what it must hold.
        what_to_do: ends the message of any error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or lacks what the schema expects; names file and field.
    """
    try:
        value = read_json(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; {what_to_do}") from None
    return checked(value, schema, files.shown(path), what_to_do)


def checked(value: Any, schema: type[BaseModel], where: str, what_to_do: str = AGAIN) -> Any:
    """`value`, if it is what the schema expects.

    Args:
        value: of a JSON file.
        schema: what it must hold.
        where: the file (and the place in it) that errors name.
        what_to_do: ends the message.

    Raises:
        ValueError: it is not; names the field, what was expected and what was found.
    """
    _check_plain(value, where)
    try:
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        found, message = printable(repr(first["input"])), first["msg"].removeprefix("Value error, ")
        found = found if len(found) <= 80 else found[:77] + "…"
        message = f"{message[0].lower()}{message[1:]}, found {found}"
        if first["type"] == "missing":
            message = "expected it, found nothing"
        raise ValueError(
            f"{where} is damaged: {printable(field) or 'its content'}: {message}; {what_to_do}"
        ) from None
    return value


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Passes if a value can be written again: no nesting without end, no half characters."""
    if depth > _DEPTH:
        raise ValueError(f"{where} is damaged: found brackets nested more than {_DEPTH} deep; {AGAIN}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{where} is damaged: expected text, found half a character; {AGAIN}")
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    for part in value if isinstance(value, list | tuple) else ():
        _check_plain(part, where, depth + 1)
