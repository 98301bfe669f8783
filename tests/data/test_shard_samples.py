"""What is read of one tar: every member is in a sample or in a count, whatever a stranger wrote."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import tracemalloc

import pytest
from tiny_shards import encoded, picture, write_tar

from mmlib.data import shard_index
from mmlib.data.shard_index import read_tar

JPEG = encoded(picture(0), "JPEG")
GOOD = {"jpg": JPEG, "txt": b"a dog"}


def read(path):
    """What the tar holds, its samples, and what is wrong with the tar."""
    with open(path, "rb") as file:
        content = read_tar(file, io.BytesIO())
    return content, content.samples, content.fault


def read_files(tmp_path, files):
    return read(write_tar(tmp_path / "s.tar", [("a", files)]))


def as_json(**facts) -> bytes:
    return json.dumps(facts).encode()


# --- captions: several in one file, and the same one in two


@pytest.mark.parametrize(
    ("files", "captions"),
    [
        # CLIP_benchmark: five captions, one a line
        ({"txt": b"one\ntwo\nthree\nfour\nfive\n"}, ["one", "two", "three", "four", "five"]),
        ({"txt": b"one\r\n\r\n  \r\n two \rthree"}, ["one", " two ", "three"]),
        ({"txt": b"\xef\xbb\xbfone"}, ["one"]),
        ({"json": as_json(captions=["one", "", "two"])}, ["one", "", "two"]),
        ({"json": as_json(caption=["one", "two"]), "txt": b"one"}, ["one", "two"]),
        # img2dataset: the same text in both is counted once, also where it has two lines
        ({"json": as_json(caption="one", url="u"), "txt": b"one"}, ["one"]),
        ({"json": as_json(caption="one\ntwo"), "txt": b"one\ntwo\n"}, ["one\ntwo"]),
        ({"json": as_json(caption="alt text"), "txt": b"one\ntwo"}, ["one", "two"]),
        ({"json": as_json(caption="one"), "txt": b" \n"}, ["one"]),
        # as `write_shards` has it
        (
            {"json": as_json(captions=["one", "two"], name="3.jpg", dataset="d"), "txt": b"one"},
            ["one", "two"],
        ),
    ],
)
def test_captions_of_a_sample(tmp_path, files, captions):
    reader, (sample,), fault = read_files(tmp_path, {"jpg": JPEG, **files})
    assert sample.captions == captions
    assert (reader.broken.first, reader.unused.first, fault) == ([], [], None)


# --- broken samples


REASONS = {
    "image": "no image, or one that cannot be decoded",
    "caption": "no caption",
    "json": "a json that cannot be read",
    "size": "a file that is too large",
}
BROKEN = {
    "undecodable": ("image", {"jpg": b"no image", "txt": b"a"}),
    "cut": ("image", {"jpg": JPEG[: len(JPEG) // 2], "txt": b"a"}),
    "no image": ("image", {"txt": b"a"}),
    "no caption": ("caption", {"jpg": JPEG}),
    "empty caption": ("caption", {"jpg": JPEG, "txt": b" \n"}),
    "no text": ("caption", {"jpg": JPEG, "txt": b"\xff"}),
    "captions no list": ("caption", {"jpg": JPEG, "json": as_json(captions="a")}),
    "captions no texts": ("caption", {"jpg": JPEG, "json": as_json(captions=["a", 1])}),
    "captions empty": ("caption", {"jpg": JPEG, "json": as_json(captions=[])}),
    "caption null": ("caption", {"jpg": JPEG, "json": as_json(caption=None)}),
    "bad json": ("json", {"jpg": JPEG, "txt": b"a", "json": b'{"caption": "a'}),
    "json a list": ("json", {"jpg": JPEG, "txt": b"a", "json": b"[]"}),
    "json nested deeply": ("json", {"jpg": JPEG, "txt": b"a", "json": b"[" * 200_000}),
    "json of a huge number": ("json", {"jpg": JPEG, "txt": b"a", "json": b"1" * 5_000}),
    "json too long": ("size", {"jpg": JPEG, "txt": b"a", "json": b" " * (2**20 + 1)}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_sample_is_counted_and_named_and_the_others_are_read(tmp_path, kind):
    reason, files = BROKEN[kind]
    path = write_tar(tmp_path / "s.tar", [("a", GOOD), ("bad", files), ("c", GOOD)])
    reader, samples, fault = read(path)
    assert [sample.key for sample in samples] == ["a", "c"]
    assert reader.broken.first == [f"bad ({REASONS[reason]})"]
    assert (reader.unused.count, fault) == (0, None)


def sparse_tar(path, name: str, size: int):
    """A tar whose one member declares `size` bytes, of which the disk holds none."""
    member = tarfile.TarInfo(name)
    member.size = size
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + (size + 511) // 512 * 512 + 1024)
    return path


def peak_of(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "most"), [("a.txt", 2**23), ("a.jpg", 2**23)])
def test_a_member_of_a_quarter_gibibyte_is_passed_over_in_pieces(tmp_path, name, most):
    path = sparse_tar(tmp_path / "s.tar", name, 2**28)

    def work():
        reader, samples, fault = read(path)
        assert (reader.broken.first, samples, fault) == (["a (a file that is too large)"], [], None)

    assert peak_of(work) < most


def test_texts_of_a_shard_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "MAX_TEXTS", 12)
    path = write_tar(tmp_path / "s.tar", [(key, GOOD) for key in "abcd"])
    reader, samples, _ = read(path)
    assert [sample.key for sample in samples] == ["a", "b"]
    assert reader.broken.first == [f"{key} (a file that is too large)" for key in "cd"]


# --- members


def add(archive, name, content=b"", kind=tarfile.REGTYPE, **changes):
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def test_every_member_is_in_a_sample_or_in_a_count(tmp_path):
    """Files of one key may lie anywhere in the tar; long names are in PAX headers of their own."""
    long = "very " * 60
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.pax_headers = {"comment": "a global header is no member"}
        add(archive, "./", kind=tarfile.DIRTYPE)
        add(archive, "./a.jpg", JPEG)
        add(archive, f"folder/{long}.JPG", JPEG)
        add(archive, "b.jpg", JPEG)
        add(archive, "a.txt", b"caption of a")
        add(archive, f"folder/{long}.txt", b"long", pax_headers={"mtime": "1.5"})
        add(archive, "b.txt", b"caption of b")
        add(archive, "b.txt", b"another caption of b")
        add(archive, "b.jpg", b"another b")
        add(archive, "b.png", b"one more b")
        add(archive, "other/b.jpg", JPEG)
        add(archive, "other/b.txt", b"b of another folder")
        add(archive, "link.jpg", kind=tarfile.SYMTYPE, linkname="a.jpg")
        add(archive, "hard.jpg", kind=tarfile.LNKTYPE, linkname="a.jpg")
        add(archive, "null.jpg", kind=tarfile.CHRTYPE)
        add(archive, "pipe.jpg", kind=tarfile.FIFOTYPE)
        add(archive, "._a.jpg", b"what a Mac leaves")
        add(archive, "__MACOSX/a.jpg", b"the same")
        add(archive, ".hidden/c.jpg", JPEG)
        add(archive, "../../etc/d.jpg", JPEG)
        add(archive, "/etc/d.jpg", JPEG)
        add(archive, "x" * 2000 + ".jpg", JPEG)
        add(archive, "a.cls", b"1")
        add(archive, "a.seg.png", JPEG)
        add(archive, "README", b"hello")
    reader, samples, fault = read(tmp_path / "s.tar")
    assert [(sample.key, sample.captions) for sample in samples] == [
        ("a", ["caption of a"]), (f"folder/{long}", ["long"]), ("b", ["caption of b"]),
        ("other/b", ["b of another folder"]),
    ]  # fmt: skip
    assert (reader.broken.count, fault) == (0, None)
    assert reader.unused.count == 17
    assert reader.unused.first == [
        ". (a folder)", "b.txt (its sample has one)", "b.jpg (its sample has one)",
        "b.png (its sample has one)", "link.jpg (a link)",
    ]  # fmt: skip
    content = (tmp_path / "s.tar").read_bytes()
    for sample in samples:
        assert content[sample.offset : sample.offset + sample.size] == JPEG


# --- damaged tars


@pytest.mark.parametrize(
    ("file", "kept", "whole"),
    [
        (b"2.jpg", 512, ["0", "1"]),  # right behind its header
        (b"2.jpg", 600, ["0", "1"]),
        (b"2.txt", 512, ["0", "1"]),
        (b"3.txt", 512, ["0", "1", "2"]),
        (b"2.jpg", 13, ["0"]),  # in its header: nobody knows if the sample before it was whole
        (b"1.jpg", 512, ["0"]),
    ],
)
def test_of_a_tar_that_is_cut_short_the_whole_samples_are_used(tmp_path, file, kept, whole):
    path = write_tar(tmp_path / "s.tar", [(str(n), GOOD) for n in range(4)])
    content = path.read_bytes()
    path.write_bytes(content[: content.index(file) + kept])
    _, samples, fault = read(path)
    assert [sample.key for sample in samples] == whole
    assert "cut short" in fault


def test_a_header_damaged_in_the_middle_is_seen(tmp_path):
    path = write_tar(tmp_path / "s.tar", [(str(n), GOOD) for n in range(4)])
    content = bytearray(path.read_bytes())
    middle = content.index(b"2.jpg")
    content[middle : middle + 512] = b"\xff" * 512
    path.write_bytes(content)
    _, samples, fault = read(path)
    assert ([sample.key for sample in samples], fault) == (["0"], "it is cut short or damaged: no end mark")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, bytes(10), b"\x1f\x8c" * 600])
def test_a_file_that_is_no_tar(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    _, samples, fault = read(tmp_path / "s.tar")
    assert samples == []
    assert fault.startswith("it is no whole tar file: ")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_called_that(tmp_path, compress):
    content = compress(write_tar(tmp_path / "s.tar", [("a", GOOD)]).read_bytes())
    (tmp_path / "s.tar").write_bytes(content)
    _, samples, fault = read(tmp_path / "s.tar")
    assert (samples, fault) == ([], "it is compressed: unpack it, since images are read at any place of it")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_nobody_reads_break_no_sample(tmp_path, number):
    """img2dataset writes the columns of a table as they are, and unknown numbers in them are NaN."""
    facts = f'{{"caption": "a dog", "punsafe": {number}}}'.encode()
    _, samples, fault = read(write_tar(tmp_path / "s.tar", [("a", {"jpg": JPEG, "json": facts})]))
    assert ([s.captions for s in samples], fault) == ([["a dog"]], None)


def test_utf_16_without_its_mark_is_no_caption(tmp_path):
    files = {"jpg": JPEG, "txt": "a\nb".encode("utf-16-le")}
    reading, samples, _ = read(write_tar(tmp_path / "s.tar", [("a", files)]))
    assert (samples, reading.broken.first) == ([], ["a (no caption)"])


def test_what_a_nas_put_into_a_tar_is_hidden(tmp_path):
    jpg = {"jpg": JPEG}
    tar = write_tar(
        tmp_path / "s.tar", [("a", GOOD), ("@eaDir/a.jpg/THUMB", jpg), ("#recycle/b", jpg), ("#c", jpg)]
    )
    reading, samples, _ = read(tar)
    assert len(samples) == 1
    assert reading.unused.first == [
        f"{name} (hidden, or of the system)" for name in ("@eaDir/a.jpg/THUMB.jpg", "#recycle/b.jpg")
    ]
    assert reading.broken.first == ["#c (no caption)"]


def test_tars_that_were_joined_are_not_read_half_without_a_word(tmp_path):
    one = write_tar(tmp_path / "s.tar", [("a", GOOD)])
    one.write_bytes(one.read_bytes() * 2)
    _, samples, fault = read(one)
    assert [sample.key for sample in samples] == ["a"]
    assert fault == "more data behind its end mark, as of tar files that were joined"


def header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


HOSTILE = {
    "a name of three gibibytes": header("l", 3 * 2**30, tarfile.GNUTYPE_LONGNAME) + bytes(2**12),
    "PAX records of an exbibyte": header("x", 2**60, tarfile.XHDTYPE) + bytes(2**12),
    "a file of an exbibyte": header("a.jpg", 2**60, tarfile.REGTYPE) + bytes(2**12),
    "a size below zero": header("a.jpg", -1024, tarfile.REGTYPE) + bytes(2**12),
    "PAX headers without an end": header("x", 12, tarfile.XHDTYPE) + padded(b"12 a=bbbbbb\n")
    + (header("x", 12, tarfile.XHDTYPE) + padded(b"12 a=bbbbbb\n")) * 3000,
    "a PAX size of 5,000 digits": header("x", 5020, tarfile.XHDTYPE)
    + padded(b"5020 size=" + b"9" * 5009 + b"\n") + header("a.jpg", 3, tarfile.REGTYPE) + padded(b"abc"),
    "a PAX size below zero": header("x", 15, tarfile.XHDTYPE) + padded(b"15 size=-10000\n")
    + header("a.jpg", 3, tarfile.REGTYPE) + padded(b"abc"),
    "a sparse map without an end": header("x", 25, tarfile.XHDTYPE) + padded(b"25 GNU.sparse.major=1\n  ")
    + header("a.jpg", 2**20, tarfile.REGTYPE) + padded(b"999999999\n" + b"1\n" * 2**21),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_absurd_headers_end_in_a_fault_within_little_memory(tmp_path, kind):
    path = tmp_path / "s.tar"
    path.write_bytes(HOSTILE[kind])

    def work():
        _, samples, fault = read(path)
        assert samples == []
        assert fault

    assert peak_of(work) < 2**24


def mutated(content: bytes, chance: random.Random) -> bytes:
    """`content` with a few bytes changed, some of them in headers, or a piece moved, doubled or cut out."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        kind, place = chance.randrange(5), chance.randrange(len(changed))
        if kind == 0:
            changed[place] = chance.randrange(256)
        elif kind == 1:  # a field of a header, its checksum mended
            start = place // 512 * 512
            block = changed[start : start + 512]
            field, width = chance.choice([(0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (345, 155)])
            block[field : field + width] = chance.randbytes(width) if chance.random() < 0.5 else b"7" * width
            block[148:156] = b"        "
            block[148:156] = b"%06o\0 " % sum(block)
            changed[start : start + 512] = block
        elif kind == 2:
            changed[place:place] = changed[place // 512 * 512 :][: chance.choice([1, 512, 2048])]
        elif kind == 3:
            del changed[place : place + chance.choice([1, 512, 3000])]
        else:
            del changed[place:]
    return bytes(changed)


def fuzz(folder, rounds: int) -> None:
    files = [
        {"jpg": JPEG, "txt": b"a\nb"},
        {"jpg": JPEG, "json": as_json(captions=["c"], url="http://u/1.jpg")},
    ]
    path = write_tar(folder / "s.tar", [(f"{n:04d}", files[n % 2]) for n in range(4)])
    with tarfile.open(path, "a") as archive:
        add(archive, "name " * 40 + ".jpg", JPEG)
    content = path.read_bytes()
    chance = random.Random(11)
    for number in range(rounds):
        path.write_bytes(mutated(content, chance))
        try:
            _, samples, fault = read(path)
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed 11") from error
        assert len(samples) <= 8
        assert fault is None or len(fault) < 5_000


def test_mutated_tars_are_read_or_counted(tmp_path):
    assert peak_of(lambda: fuzz(tmp_path, 300)) < 2**26


@pytest.mark.slow
def test_many_mutated_tars_are_read_or_counted(tmp_path):
    fuzz(tmp_path, 20_000)
