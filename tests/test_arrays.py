"""Array files from strangers: whatever a header claims, an error that names the file, and little memory."""

import io
import json
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mmlib.arrays import open_npy, read_npz
from mmlib.metrics import RetrievalRanks, retrieval_ranks
from mmlib.metrics.embeddings import read_array
from mmlib.training.runs import read_arrays, run_folder

MOST_MEMORY = 32 << 20  # bytes, for files of some KB


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def npy(header, values: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """An `.npy` with this header, text or what a dict would be."""
    text = (header if isinstance(header, str) else repr(header)).encode()
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text + values
    )


def claim(shape, descr="<f4", fortran=False) -> dict:
    return {"descr": descr, "fortran_order": fortran, "shape": shape}


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def safetensors(header, values: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + values


def tensor(shape, start: int, end: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a petabyte": (npy(claim((2**40, 256))), "is 1,125,899,906,842,624 bytes, where 0 are"),
    "more rows than there are": (npy(claim((3, 2)), bytes(16)), "shape (3, 2) of float32, which is 24"),
    "fewer rows than there are": (npy(claim((1, 2)), bytes(16)), "which is 8 bytes, where 16 are"),
    "a size beyond 64 bits": (npy(claim((2**62, 2**62))), "where 0 are"),
    "a negative length": (npy(claim((-1, -4)), bytes(16)), "negative dimensions"),
    "a length with a fraction": (npy(claim((1.0, 4)), bytes(16)), "(1.0, 4)"),
    "many rows of nothing": (npy(claim((10**15, 0))), "many rows of nothing"),
    "too many dimensions": (npy(claim((1,) * 99), bytes(4)), "dim"),
    "objects": (npy(claim((1,), "|O"), bytes(8)), "values of type object"),
    "a type of no bytes": (npy(claim((10**12,), "<U0")), "values of type <U0"),
    "a type that is none": (npy(claim((1,), "<f3"), bytes(3)), "'<f3'"),
    "an order that is none": (npy(claim((1,), fortran="yes"), bytes(4)), "'yes'"),
    "another key": (npy(claim((1,)) | {"more": 1}, bytes(4)), "'more'"),
    "an open bracket": (npy("{'descr': (", bytes(4)), "EOF"),
    "a call": (npy("{'descr': open('executed', 'w'), 'fortran_order': 0, 'shape': ()}"), "malformed"),
    "brackets": (npy("(" * 9000), "found: "),
    "minus signs": (npy("-" * 9000 + "1"), "found: "),
    "a header of 4 GB": (npy(claim((1,)), bytes(4), 2, 2**32 - 1), "expected 4294967295 bytes got 59"),
    "a version of its own": (npy(claim((1,)), bytes(4), 7), "version (7, 0) of the format"),
    "nothing": (b"", "expected 8 bytes got 0"),
    "a pipe of escapes": (npy(claim((1,), "\x1b[31mred"), bytes(4)), "31mred"),
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(folder, what):
    data, said = HEADERS[what]
    (folder / "x.npy").write_bytes(data)
    (folder / "x.npz").write_bytes(npz(x=data))
    for place in ("x.npy", "x.npz"):
        peak, error = peak_and_error(lambda: read_array(place))  # noqa: B023
        assert isinstance(error, ValueError)
        assert str(error).startswith(
            f"{place}: expected plain arrays in the format of {place[-4:]} files, found:"
        )
        assert said in str(error)
        assert "\x1b" not in str(error)
        assert peak < MOST_MEMORY
    assert not (folder / "executed").exists()


TENSORS = {
    "a header of exabytes": safetensors({}, length=2**63),
    "brackets": safetensors(b"[" * 100_000),
    "bytes beyond the file": safetensors({"a": tensor([2**40], 0, 2**42)}),
    "offsets that overlap": safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
    "a shape of another size": safetensors({"a": tensor([2**40], 0, 4)}, bytes(4)),
    "nothing": b"",
}


@pytest.mark.parametrize("what", TENSORS)
def test_a_table_of_tensors_that_lies_is_refused(folder, what):
    (folder / "x.safetensors").write_bytes(TENSORS[what])
    peak, error = peak_and_error(lambda: read_array("x.safetensors:a"))
    assert isinstance(error, ValueError)
    assert str(error).startswith("x.safetensors: expected plain arrays in the format of .safetensors files")
    assert peak < MOST_MEMORY


# --- zips


def test_a_small_zip_does_not_grow_without_bound(folder, monkeypatch):
    """128 MiB of zeros in 600 KB, with a header that tells the truth about them."""
    monkeypatch.setattr("mmlib.arrays.MAX_UNPACKED", 64 << 20)
    (folder / "bomb.npz").write_bytes(npz(a=npy(claim((2**25,)), bytes(128 << 20))))
    peak, error = peak_and_error(lambda: read_array("bomb.npz"))
    assert "bomb.npz: expected plain arrays" in str(error)
    assert "134,217,800 bytes when unpacked, of which 67,108,864 are allowed" in str(error)
    assert peak < MOST_MEMORY
    monkeypatch.setattr("mmlib.arrays.MAX_UNPACKED", 129 << 20)
    assert read_array("bomb.npz").shape == (2**25,)


@pytest.mark.parametrize(
    ("claimed", "held"),
    [(2**20, 4), (4, 2**20)],
    ids=["a table that claims more", "a table that claims less"],
)
def test_a_member_that_is_not_as_long_as_the_table_claims_is_refused(folder, claimed, held):
    """The table of contents and the header agree on a size; what is packed has another."""
    data = bytearray(npz(a=npy(claim((claimed,)), bytes(4 * held))))
    directory = data.rindex(b"PK\x01\x02")
    size = len(npy(claim((claimed,)))) + 4 * claimed
    struct.pack_into("<I", data, directory + 24, size)
    (folder / "a.npz").write_bytes(data)
    peak, error = peak_and_error(lambda: read_array("a.npz"))
    assert isinstance(error, ValueError)
    assert str(error).startswith("a.npz: expected plain arrays")
    assert ("where 16 are" if claimed > held else "CRC") in str(error)
    assert peak < MOST_MEMORY


def test_names_of_members_are_names_alone(folder):
    sound = npy(claim((1,)), struct.pack("<f", 7))
    (folder / "a.npz").write_bytes(npz(**{"../../etc/x": sound}))
    assert read_npz(folder / "a.npz") == {"../../etc/x": np.float32(7)}
    assert [path.name for path in folder.iterdir()] == ["a.npz"]
    with pytest.raises(ValueError, match=r"a\.npz: .*no array 'b'"):
        read_npz(folder / "a.npz", ["b"])
    (folder / "many.npz").write_bytes(npz(**{f"n{number}": sound for number in range(500)}))
    with pytest.raises(ValueError, match=r"many\.npz: expected one array .* n19 and 480 more; name it as"):
        read_array("many.npz")


# --- what is sound


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(folder, order):
    made = {
        "floats": np.arange(12, dtype=np.float16).reshape(3, 4),
        "swapped": np.arange(6, dtype=">i4").reshape(2, 3),
        "text": np.array([["a", "βeta"]]),
        "truth": np.array([True, False]),
        "scalar": np.array(3.5),
        "none": np.zeros((0, 8), dtype=np.float32),
        "deep": np.arange(24.0).reshape(2, 3, 4),
    }
    made = {name: np.asarray(array, order=order) for name, array in made.items()}
    np.savez("all.npz", **made)
    found = read_npz(folder / "all.npz")
    for name, array in made.items():
        np.save(f"{name}.npy", array)
        for other in (found[name], open_npy(folder / f"{name}.npy")):
            assert other.dtype == array.dtype
            assert np.array_equal(other, array)


# --- ranks and other arrays of a run


@pytest.fixture
def stored() -> dict:
    random = np.random.default_rng(0)
    ranks = retrieval_ranks(random.normal(size=(4, 3)), random.normal(size=(8, 3)), np.repeat(range(4), 2))
    return dict(vars(ranks))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"i2t_N": np.array([1.0, 2.0, np.nan, 1.0])}, "i2t_N: expected whole numbers"),
        ({"t2i_M": np.ones((8, 1), dtype=int)}, "t2i_M: expected whole numbers"),
        ({"i2t_N": np.array(3)}, "i2t_N: expected whole numbers"),
        ({"i2t_N": np.array([0, 1, 1, 1])}, "i2t: expected ranks in 1..8 and ties in 0..rank - 1, found"),
        ({"i2t_N": np.array([9, 1, 1, 1])}, "found ranks 1..9"),
        ({"i2t_N": np.full(4, 2**64 - 1, dtype=np.uint64)}, "found ranks -1..-1"),
        ({"ties_t2i_M": np.full(8, 4)}, "ties 4..4"),
        ({"ties_t2i_M": np.full(8, -1)}, "ties -1..-1"),
        ({"image_of_text_M": np.full(8, 10**15)}, "image_of_text_M: expected image indices in 0..3"),
        ({"image_of_text_M": np.full(8, 10**15), "protocol": "paired"}, "expected image indices in 0..7"),
        ({"image_of_text_M": np.array([0, 0, 1, 1, 2, 2, 4, 4])}, "image indices in 0..3, found 0..4"),
        ({"image_of_text_M": np.array([0, 0, 1, 1, 2, 2, 2, 2])}, "found 1 of 4 images without one"),
        ({"image_of_text_M": np.array([-1, 0, 1, 1, 2, 2, 3, 3])}, "found -1..3"),
        ({"image_of_text_M": np.zeros(0, dtype=int)}, "image_of_text_M: expected 8 integers"),
        ({"gallery_i2t": np.array(8.0)}, "i2t: expected ranks in 1..8.0 and ties"),
        ({"gallery_i2t": np.array([8])}, "i2t: expected ranks in 1..array([8]) and ties"),
        ({"protocol": "best"}, "protocol: expected one of"),
        ({"more": np.array(1)}, "the arrays i2t_N, t2i_M,"),
    ],
)  # fmt: skip
def test_ranks_that_cannot_be_are_refused(stored, change, said):
    np.savez("ranks.npz", **(stored | change))
    with pytest.raises(ValueError, match="found") as caught:
        RetrievalRanks.load("ranks.npz")
    assert str(caught.value).startswith(
        "ranks.npz: expected a ranks file as written by RetrievalRanks.save, found "
    )
    assert said in str(caught.value)


def test_ranks_of_another_width_come_back_as_they_are(stored):
    small = {
        key: value.astype(np.uint8) if hasattr(value, "astype") else value for key, value in stored.items()
    }
    np.savez("ranks.npz", **small)
    ranks = RetrievalRanks.load("ranks.npz")
    for key, value in stored.items():
        assert np.array_equal(getattr(ranks, key), value)
    assert ranks.best_case("t2i").dtype == np.int64


def test_arrays_of_a_run_are_read_in_the_same_way(folder, monkeypatch):
    monkeypatch.setattr("mmlib.files.RUNS", folder)
    run_folder("r").mkdir()
    (folder / "r" / "slots.npz").write_bytes(npz(a=npy(claim((2**40, 256)))))
    with pytest.raises(ValueError, match=r"slots\.npz is damaged \(shape .* bytes, where 0 are\); evaluate"):
        read_arrays("r", "slots")


# --- at random


def fuzz(seed: int, cases: int) -> int:
    """Damages sound files at random; returns how many were refused."""
    rng = random.Random(seed)
    values = np.random.default_rng(0)
    image, text, map_M = values.normal(size=(6, 4)), values.normal(size=(12, 4)), np.repeat(np.arange(6), 2)
    retrieval_ranks(image, text, map_M).save("sound.npz")
    np.savez("plain.npz", image=image, text=text)
    np.save("image.npy", image.astype(np.float32))
    header = {"a": {"dtype": "F32", "shape": [6, 4], "data_offsets": [0, 96]}}
    sound = {
        "x.npy": Path("image.npy").read_bytes(),
        "ranks.npz": Path("sound.npz").read_bytes(),
        "x.npz": Path("plain.npz").read_bytes(),
        "x.safetensors": safetensors(header, image.astype(np.float32).tobytes()),
    }
    numbers = [0, 1, -1, 2**31, 2**32 - 1, 2**40, 2**63, 10**30, True, 0.5, None, "4"]
    descrs = ["<f4", "|O", "<f8,<i4", "|V2", "<U9999999", "<U0", "f", "", [["a", "<f4"]], 3]
    refused = 0
    for _ in range(cases):
        name = rng.choice(list(sound))
        data = bytearray(sound[name])
        kind = rng.randrange(4)
        if kind == 0 and name in ("x.npy", "x.npz"):
            shape = tuple(rng.choice(numbers) for _ in range(rng.randrange(4)))
            made = claim(shape, rng.choice(descrs), rng.choice([True, False, 0]))
            member = npy(
                made, bytes(rng.choice([0, 4, 96])), rng.choice([1, 2, 3]), rng.choice([None, 5, 60000])
            )
            data = bytearray(member if name == "x.npy" else npz(image=member))
        elif kind == 1 and name == "x.safetensors":
            one = {
                key: rng.choice([value, rng.choice(numbers), [rng.choice(numbers)]])
                for key, value in header["a"].items()
            }
            data = bytearray(safetensors({"a": one}, bytes(96), rng.choice([None, 2**62, 0])))
        elif kind == 2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 4) if kind == 3 else 0):
            data[rng.randrange(min(len(data), rng.choice([16, 128, 10**6])))] = rng.randrange(256)
        Path(name).write_bytes(data)

        def read(name=name) -> None:
            if name == "ranks.npz":
                RetrievalRanks.load(name)
            else:
                read_array(name if name != "x.npz" else "x.npz:image")

        peak, error = peak_and_error(read)
        assert peak < MOST_MEMORY, (seed, name, bytes(data))
        if error is not None:
            refused += 1
            assert isinstance(error, ValueError), (seed, name, bytes(data), error)
            assert str(error).startswith(f"{name}: "), (seed, name, bytes(data), error)
    return refused


def peak_and_error(read) -> tuple[int, Exception | None]:
    """Most memory that a call held, bytes, and what it raised."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1], None
    except Exception as error:
        return tracemalloc.get_traced_memory()[1], error
    finally:
        tracemalloc.stop()


def test_damaged_files_are_refused_by_name_and_take_little_memory():
    assert fuzz(seed=11, cases=300) > 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_for_longer(seed):
    assert fuzz(seed, cases=20_000) > 10_000
