"""Arrays from files of strangers: what a header claims is checked before anything is allocated.

A header may claim any size, and a small zip may unpack to any size.  So an array is read only if its
header claims exactly the bytes that the file holds, and a zip may grow to `MAX_UNPACKED` bytes, or to
`MAX_GROWTH` times its size where that is more.  Nothing in a file is executed: pickled objects are
refused, and so are structured types.
"""

import ast
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmlib.files import printable

MAX_HEADER = 10_000  # bytes of the header of an .npy, as in numpy
MAX_TABLE = 1 << 20  # bytes of the table of contents of an .npz or a .safetensors: thousands of arrays
MAX_UNPACKED = 1 << 30
MAX_GROWTH = 16  # random floats do not shrink to half; ranks do to a hundredth, and are small
MAX_EMPTY = 1 << 20  # rows of an array without values: what is made for each row takes memory too

_MAGIC = b"\x93NUMPY"
_DTYPE = re.compile(r"[<>|=]?[biufUSV][0-9]{1,9}")
_PIECE = 1 << 20  # bytes read at a time
_DAMAGED = (
    ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def open_npy(path: Path) -> np.ndarray:
    """The array in an `.npy` file, memory-mapped and read-only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no plain array, or not as many bytes as its header claims.
    """
    try:
        with open(_existing(path), "rb") as file:
            shape, order, dtype = _header(file, path.stat().st_size)
            start = file.tell()
    except _DAMAGED as error:
        raise refused(path, error) from error
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order)


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in an `.npz` file; errors are those of `read_npz`."""
    try:
        with _Pieces(_existing(path)) as file, zipfile.ZipFile(file) as archive:
            return list(_members(archive))
    except _DAMAGED as error:
        raise refused(path, error) from error


def read_npz(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name; all of them if no names are given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no zip, has none of that name, holds anything but plain arrays, or
            would unpack to more than is allowed.
    """
    try:
        with _Pieces(_existing(path)) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive)
            wanted = list(members if names is None else names)
            if missing := [name for name in wanted if name not in members]:
                raise ValueError(f"no array {', '.join(missing)!r}")
            total = sum(members[name].file_size for name in wanted)
            allowed = max(MAX_UNPACKED, MAX_GROWTH * path.stat().st_size)
            if total > allowed:
                raise ValueError(f"{total:,} bytes when unpacked, of which {allowed:,} are allowed")
            return {name: _unpacked(archive, members[name]) for name in wanted}
    except _DAMAGED as error:
        raise refused(path, error) from error


def check_safetensors(path: Path) -> None:
    """Passes if the header of a `.safetensors` file is small and each tensor's bytes lie in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: says what it claims.
    """
    try:
        with open(_existing(path), "rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if length > min(MAX_TABLE, size - 8):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            tensors = json.loads(file.read(length))
        if not isinstance(tensors, dict):
            raise ValueError("no table of tensors in its header")
        tensors.pop("__metadata__", None)
        for name, tensor in tensors.items():
            shape, (start, end) = tensor["shape"], tensor["data_offsets"]
            _check_shape(shape)
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"tensor {name!r} at bytes {start}..{end} of {size - 8 - length:,}")
    except (*_DAMAGED, RecursionError, KeyError, TypeError) as error:
        raise refused(path, error) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected an array file {path}, found none; correct the path")
    return path


def refused(path: Path, found: Exception) -> Exception:
    """The error that a file holds no plain arrays: what was found, and why that may be."""
    if isinstance(found, FileNotFoundError):
        return found
    return ValueError(
        f"{path}: expected plain arrays in the format of {path.suffix} files, found:"
        f" {printable(str(found))[:500] or type(found).__name__}; the file may be cut short, or hold pickled"
        " objects, which are never loaded: save an array of numbers"
    )


class _Pieces(io.BufferedReader):
    """A file that is read in small pieces alone, whatever size a table of contents claims for itself."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1) -> bytes:
        whole = size is None or not 0 <= size <= _PIECE
        data = super().read(_PIECE + 1 if whole else size)
        if len(data) > _PIECE:
            raise ValueError(f"a table of contents of more than {_PIECE:,} bytes")
        return data


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of an `.npz` by the names of their arrays."""
    members = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise ValueError(f"a member {name!r}, which is no .npy")
        if name in members:
            raise ValueError(f"two arrays {name!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise ValueError(f"a member {info.filename!r} that is encrypted or packed in another way")
        members[name] = info
    return members


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        shape, order, dtype = _header(file, info.file_size)
        size = math.prod(shape) * dtype.itemsize
        values = bytearray()  # grows with what is there, not with what is claimed
        while piece := file.read(min(_PIECE, size - len(values))):
            values += piece
        if len(values) < size:
            raise ValueError(f"array {info.filename!r} that ends after {len(values):,} of {size:,} bytes")
        file.read(1)  # at its end the checksum is compared
    return np.ndarray(shape, dtype, values, order=order)


def _header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], str, np.dtype]:
    """Shape, order and type that an `.npy` claims, from a file of `size` bytes; leaves it at the values."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError("no header of an .npy file")
    digits = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(digits), "little")
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin-1")
    try:
        # Python 2 wrote (5000L, 2048L).
        header = ast.literal_eval(re.sub(r"(?<=[0-9])L(?=[,)])", "", text).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("a header that cannot be read") from None
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header without descr, fortran_order and shape alone")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    dtype = _dtype(descr)
    if not isinstance(fortran, bool) or not isinstance(shape, tuple):
        raise ValueError(f"fortran_order {fortran!r} and shape {shape!r}")
    _check_shape(shape)
    claimed, held = math.prod(shape) * dtype.itemsize, size - len(start) - digits - length
    if claimed != held:
        raise ValueError(f"shape {shape} of {dtype}, which is {claimed:,} bytes, where {held:,} are")
    return shape, "F" if fortran else "C", dtype


def _dtype(descr) -> np.dtype:
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) and _DTYPE.fullmatch(descr) else None
    except TypeError:
        dtype = None
    # V2 is bfloat16, for which numpy has no name.
    if dtype is None or not dtype.itemsize or (dtype.kind == "V" and dtype.itemsize != 2):
        raise ValueError(f"values of type {str(descr)[:60]!r}")
    return dtype


def _check_shape(shape) -> None:
    if len(shape) > 32 or any(type(length) is not int or not 0 <= length < 2**63 for length in shape):
        raise ValueError(f"shape {str(shape)[:100]}")
    if 0 in shape and max(shape) > MAX_EMPTY:
        raise ValueError(f"shape {shape}, which is many rows of nothing")
