"""What the files of a run must hold to be reported on, checked as they are read.

Each schema names the fields that a table, figure or page relies on, and no others: files of a later
version may say more.  Values are handed on as they were read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, create_model, model_validator

from mmlib import files
from mmlib.config.parameters import Name
from mmlib.files import parse_json, printable, read_json

AGAIN = "bring it back from a copy, or make it again"
DECIDES = "mean_r1"  # the one figure that decides an ablation's claims, named before anything is measured

_DEPTH = 30  # brackets within brackets; no file of ours has half as many

Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(max_length=1000)]  # of a title, an axis or a cell
Values = dict[Words, str | bool | int | float | list | dict | None]  # of parameters


def fields(**kinds: Any) -> type[BaseModel]:
    """A JSON object with these fields; a pair of type and default stands for one that may be missing.

    Strict, since a text is not a number, and open to more fields.
    """
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    parts = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in kinds.items()}
    return create_model("Object", __config__=strict, **parts)


def _expect(holds: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}")


# --- history.jsonl, environment.json, status.json, results.json

Recall = fields(value=Share, hits=Count, low=Share, high=Share, chance=Share)
OneWay = fields(
    n=Annotated[Count, Field(ge=1)],
    gallery=Annotated[float, Field(ge=0, le=2**53)],  # the mean over folds may be no whole number
    median_rank=Number,
    tied=Count,
    **dict.fromkeys(("r1", "r5", "r10"), Recall),
)
Ceiling = dict[Annotated[str, Field(pattern=r"^(i2t|t2i)_r\d+$")], Share]
Summary = fields(
    protocol=Words, folds=(Count | None, None), rsum=Number, mean_r1=Share, i2t=OneWay, t2i=OneWay,
    ceiling=(Ceiling | None, None),
)  # fmt: skip
Sizes = fields(images=Count, captions=Count)
Data = fields(
    name=Words, fingerprint=Words, splits=dict[Words, Sizes], held_out_fingerprint=(Words | None, None)
)
TokenizerLosses = fields(
    tokenizer=Words, **dict.fromkeys(("max_tokens", "captions", "cut", "tokens", "unknown", "longest"), Count)
)
Origin = fields(run=Name, checkpoint=Literal["best", "last"], epoch=Count)
Environment = fields(
    data=Data,
    parent=Origin | None,
    trainable_weights=Count,
    tokenizer_losses=(TokenizerLosses | None, None),  # older runs did not count
)
Choice = fields(select_by=(Literal["rsum", "mean_r1"], "rsum"))
Status = fields(
    state=Literal["running", "complete", "failed", "interrupted", "killed"], reason=(str | None, None)
)
Ordinal = Annotated[int, Field(ge=1, le=10**9)]
Epoch = fields(
    epoch=Ordinal, phase=Ordinal, run=Name, lr=Number, steps=Count, train_loss=Number, val=Summary,
    seconds=Number, pairs_per_s=Number,
)  # fmt: skip


class Result(
    fields(
        run=Name, checkpoint=Words, epoch=Count, split=Words, data=Data, pretraining=Words,
        protocols=dict[Words, Summary],
    )
):  # fmt: skip
    """`results.json` of a run."""

    @model_validator(mode="after")
    def _has_the_standard_protocol_and_its_split(self):
        _expect("standard" in self.protocols, "numbers under the protocol 'standard'")
        _expect(self.split in self.data.splits, f"the sizes of the split {self.split!r} in data.splits")
        return self


# --- queries.json, diagnosis.json, gallery.npz, slots.npz

Queries = fields(fingerprint=Words, split=Words, redistributable=bool, images=list[str], captions=list[str])
_Group = fields(group=Words, n=Count, value=Share, low=Share, high=Share)
_Groups = dict[Words, fields(r1=list[_Group], r10=list[_Group])]
_Hubs = fields(
    k=Count, gallery=Count, expected=Number, largest=Count, skewness=Number, never=Share,
    never_by_chance=Share,
)  # fmt: skip
_Histogram = fields(n=Annotated[int, Field(ge=1)], counts=list[Count])
_PARTS = ("positive", "hardest_i2t", "hardest_t2i")
_Margin = fields(value=Share, low=Share, high=Share, margin_low=Number, margin_high=Number)
_Agreement = fields(
    tau=Number | None, low=(Number | None, None), high=(Number | None, None), variant=Words, n=Count,
    images=(Count, 0), own_left_out=Count, unscored=dict[Words, Count], reason=(Words, ""),
)  # fmt: skip
_Hits = fields(value=Share, hits=Count, low=Share, high=Share)
_Judged = fields(n=Count, judged=Count, extended=Count, **dict.fromkeys(("r1", "r5", "r10"), _Hits))
_People = fields(
    expert=_Agreement | None,
    crowdflower=_Agreement | None,
    human_aware=list[fields(threshold=Literal[3.0, 4.0], i2t=_Judged, t2i=_Judged)] | None,
    caption_numbers=Words,
)


class Diagnosis(
    fields(
        data=Data,
        split=Words,
        standard=Summary,
        groups=fields(i2t=_Groups, t2i=_Groups),
        hubness=fields(i2t=_Hubs, t2i=_Hubs),
        similarity=fields(
            edges=Annotated[list[Number], Field(min_length=2)], **dict.fromkeys(_PARTS, _Histogram)
        ),
        calibration=fields(i2t=list[_Margin], t2i=list[_Margin]),
        people=_People | None,
    )
):
    """`diagnosis.json`."""

    @model_validator(mode="after")
    def _parts_fit_together(self):
        length, bins = self.groups.t2i.get("length"), len(self.similarity.edges) - 1
        _expect(length and length.r1 and length.r10, "groups of captions by length at 1 and 10")
        for part in _PARTS:
            _expect(len(getattr(self.similarity, part).counts) == bins, f"{bins} counts in {part}")
        for found in (self.people.expert, self.people.crowdflower) if self.people else ():
            whole = not found or found.tau is None or None not in (found.low, found.high)
            _expect(whole, "low and high beside tau")
        return self


# By name, kinds of dtype and axes: one letter stands for one length.
_GALLERY = {
    "t2i_query": ("U", "Q"), "t2i_thumbs": ("u", "QKHW3"), "t2i_hit": ("b", "QK"), "t2i_rank": ("iu", "Q"),
    "i2t_query": ("u", "qhw3"), "i2t_captions": ("U", "qk"), "i2t_hit": ("b", "qk"), "i2t_rank": ("iu", "q"),
    "redistributable": ("b", ""),
}  # fmt: skip
_NEIGHBOURS = {
    "t2i_top": ("i", "MK"), "t2i_similarity": ("f", "MK"), "i2t_top": ("i", "Nk"),
    "i2t_similarity": ("f", "Nk"), "sheets": ("u", "B"), "sheet_sizes": ("i", "S"),
}  # fmt: skip
_BLOCKS = ("image", "text", "central_image", "central_text")
_Pair = Annotated[tuple[str, float], Strict(False)]  # of a word and a number; JSON has no tuples
_Readers = fields(top=list[fields(slot=Count, share=Share, read_by=list[_Pair])])


def check_arrays(arrays: Mapping[str, np.ndarray], name: str, where: str) -> None:
    """Passes if arrays are those of `gallery`, `neighbours` or `slots`; the last two may have none.

    Raises:
        ValueError: one is missing, of another kind or another shape; names file and array.
    """
    if name == "gallery":
        _check_shapes(arrays, _GALLERY, where)
    if name == "neighbours" and arrays:
        _check_shapes(arrays, _NEIGHBOURS, where)
    for block in _BLOCKS if name == "slots" and arrays else ():
        _check_shapes(arrays, {f"{block}_weight": ("f", "S"), f"{block}_top": ("U", "")}, where)
        weight_S, place = arrays[f"{block}_weight"], f"{where}, {block}_top,"
        if not (np.isfinite(weight_S).all() and (weight_S >= 0).all()):
            raise ValueError(f"{where} is damaged: expected numbers of at least 0 in {block}_weight; {AGAIN}")
        checked({"top": parse_json(str(arrays[f"{block}_top"]), place)}, _Readers, place)


def _check_shapes(arrays: Mapping[str, np.ndarray], expected: dict[str, tuple[str, str]], where: str) -> None:
    lengths = {"3": 3}
    for name, (kinds, axes) in expected.items():
        array = arrays.get(name, np.empty(0, "V1"))
        fits = array.dtype.kind in kinds and array.ndim == len(axes)
        for axis, length in zip(axes, array.shape):
            fits &= lengths.setdefault(axis, length) == length and (length > 0 or axis in "Qq")
        if not fits:
            found = f"{array.dtype} of shape {array.shape}" if name in arrays else "nothing"
            raise ValueError(
                f"{where} is damaged: expected {name} of kind {kinds} and shape ({', '.join(axes)}), found"
                f" {found}; {AGAIN}"
            )


# --- ablation.json

_RECALLS = tuple(f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10))
_Metric = fields(mean=Number, low=Number | None, high=Number | None, values=list[Number])
_Interval = fields(mean=Number, low=Number, high=Number, values=list[Number])
_Metrics = fields(
    **dict.fromkeys(_RECALLS, _Interval),
    **dict.fromkeys(("i2t_median_rank", "t2i_median_rank", "rsum", "mean_r1"), _Metric),
)
_ENDED = {
    "run": Name, "seed": Count, "state": Words, "reason": str | None, "epoch": Count | None,
    "validation": Number | None,
}  # fmt: skip
_Tried = fields(**_ENDED, tuned=dict[Words, str | bool | int | float | None], chosen=bool)
_Final = fields(**_ENDED, trainable_weights=Count, seconds=Number)
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
_Scope = fields(
    data=Words, fingerprint=Words, split=Literal["val", "test"], protocol=Words, images=Count, captions=Count
)
_Difference = fields(**dict.fromkeys(("a", "b", "difference", "low", "high"), Number))
_Claim = fields(
    claim=Words,
    arm=Words,
    over=Words,
    seeds=list[int],
    verdict=Literal["supported", "contradicted", "no evidence", "not judged"],
    interval=(Words | None, None),
    judged=(Count | None, None),
    p_holm=(Share | None, None),
    metrics=(fields(**dict.fromkeys((DECIDES, "i2t_r1", "t2i_r1"), _Difference)) | None, None),
)


class Ablation(
    fields(
        run=Name,
        seeds=Annotated[list[int], Field(min_length=1)],
        select_by=Literal["rsum", "mean_r1"],
        scope=_Scope | None,
        chance=dict[Words, Share],
        arms=Annotated[list[_Arm], Field(min_length=1, max_length=500)],
        claims=list[_Claim],
    )
):
    """`ablation.json`."""

    @model_validator(mode="after")
    def _parts_fit_together(self):
        for arm in self.arms:
            complete = [run for run in (*arm.tried, *arm.runs) if run.state == "complete"]
            validated = all(run.validation is not None for run in complete)
            _expect(validated, f"the validation metric of complete runs of arm {arm.name!r}")
            measured = arm.metrics or not any(run in arm.runs for run in complete)
            _expect(measured, f"metrics of arm {arm.name!r}, of which runs are complete")
            same = len({tuple(run.tuned) for run in arm.tried}) < 2
            _expect(same, f"the same parameters in all runs that were tried of arm {arm.name!r}")
        judged = [claim for claim in self.claims if claim.verdict != "not judged"]
        for claim in judged:
            numbers = (claim.metrics, claim.interval, claim.judged, claim.p_holm)
            _expect(None not in numbers, f"the numbers behind the verdict on {claim.claim!r}")
        known = {arm.name for arm in self.arms}
        _expect(all({c.arm, c.over} <= known for c in self.claims), "the arms of each claim among arms")
        unmeasured = not judged and not any(arm.metrics for arm in self.arms)
        _expect(self.scope or unmeasured, "the scope of what was measured")
        return self


# --- reports/<experiment>/results.json, as far as the index reads it

Report = fields(
    state=Literal["failed", "killed", "interrupted", "running", "incomplete", "complete"],
    reason=str | None,
    notebooks=dict[Words, fields(page=Name | None)],
    thumbnail=fields(alt=Words) | None,
    metrics=dict[
        Words, fields(data=Data | None, best=list[fields(epoch=Count, val=Summary)], test=Result | None)
    ],
    ablations=(dict[Words, Ablation], {}),
    explorer=(Words | None, None),
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
