"""What `gallery.npz` and `slots.npz` of a run must hold to be drawn."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from mmlib.files import parse_json
from mmlib.training.stored import AGAIN, Count, Share, Stored, checked


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
        parts = {name: array for name, array in arrays.items() if name.startswith(f"{direction}_")}
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
