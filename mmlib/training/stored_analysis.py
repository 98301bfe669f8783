"""What an evaluation leaves for the analysis of errors, read and checked: diagnosis, queries, arrays."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mmlib import files
from mmlib.arrays import read_npz
from mmlib.files import parse_json
from mmlib.training.runs import evaluated_file, read_result
from mmlib.training.stored import (
    AGAIN,
    Count,
    Data,
    Direction,
    Number,
    Share,
    Stored,
    Summary,
    Words,
    checked,
    read_stored,
)


class Queries(Stored):
    """`queries.json`."""

    fingerprint: Words
    split: Words
    redistributable: bool
    images: list[str]
    captions: list[str]


class _Measured(Stored):
    """A recall with its interval."""

    value: Share
    low: Share
    high: Share


class _Group(_Measured):
    group: Words
    n: Count


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


class _Margin(_Measured):
    margin_low: Number
    margin_high: Number


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


class _Hits(_Measured):
    hits: Count


class _Judged(Stored):
    n: Count
    judged: Count
    extended: Count
    r1: _Hits
    r5: _Hits
    r10: _Hits


class _HumanAware(Stored):
    threshold: Literal[3.0, 4.0]
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

_GALLERY = {
    "t2i_query": ("U", 1), "t2i_thumbs": ("u", 5), "t2i_hit": ("b", 2), "t2i_rank": ("iu", 1),
    "i2t_query": ("u", 4), "i2t_captions": ("U", 2), "i2t_hit": ("b", 2), "i2t_rank": ("iu", 1),
    "redistributable": ("b", 0),
}  # fmt: skip


def check_gallery(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Passes if arrays are those of a gallery, see `mmlib.reporting.gallery_figures`.

    Raises:
        ValueError: one is missing, of another kind or another shape; names file and array.
    """
    for name, (kind, dimensions) in _GALLERY.items():
        _check_array(arrays, name, kind, dimensions, where)
    for direction in ("t2i", "i2t"):
        lengths = {name: len(arrays[name]) for name in _GALLERY if name.startswith(f"{direction}_")}
        _expect(len(set(lengths.values())) == 1, where, "arrays of one length", lengths)
    for items, hits in (("t2i_thumbs", "t2i_hit"), ("i2t_captions", "i2t_hit")):
        shapes = arrays[items].shape[:2], arrays[hits].shape
        _expect(shapes[0] == shapes[1], where, f"{items} and {hits} of one shape", shapes)
    for name in ("t2i_thumbs", "i2t_query"):
        shape = arrays[name].shape
        _expect(shape[-1] == 3 and 0 not in shape[1:], where, f"pictures in {name}", shape)


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
        sound = len(weight) and np.isfinite(weight).all() and (weight >= 0).all()
        _expect(sound, where, f"numbers of at least 0 in {block}_weight", weight)
        top = str(_check_array(arrays, f"{block}_top", "U", 0, where))
        place = f"{where}, {block}_top,"
        checked({"top": parse_json(top, place)}, _Readers, place)


def _check_array(arrays: Mapping[str, np.ndarray], name: str, kinds: str, dimensions: int, where: str):
    array = arrays.get(name)
    fits = array is not None and array.dtype.kind in kinds and array.ndim == dimensions
    found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
    _expect(fits, where, f"{dimensions} dimensions of kind {kinds} in {name}", found)
    return array


def _expect(holds, where: str, expected: str, found) -> None:
    if not holds:
        raise ValueError(f"{where} is damaged: expected {expected}, found {found!s:.200}; {AGAIN}")


# --- reading


def read_diagnosis(run: str) -> dict:
    """The diagnosis of a run.

    Raises:
        FileNotFoundError: the run was not evaluated, or before there were diagnoses.
        ValueError: the file is damaged, or of another evaluation than `results.json`.
    """
    result = read_result(run)
    diagnosis = read_stored(evaluated_file(run, "diagnosis.json"), Diagnosis, "evaluate the run again")
    here = {"data": result["data"], "split": result["split"], "standard": result["protocols"]["standard"]}
    differs = [key for key, value in here.items() if diagnosis.get(key) != value]
    if differs:
        raise ValueError(
            f"run {run!r}: expected diagnosis.json of the evaluation in results.json, found another"
            f" {', '.join(differs)}; evaluate it again with notebook 03_evaluate"
        )
    return diagnosis


def read_queries(run: str) -> dict:
    """What `queries_of` gave, from the run's folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or lacks queries that `results.json` counts.
    """
    queries = read_stored(evaluated_file(run, "queries.json"), Queries, "evaluate the run again")
    standard = read_result(run)["protocols"]["standard"]
    sizes = {"images": standard["i2t"]["n"], "captions": standard["t2i"]["n"]}
    for name, size in sizes.items():
        if len(queries[name]) != size:
            raise ValueError(
                f"run {run!r}: expected {size:,} {name} in queries.json, as results.json counts, found"
                f" {len(queries[name]):,}; evaluate it again with notebook 03_evaluate"
            )
    return queries


def read_arrays(run: str, name: str) -> dict[str, np.ndarray]:
    """The arrays that the evaluation of a run left, `gallery` or `slots`.

    Raises:
        FileNotFoundError: the run was not evaluated.
        ValueError: the file is damaged, or an array in it is not what it should be.
    """
    path = evaluated_file(run, f"{name}.npz")
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise ValueError(
            f"{files.shown(path)} is damaged ({error.__cause__}); evaluate the run again"
        ) from None
    {"gallery": check_gallery, "slots": check_slots}[name](arrays, files.shown(path))
    return arrays
