"""What the files of a run must hold to be reported on, checked as they are read.

Each model names the fields that a table, figure or page relies on, and no others: files of a later
version may say more.  Values are handed on as they were read.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mmlib import files
from mmlib.config.parameters import Name
from mmlib.files import printable, read_json

AGAIN = "bring it back from a copy, or make it again"

VERDICTS = ("supported", "contradicted", "no evidence", "not judged")
DECIDES = "mean_r1"  # the one figure that decides an ablation's claims, named before anything is measured

_DEPTH = 30  # brackets within brackets; no file of ours has half as many


class Stored(BaseModel):
    """A part of a file: strict, since a text is not a number, and open to more fields."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def _of_this_earth(value: float) -> float:
    if abs(value) > 1e15:
        raise ValueError("expected a number below 1e15")
    return value


Number = Annotated[float, AfterValidator(_of_this_earth)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, Field(max_length=1000)]  # of a title, an axis or a cell
Values = dict[Words, str | bool | int | float | list | dict | None]  # of parameters
Direction = Literal["i2t", "t2i"]


class Recall(Stored):
    """An R@K."""

    value: Share
    hits: Count
    low: Share
    high: Share
    chance: Share


class OneWay(Stored):
    """What a summary says of one direction."""

    n: Annotated[int, Field(ge=1, le=2**53)]
    gallery: Count | Annotated[float, Field(ge=0, le=2**53)]  # the mean over folds may be no whole number
    median_rank: Number
    tied: Count
    r1: Recall
    r5: Recall
    r10: Recall

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_recall(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in ("r1", "r5", "r10") and (not name or (name[0] == "r" and name[1:].isdigit())):
                raise ValueError(f"expected recalls at 1, 5 and 10, found {name!r}")
        return value


class Summary(Stored):
    """Of `mmlib.metrics.summarise`."""

    protocol: Words
    rsum: Number
    mean_r1: Share
    i2t: OneWay
    t2i: OneWay
    ceiling: dict[Annotated[str, Field(pattern=r"^(i2t|t2i)_r\d+$")], Share] | None = None


class Sizes(Stored):
    """Of a split."""

    images: Count
    captions: Count


class Data(Stored):
    """`Dataset.identity`."""

    name: Words
    fingerprint: Words
    splits: dict[Words, Sizes]
    held_out_fingerprint: Words | None = None


class Parameters(Stored):
    """`config.json`, as far as a report reads it."""

    select_by: Literal["rsum", "mean_r1"] = "rsum"


class Origin(Stored):
    """The parent in `environment.json`."""

    run: Name
    checkpoint: Literal["best", "last"]
    epoch: Count


class TokenizerLosses(Stored):
    """Of `mmlib.data.tokenizers.count_losses`."""

    tokenizer: Words
    max_tokens: Count
    captions: Count
    cut: Count
    tokens: Count
    unknown: Count
    longest: Count


class Environment(Stored):
    """`environment.json`."""

    data: Data
    parent: Origin | None
    trainable_weights: Count
    tokenizer_losses: TokenizerLosses | None = None  # older runs did not count


class Status(Stored):
    """`status.json`."""

    state: Literal["running", "complete", "failed", "interrupted", "killed"]
    reason: str | None = None


class Epoch(Stored):
    """A row of `history.jsonl`."""

    epoch: Annotated[int, Field(ge=1, le=10**9)]
    phase: Annotated[int, Field(ge=1, le=10**9)]
    run: Name
    lr: Number
    steps: Count
    train_loss: Number
    val: Summary
    seconds: Number
    pairs_per_s: Number


class Result(Stored):
    """`results.json` of a run."""

    run: Name
    checkpoint: Words
    epoch: Count
    split: Words
    data: Data
    pretraining: Words
    protocols: dict[Words, Summary]

    @model_validator(mode="after")
    def _has_the_standard_protocol_and_its_split(self):
        if "standard" not in self.protocols:
            raise ValueError("expected numbers under the protocol 'standard', found none")
        if self.split not in self.data.splits:
            raise ValueError(f"expected the sizes of the split {self.split!r} in data.splits, found none")
        return self


# --- ablation.json


class _Metric(Stored):
    mean: Number
    low: Number | None
    high: Number | None
    values: list[Number]


class _Ended(Stored):
    run: Name
    seed: Count
    state: Words
    reason: str | None
    epoch: Count | None
    validation: Number | None

    @model_validator(mode="after")
    def _complete_runs_were_validated(self):
        if self.state == "complete" and self.validation is None:
            raise ValueError("expected the validation metric of a complete run, found none")
        return self


class _Tried(_Ended):
    tuned: dict[Words, str | bool | int | float | None]
    chosen: bool


class _Final(_Ended):
    trainable_weights: Count
    seconds: Number


_RECALLS = tuple(f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10))


class _Arm(Stored):
    name: Words
    differs: Values
    tuned: Values
    tried: Annotated[list[_Tried], Field(max_length=1000)]
    runs: Annotated[list[_Final], Field(max_length=1000)]
    pretraining: Words | None
    interval: Literal["queries", "seeds and queries"] | None
    metrics: dict[Words, _Metric]

    @model_validator(mode="after")
    def _complete_runs_were_measured(self):
        if any(run.state == "complete" for run in self.runs) or self.metrics:
            needed = (*_RECALLS, "i2t_median_rank", "t2i_median_rank", "rsum", "mean_r1")
            if lacking := [name for name in needed if name not in self.metrics]:
                raise ValueError(f"expected the metrics {', '.join(needed)}, found no {', '.join(lacking)}")
            if any(self.metrics[n].low is None or self.metrics[n].high is None for n in _RECALLS):
                raise ValueError("expected an interval for each recall")
            if (self.metrics["rsum"].low is None) != (self.metrics["rsum"].high is None):
                raise ValueError("expected both ends of the interval of rsum, or none")
        if len({tuple(run.tuned) for run in self.tried}) > 1:
            raise ValueError("expected the same parameters in all runs that were tried")
        return self


class _Scope(Stored):
    data: Words
    fingerprint: Words
    split: Literal["val", "test"]
    protocol: Words
    images: Count
    captions: Count


class _Difference(Stored):
    a: Number
    b: Number
    difference: Number
    low: Number
    high: Number


class _Claim(Stored):
    claim: Words
    arm: Words
    over: Words
    seeds: list[int]
    verdict: Literal[VERDICTS]
    interval: Words | None = None
    judged: Count | None = None
    p_holm: Share | None = None
    metrics: dict[Words, _Difference] = {}

    @model_validator(mode="after")
    def _a_verdict_has_numbers(self):
        if self.verdict != "not judged":
            lacking = [n for n in (DECIDES, "i2t_r1", "t2i_r1") if n not in self.metrics]
            lacking += [n for n in ("interval", "judged", "p_holm") if getattr(self, n) is None]
            if lacking:
                raise ValueError(f"expected the numbers behind the verdict, found no {', '.join(lacking)}")
        return self


class Record(Stored):
    """`ablation.json`."""

    run: Name
    seeds: Annotated[list[int], Field(min_length=1)]
    select_by: Literal["rsum", "mean_r1"]
    scope: _Scope | None
    chance: dict[Words, Share]
    arms: Annotated[list[_Arm], Field(min_length=1, max_length=500)]
    claims: list[_Claim]

    @model_validator(mode="after")
    def _parts_belong_together(self):
        names = {arm.name for arm in self.arms}
        for claim in self.claims:
            if not {claim.arm, claim.over} <= names:
                raise ValueError(f"expected the arms {claim.arm!r} and {claim.over!r} of a claim among arms")
        measured = any(arm.metrics for arm in self.arms)
        if self.scope is None and (measured or any(c.verdict != "not judged" for c in self.claims)):
            raise ValueError("expected the scope of what was measured, found none")
        return self


# --- reports/<experiment>/results.json


class _Notebook(Stored):
    page: Name | None


class _Thumbnail(Stored):
    alt: Words


class _Best(Stored):
    epoch: Count
    val: Summary


class _Metrics(Stored):
    data: Data | None
    best: list[_Best]
    test: Result | None


class Report(Stored):
    """`results.json` of a report, as far as the index reads it."""

    state: Literal["failed", "killed", "interrupted", "running", "incomplete", "complete"]
    reason: str | None
    notebooks: dict[Words, _Notebook]
    thumbnail: _Thumbnail | None
    metrics: dict[Words, _Metrics]
    ablations: dict[Words, Record] = {}


# --- reading


def read_stored(path: Path, model: type[Stored], what_to_do: str = AGAIN) -> dict:
    """The object in a JSON file of a run, as it stands there.

    Args:
        path: of the file.
        model: what it must hold.
        what_to_do: ends the message of any error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or lacks what `model` expects; names file and field.
    """
    try:
        value = read_json(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}; {what_to_do}") from None
    return checked(value, model, files.shown(path), what_to_do)


def checked(value: Any, model: type[Stored], where: str, what_to_do: str = AGAIN) -> Any:
    """`value`, if it is what `model` expects.

    Args:
        value: of a JSON file.
        model: what it must hold.
        where: the file (and the place in it) that errors name.
        what_to_do: ends the message.

    Raises:
        ValueError: it is not; names the field, what was expected and what was found.
    """
    _check_plain(value, where)
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        found = "nothing" if first["type"] == "missing" else _shown(first["input"])
        message = first["msg"].removeprefix("Value error, ")
        message = "expected it" if first["type"] == "missing" else message[0].lower() + message[1:]
        raise ValueError(
            f"{where} is damaged: {printable(field) or 'its content'}: {message}, found {found}; {what_to_do}"
        ) from None
    return value


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Passes if a value can be written again: no nesting without end, no half characters."""
    if depth > _DEPTH:
        raise ValueError(f"{where} is damaged: found brackets nested more than {_DEPTH} deep; {AGAIN}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"{where} is damaged: expected text, found half a character; {AGAIN}")
    if isinstance(value, dict):
        for name, part in value.items():
            _check_plain(name, where, depth + 1)
            _check_plain(part, where, depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_plain(part, where, depth + 1)


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 80 else text[:77] + "…"
