"""What an evaluation leaves for the analysis of errors must hold to be drawn: diagnosis, queries, arrays."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mmlib.files import parse_json
from mmlib.training.stored import (
    AGAIN,
    Count,
    Data,
    Direction,
    Number,
    OneWay,
    Share,
    Stored,
    Summary,
    Words,
    checked,
)


class Queries(Stored):
    """`queries.json`."""

    fingerprint: Words
    split: Words
    redistributable: bool
    images: list[str]
    captions: list[str]


class _Group(Stored):
    group: Words
    n: Count
    value: Share
    low: Share
    high: Share


class _AtK(Stored):
    r1: list[_Group]
    r10: list[_Group]


class _Hubs(Stored):
    k: Count
    gallery: Count
    expected: Number
    largest: Count
    skewness: Number
    never: Share
    never_by_chance: Share


class _Histogram(Stored):
    n: Annotated[int, Field(ge=1)]
    counts: list[Count]


class _Similarity(Stored):
    edges: Annotated[list[Number], Field(min_length=2)]
    positive: _Histogram
    hardest_i2t: _Histogram
    hardest_t2i: _Histogram

    @model_validator(mode="after")
    def _bins_have_edges(self):
        for part in (self.positive, self.hardest_i2t, self.hardest_t2i):
            if len(part.counts) != len(self.edges) - 1:
                raise ValueError(f"expected {len(self.edges) - 1} counts, found {len(part.counts)}")
        return self


class _Margin(Stored):
    margin_low: Number
    margin_high: Number
    value: Share
    low: Share
    high: Share


class _Agreement(Stored):
    tau: Number | None
    variant: Words
    n: Count
    low: Number | None = None
    high: Number | None = None
    images: Count = 0
    own_left_out: Count
    unscored: dict[Words, Count]
    reason: Words = ""

    @model_validator(mode="after")
    def _tau_has_its_interval(self):
        if self.tau is not None and (self.low is None or self.high is None):
            raise ValueError("expected low and high beside tau")
        return self


class _Judged(OneWay):
    judged: Count
    extended: Count


def _threshold(value: float) -> float:
    if value not in (3, 4):
        raise ValueError("expected 3 or 4")
    return value


class _HumanAware(Stored):
    threshold: Annotated[float, AfterValidator(_threshold)]
    i2t: _Judged
    t2i: _Judged


class _People(Stored):
    expert: _Agreement | None
    crowdflower: _Agreement | None
    human_aware: list[_HumanAware] | None
    caption_numbers: Words


class Diagnosis(Stored):
    """`diagnosis.json`."""

    data: Data
    split: Words
    standard: Summary
    groups: dict[Direction, dict[Words, _AtK]]
    hubness: dict[Direction, _Hubs]
    similarity: _Similarity
    calibration: dict[Direction, list[_Margin]]
    people: _People | None

    @model_validator(mode="after")
    def _has_both_directions(self):
        for name in ("groups", "hubness", "calibration"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"expected i2t and t2i in {name}")
        length = self.groups["t2i"].get("length")
        if not (length and length.r1 and length.r10):
            raise ValueError("expected groups of captions by length at 1 and 10, found none")
        return self


# --- gallery.npz, slots.npz


def check_gallery(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Passes if arrays are those of a gallery, see `mmlib.reporting.gallery_figures`.

    Raises:
        ValueError: one is missing, of another kind or another shape; names file and array.
    """
    kinds = {
        "t2i_query": ("U", 1), "t2i_thumbs": ("u", 5), "t2i_hit": ("b", 2), "t2i_rank": ("iu", 1),
        "i2t_query": ("u", 4), "i2t_captions": ("U", 2), "i2t_hit": ("b", 2), "i2t_rank": ("iu", 1),
        "redistributable": ("b", 0),
    }  # fmt: skip
    for name, (kind, dimensions) in kinds.items():
        _check_array(arrays, name, kind, dimensions, where)
    for direction in ("t2i", "i2t"):
        parts = {name: arrays[name] for name in kinds if name.startswith(f"{direction}_")}
        if len({len(array) for array in parts.values()}) > 1:
            found = ", ".join(f"{name} {len(array)}" for name, array in parts.items())
            raise ValueError(f"{where} is damaged: expected arrays of one length, found {found}; {AGAIN}")
    shown = ("t2i_thumbs", "t2i_hit"), ("i2t_captions", "i2t_hit")
    for items, hits in shown:
        if arrays[items].shape[:2] != arrays[hits].shape:
            found = f"{arrays[items].shape[:2]} and {arrays[hits].shape}"
            raise ValueError(
                f"{where} is damaged: expected {items} and {hits} of one shape, found {found}; {AGAIN}"
            )
    for name in ("t2i_thumbs", "i2t_query"):
        if arrays[name].shape[-1] != 3 or 0 in arrays[name].shape[1:]:
            raise ValueError(
                f"{where} is damaged: expected pictures in {name}, found {arrays[name].shape}; {AGAIN}"
            )


def _word_and_lift(value: list) -> list:
    if [type(part) for part in value] not in ([str, float], [str, int]):
        raise ValueError("expected a word and a number")
    return value


class _Reader(Stored):
    slot: Count
    share: Share
    read_by: list[Annotated[list, AfterValidator(_word_and_lift)]]


class _Readers(Stored):
    top: list[_Reader]


def check_slots(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Passes if arrays are those of `slot_readers`, or none, as a run without a memory has.

    Raises:
        ValueError: one is missing, of another kind or another shape; names file and array.
    """
    for block in ("image", "text", "central_image", "central_text") if arrays else ():
        weight = _check_array(arrays, f"{block}_weight", "f", 1, where)
        if not (len(weight) and np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(f"{where} is damaged: {block}_weight: expected numbers of at least 0; {AGAIN}")
        name = f"{block}_top"
        top = str(_check_array(arrays, name, "U", 0, where))
        checked({"top": parse_json(top, f"{where}, {name},")}, _Readers, f"{where}, {name},")


def _check_array(arrays: Mapping[str, np.ndarray], name: str, kinds: str, dimensions: int, where: str):
    array = arrays.get(name)
    if array is None or array.dtype.kind not in kinds or array.ndim != dimensions:
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        expected = f"expected {dimensions} dimensions of kind {kinds}"
        raise ValueError(f"{where} is damaged: {name}: {expected}, found {found}; {AGAIN}")
    return array
