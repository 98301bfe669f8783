"""Shards as files: what is read of one, whatever a stranger wrote, and what is fetched from URLs."""

import contextlib
import gzip
import http.server
import io
import json
import random
import tarfile
import threading
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_shards import SIZE, config_of, dataset_of, encoded, picture, write_numbered, write_tar

from mmlib import files
from mmlib.config import AugmentConfig
from mmlib.data import batches, build_tokenizer, open_store, shard_files
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.data.shard_files import Tar, read_tar
from mmlib.data.shards import load_shards, write_shards

JPEG = encoded(picture(0), "JPEG")
GOOD = {"jpg": JPEG, "txt": b"a dog"}


def read(path):
    """What the tar holds, its samples, and what is wrong with the tar."""
    tar = Tar(str(path), path.with_suffix(".json"))
    with open(path, "rb") as file, open(tar.looks, "wb") as looks:
        read_tar(tar, file, looks)
    return tar, tar.samples, tar.fault


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
        # img2dataset writes the columns of a table as they are, and unknown numbers in them are NaN
        ({"json": b'{"caption": "a dog", "punsafe": NaN, "a": Infinity, "b": 1e999}'}, ["a dog"]),
    ],
)
def test_captions_of_a_sample(tmp_path, files, captions):
    path = write_tar(tmp_path / "s.tar", [("a", {"jpg": JPEG, **files})])
    reader, (sample,), fault = read(path)
    assert sample.captions == captions
    assert (reader.broken.first, reader.unused.first, fault) == ([], [], "")


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
    "UTF-16 without its mark": ("caption", {"jpg": JPEG, "txt": "a\nb".encode("utf-16-le")}),
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


def test_broken_samples_are_counted_and_named_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "FIRST", 100)
    broken = [(kind, files) for kind, (_, files) in BROKEN.items()]
    reader, samples, fault = read(write_tar(tmp_path / "s.tar", [("a", GOOD), *broken, ("c", GOOD)]))
    assert [sample.key for sample in samples] == ["a", "c"]
    assert reader.broken.first == [f"{kind} ({REASONS[reason]})" for kind, (reason, _) in BROKEN.items()]
    assert (reader.broken.count, reader.unused.count, fault) == (len(BROKEN), 0, "")


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


@pytest.mark.parametrize("name", ["a.txt", "a.jpg"])
def test_a_member_of_a_quarter_gibibyte_is_passed_over_in_pieces(tmp_path, name):
    path = sparse_tar(tmp_path / "s.tar", name, 2**28)

    def work():
        reader, samples, fault = read(path)
        assert (reader.broken.first, samples, fault) == (["a (a file that is too large)"], [], "")

    assert peak_of(work) < 2**23


def test_texts_of_a_shard_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "MAX_TEXTS", 12)
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
        add(archive, "@eaDir/a.jpg/THUMB.jpg", JPEG)
        add(archive, "#recycle/b.jpg", JPEG)
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
    assert (reader.broken.count, fault) == (0, "")
    assert reader.unused.count == 19
    assert reader.unused.first == [
        ". (a folder)", "b.txt (its sample has one)", "b.jpg (its sample has one)",
        "b.png (its sample has one)", "link.jpg (a link or special file)",
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


def damaged_in_the_middle(content: bytes) -> bytes:
    return content.replace(content[content.index(b"2.jpg") :][:512], b"\xff" * 512)


@pytest.mark.parametrize(
    ("damage", "whole", "message"),
    [
        (
            damaged_in_the_middle,
            ["0"],
            "no end mark at its end: cut short, damaged, or several that were joined",
        ),
        (lambda content: content * 2, ["0", "1", "2"], "no end mark at its end"),
        (lambda content: b"", [], "it is no whole tar file without compression: empty file"),
        (
            lambda content: b"<html>not found</html>" * 100,
            [],
            "it is no whole tar file without compression: ",
        ),
        (lambda content: bytes(10), [], "it is no whole tar file without compression: "),
        (gzip.compress, [], "it is no whole tar file without compression: "),
    ],
)
def test_what_is_no_whole_tar_is_said(tmp_path, damage, whole, message):
    path = write_tar(tmp_path / "s.tar", [(str(n), GOOD) for n in range(4)])
    path.write_bytes(damage(path.read_bytes()))
    _, samples, fault = read(path)
    assert [sample.key for sample in samples] == whole
    assert message in fault


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
        assert len(fault) < 5_000


def test_mutated_tars_are_read_or_counted(tmp_path):
    assert peak_of(lambda: fuzz(tmp_path, 300)) < 2**26


@pytest.mark.slow
def test_many_mutated_tars_are_read_or_counted(tmp_path):
    fuzz(tmp_path, 20_000)


# --- what lies behind URLs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(shard_files, "TRIES", 3)
    monkeypatch.setattr(shard_files, "WAIT", 0.0)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` says what to do first to the requests of a path."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.server.asked[self.path] += 1
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "cut":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        elif fault == "hang up":
            self.connection.close()
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        elif fault:
            self.send_response(200)
            self.wfile.write(b"".join(self._headers_buffer) + f"Content-Length: {fault[1]}\r\n\r\n".encode())
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.asked, server.faults = Counter(), {}
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def shards(server):
    """20 samples in 4 shards, behind the server; their paths on the disk."""
    return write_numbered(server.folder, [5] * 4)


def remote(server, pattern="{00000..00003}.tar", val=None):
    """The data set of training shards behind the server."""
    config = config_of([f"{server.url}/{pattern}"], val_shards=[val or f"{server.url}/val.tar"])
    return load_shards(config.model_copy(update={} if val else {"val_shards": []}))


def tars_asked(server):
    return {path: count for path, count in server.asked.items() if path.endswith(".tar")}


def fetched() -> list[Path]:
    return list((files.CACHE / "shards" / "fetched").glob("*.tar"))


def forget_fetched():
    for path in fetched():
        path.unlink()


def test_the_data_set_is_that_of_the_files_and_each_is_fetched_once(server, shards):
    config = config_of(shards).model_copy(update={"val_shards": []})
    assert remote(server).identity == load_shards(config).identity
    assert remote(server).identity == load_shards(config).identity  # from the index
    assert set(tars_asked(server).values()) == {1}


def test_what_is_kept_of_shards_outlasts_a_power_cut(renamed, server, shards):
    dataset = remote(server)
    dataset.source.load(dataset.splits["train"].images[0])
    assert {Path(name).suffix for name in renamed} >= {".looks", ".json", ".tar"}


def test_images_are_fetched_when_they_are_read_and_the_tars_used_last_are_kept(server, shards, monkeypatch):
    monkeypatch.setattr(shard_files, "WINDOW", 1)
    dataset = remote(server)
    names, source = dataset.splits["train"].images, dataset.source
    forget_fetched()
    server.asked.clear()
    assert source.load(names[0]).size == source.load(names[4]).size == (40, 40)
    assert tars_asked(server) == {"/00000.tar": 1}
    for row in (5, 10, 0, 15):
        source.read(names[row])
    assert len(fetched()) == 3  # the second is gone
    assert source.read(names[0]) == open_member(shards[0])
    source.read(names[5])
    assert tars_asked(server) == {"/00000.tar": 1, "/00001.tar": 2, "/00002.tar": 1, "/00003.tar": 1}


def open_member(shard):
    with tarfile.open(shard) as archive:
        return archive.extractfile(archive.getmembers()[0]).read()


@pytest.mark.usefixtures("shards")
def test_the_next_shards_are_fetched_meanwhile(server):
    source = remote(server).source
    server.asked.clear()
    forget_fetched()
    source.fetch_soon([1, 2])
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "mmlib-shards"]
    thread.join(30)
    assert tars_asked(server) == {"/00001.tar": 1, "/00002.tar": 1}


def test_an_epoch_over_urls_is_that_of_the_files_with_three_windows_on_the_disk(server, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 2)
    monkeypatch.setattr(shard_files, "WINDOW", 2)
    local = write_numbered(server.folder, [2] * 14)
    write_numbered(server.folder / "val", [1])
    val = f"{server.url}/val/00000.tar"
    there = remote(server, "{00000..00013}.tar", val)
    here = load_shards(config_of(local, val_shards=[str(server.folder / "val" / "00000.tar")]))
    server.asked.clear()
    on_disk = []

    def ids_and_pixels(dataset):
        tokenizer = build_tokenizer("word", dataset.splits["train"].captions)
        store = open_store(dataset, SIZE)
        data = SplitTensors(dataset, store, tokenizer, "train", 8, 1, torch.device("cpu"))
        source = PairSource(data, 2, "all", 0, AugmentConfig())
        for batch in source.batches(1, 0):
            on_disk.append(len(fetched()))
            yield batch.image_id_R.tolist(), batch.image.numpy().tobytes()

    assert list(ids_and_pixels(there)) == list(ids_and_pixels(here))
    assert max(on_disk) < 12  # six, and what threads are fetching


@pytest.mark.usefixtures("shards")
def test_a_file_that_another_process_deletes_is_fetched_again(server):
    dataset = remote(server)
    name = dataset.splits["train"].images[0]
    content = dataset.source.read(name)
    forget_fetched()
    assert dataset.source.read(name) == content


def test_a_shard_that_changed_behind_its_url_is_refused_and_read_anew(server, shards):
    dataset = remote(server)
    name = dataset.splits["train"].images[0]
    write_numbered(server.folder, [4] + [5] * 3)
    forget_fetched()
    with pytest.raises(
        ValueError, match=r"00000\.tar has changed since it was indexed; start again to index it anew"
    ):
        dataset.source.read(name)
    assert len(remote(server).splits["train"].images) == 19


@pytest.mark.parametrize("fault", [503, 429, "cut", "hang up"])
@pytest.mark.usefixtures("shards")
def test_what_passes_is_tried_again(server, fault):
    server.faults["/00002.tar"] = [fault, fault]
    assert len(remote(server).splits["train"].images) == 20
    assert server.asked["/00002.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(503, "HTTP 503 Service Unavailable"), ("cut", "the connection ended [0-9,]+ bytes before the end")],
)
@pytest.mark.usefixtures("shards")
def test_what_does_not_pass_is_an_error_with_the_url_and_the_last_reason(server, fault, reason):
    server.faults["/00001.tar"] = [500, *[fault] * 10]
    with pytest.raises(
        ConnectionError, match=f"{server.url}/00001.tar, found none in 3 tries, the last time: {reason}"
    ):
        remote(server)
    assert list(files.CACHE.rglob("*.part")) == []


@pytest.mark.usefixtures("shards")
def test_an_address_is_written_as_people_write_it(server):
    write_numbered(server.folder / "café 1", [2])
    assert len(remote(server, "café 1/00000.tar").splits["train"].images) == 2
    assert tars_asked(server) == {"/caf%C3%A9%201/00000.tar": 1}


def test_what_is_not_there_is_asked_for_once(server):
    with pytest.raises(
        FileNotFoundError, match=f"a shard at {server.url}/gone.tar, found: HTTP 404 File not"
    ):
        remote(server, "gone.tar")
    server.faults["/00001.tar"] = [403]
    with pytest.raises(ConnectionError, match="HTTP 403 Forbidden; correct the address"):
        remote(server, "00001.tar")
    assert server.asked["/00001.tar"] == 1


@pytest.mark.parametrize("fault", [("length", str(2**40)), ("length", "9" * 30), "endless"])
@pytest.mark.usefixtures("shards")
def test_what_is_too_large_is_refused_at_once(server, monkeypatch, fault):
    monkeypatch.setattr(shard_files, "MAX_BYTES", 2**22)
    server.faults["/00000.tar"] = [fault]
    with pytest.raises(ValueError, match=r"a shard of at most 4,194,304 bytes at .*00000\.tar, found more"):
        remote(server, "00000.tar")
    assert server.asked["/00000.tar"] == 1
    assert list(files.CACHE.rglob("*.part")) == []


def test_a_server_that_is_not_there(server, shards):
    assert shards
    server.shutdown()
    server.server_close()
    with pytest.raises(
        ConnectionError, match=f"{server.url}/00000.tar, found none in 3 tries, the last time: .*refused"
    ):
        remote(server, "00000.tar")


def test_remote_val_shards_are_fetched_once_and_kept(server):
    images = [(f"{n}.jpg", [f"caption {n}"]) for n in range(3)]
    write_shards(dataset_of(train=images[:1], val=images), server.folder)
    for _ in range(2):
        dataset = remote(server, "train-000000.tar", f"{server.url}/val-000000.tar?signed=1")
        names = dataset.splits["val"].images
        assert dataset.source.load(names[1]).tobytes() == picture(1).tobytes()
    assert server.asked == {"/train-000000.tar": 1, "/val-000000.tar?signed=1": 1}
