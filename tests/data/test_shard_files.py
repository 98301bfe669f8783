"""Where shards are: patterns, and URLs whose bytes are those of the files or end in a clear error."""

import contextlib
import http.server
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_shards import SIZE, config_of, dataset_of, picture, write_numbered

from mmlib import files
from mmlib.config import AugmentConfig
from mmlib.data import batches, build_tokenizer, open_store, shard_files
from mmlib.data.batches import PairSource, SplitTensors
from mmlib.data.shard_files import find_shards
from mmlib.data.shards import load_shards, write_shards


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
            content = open_bytes(self.translate_path(self.path))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        elif fault == "hang up":
            self.connection.close()
        elif isinstance(fault, tuple) and fault[0] == "to":
            self.send_response(302)
            self.send_header("Location", fault[1])
            self.end_headers()
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


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


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


def forget_fetched():
    for path in (files.CACHE / "shards" / "fetched").glob("*.tar"):
        path.unlink()


def fetched():
    return sorted(path.suffix for path in (files.CACHE / "shards" / "fetched").iterdir())


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
    assert fetched() == [".tar"] * 3  # the second is gone
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
            on_disk.append(len([suffix for suffix in fetched() if suffix == ".tar"]))
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
        ValueError, match=r"00000\.tar has changed: expected bytes with SHA-256 \w{16}…, as index"
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
    [(503, "HTTP 503 Service Unavailable"), ("cut", "the connection ended after [0-9,]+ of [0-9,]+ bytes")],
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


def test_a_server_that_sends_us_to_an_address_that_is_none(server):
    server.faults["/00000.tar"] = [("to", "http://[::1/x")]
    with pytest.raises(ValueError, match=r"/00000\.tar, found: an address that cannot be asked for"):
        remote(server, "00000.tar")
    assert tars_asked(server) == {"/00000.tar": 1}


@pytest.mark.parametrize("url", ["http://h:port/a.tar", "http:///a.tar", "http://[::1/a.tar", "http:a.tar"])
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match="found: an address that cannot be asked for"):
        load_shards(config_of([url]))


def test_what_is_not_there_is_asked_for_once(server):
    with pytest.raises(
        FileNotFoundError, match=f"a shard at {server.url}/gone.tar, found: HTTP 404 File not"
    ):
        remote(server, "gone.tar")
    server.faults["/00001.tar"] = [403]
    with pytest.raises(ConnectionError, match="HTTP 403 Forbidden; correct the address"):
        remote(server, "00001.tar")
    assert server.asked["/00001.tar"] == 1


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (str(2**40), "1,099,511,627,776 bytes, of which at most 68,719,476,736 are read"),
        ("9" * 30, "999,.*,999 bytes, of which at most"),
    ],
)
@pytest.mark.usefixtures("shards")
def test_a_size_that_cannot_be_is_refused_before_anything_is_read(server, length, message):
    server.faults["/00000.tar"] = [("length", length)]
    with pytest.raises(ValueError, match=f"a shard at {server.url}/00000.tar, found: {message}"):
        remote(server)
    assert server.asked["/00000.tar"] == 1


@pytest.mark.usefixtures("shards")
def test_a_body_without_an_end_is_cut(server, monkeypatch):
    monkeypatch.setattr(shard_files, "MAX_BYTES", 2**22)
    server.faults["/00000.tar"] = ["endless"]
    with pytest.raises(ValueError, match=r"00000\.tar, found: more than 4,194,304 bytes"):
        remote(server, "00000.tar")
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


# --- patterns


def test_patterns_name_shards_in_their_order_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    for name in ("a-000.tar", "a-001.tar", "b.tar", "c [1].tar"):
        (tmp_path / name).touch()
    found = find_shards(
        ["b.tar", "a-{000..001}.tar", "a-*.tar", f"file://{tmp_path}/c%20%5B1%5D.tar", "c [1].tar"], "x"
    )
    assert [place.name for place in found] == ["b.tar", "a-000.tar", "a-001.tar", "c [1].tar"]
    urls = find_shards(["http://host/d/{08..10}.tar?key=a/b", "HTTPS://host/{e,f}-{1..2}.tar"], "x")
    assert [(u.where, u.name, u.is_url) for u in urls] == [
        *((f"http://host/d/{n}.tar?key=a/b", f"{n}.tar", True) for n in ("08", "09", "10")),
        *((f"https://host/{n}.tar", f"{n}.tar", True) for n in ("e-1", "e-2", "f-1", "f-2")),
    ]


@pytest.mark.parametrize("folder", ["photos [2024]", "set {1}", "a*b", "what?"])
def test_a_folder_that_is_there_by_name_is_no_pattern(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(files, "ROOT", tmp_path / folder)
    (tmp_path / folder / folder).mkdir(parents=True)
    for shard in ("0.tar", "1.tar"):
        (tmp_path / folder / folder / shard).touch()
    inside, whole = folder, str(tmp_path / folder / folder)
    for pattern in ("*.tar", "{0..1}.tar", "[01].tar"):
        for start in (inside, whole, f"file://{whole}") if folder != "what?" else (inside, whole):
            assert [p.name for p in find_shards([f"{start}/{pattern}"], "x")] == ["0.tar", "1.tar"]
    assert [p.name for p in find_shards([f"{whole}/1.tar"], "x")] == ["1.tar"]


@pytest.mark.parametrize(
    ("pattern", "kind", "message"),
    [
        ("gone-*.tar", FileNotFoundError, r"x: expected tar files that match 'gone-\*\.tar'"),
        ("a-{000..001}.tar", FileNotFoundError, r"'a-\{000\.\.001\}\.tar', found none \(for 'a-001\.tar' of"),
        (".", FileNotFoundError, r"it is a folder, add /train-\*\.tar or the like"),
        ("s3://bucket/a.tar", ValueError, "a URL of http, https or file, found 's3://bucket/a"),
        ("pipe:cat a.tar", ValueError, "a URL of http, https or file, found 'pipe:"),
        ("a-{0..1.tar", ValueError, r"x: expected balanced braces, not nested, found 'a-\{0"),
        ("a-{0}.tar", ValueError, r"expected \{first\.\.last\} or \{a,b\} in 'a-\{0\}\.tar', found \{0\}"),
        ("{0..999999999999}.tar", ValueError, "a pattern for 1 to 1,000,000 shards, found 1,000,000,000,000"),
        ("{0..9999}/{0..9999}.tar", ValueError, "a pattern for 1 to 1,000,000 shards, found 100,000,000"),
        ("a\0.tar", ValueError, r"x: expected a path or a URL, found 'a\\x00\.tar'"),
        ("{5..3}.tar", ValueError, "a pattern for 1 to 1,000,000 shards, found 0"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(tmp_path, monkeypatch, pattern, kind, message):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "a-000.tar").touch()
    with pytest.raises(kind, match=message):
        find_shards(["a-000.tar", pattern], "x")
