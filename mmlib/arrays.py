"""Arrays from files of strangers: what a header claims is checked before anything is allocated.

A header may claim any size, and a small zip may unpack to any size.  So an array is read only if its
header claims exactly the bytes that the file holds, and a zip may grow to `MAX_UNPACKED` bytes, or to
`MAX_GROWTH` times its size where that is more.  Nothing in a file is executed: pickled objects are refused.
"""

import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mmlib.files import printable

MAX_HEADER = 10_000  # bytes of the header of an .npy, as in numpy
MAX_UNPACKED = 1 << 30
MAX_GROWTH = 16  # random floats do not shrink to half; ranks do to a hundredth, and are small
MAX_EMPTY = 1 << 20  # rows of an array without values: what is made for each row takes memory too


def open_npy(path: Path) -> np.ndarray:
    """The array in an `.npy` file, memory-mapped and read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no plain array, or not as many bytes as its header claims.
    """
    try:
        with open(path, "rb") as file:
            shape, order, dtype, start = _header(file.read(2 * MAX_HEADER), path.stat().st_size)
        return np.empty(shape, dtype) if 0 in shape else np.memmap(path, dtype, "r", start, shape, order)
    except Exception as error:  # numpy raises many kinds for one cause: this is no plain array
        raise refused(path, error) from error


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an `.npz` file; errors are those of `read_npz`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:
        raise refused(path, error) from error


def read_npz(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name; all of them if no names are given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no zip, has none of that name, holds anything but plain arrays, or
            would unpack to more than is allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: members.get(name) for name in (members if names is None else names)}
            if None in wanted.values():
                raise ValueError(f"no array {', '.join(name for name in wanted if not wanted[name])!r}")
            total = sum(info.file_size for info in wanted.values())
            allowed = max(MAX_UNPACKED, MAX_GROWTH * path.stat().st_size)
            if total > allowed:
                raise ValueError(f"{total:,} bytes when unpacked, of which {allowed:,} are allowed")
            return {name: _unpacked(archive, info) for name, info in wanted.items()}
    except Exception as error:  # zipfile raises many kinds as well
        raise refused(path, error) from error


def refused(path: Path, found: Exception) -> Exception:
    """The error that a file holds no plain arrays: what was found, and why that may be."""
    if isinstance(found, FileNotFoundError | IsADirectoryError):
        return FileNotFoundError(f"expected an array file {path}, found none; correct the path")
    return ValueError(
        f"{path}: expected plain arrays in the format of {path.suffix} files, found:"
        f" {printable(str(found))[:500] or type(found).__name__}; the file may be cut short, or hold pickled"
        " objects, which are never loaded: save an array of numbers"
    )


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        values = file.read(info.file_size)  # memory grows with what is there, not with what is claimed
    shape, order, dtype, start = _header(values[: 2 * MAX_HEADER], len(values))
    return np.ndarray(shape, dtype, bytearray(values), start, order=order)


def _header(data: bytes, size: int) -> tuple[tuple[int, ...], str, np.dtype, int]:
    """Shape, order, type and first byte of the values that an `.npy` of `size` bytes claims at its start."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file, max_header_size=MAX_HEADER)
    claimed, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"values of type {dtype}")
    if claimed != held:
        raise ValueError(f"shape {shape} of {dtype}, which is {claimed:,} bytes, where {held:,} are")
    if 0 in shape and max(shape) > MAX_EMPTY:
        raise ValueError(f"shape {shape}, which is many rows of nothing")
    return shape, "F" if fortran else "C", dtype, file.tell()
