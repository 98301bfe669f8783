"""Shards behind URLs: the same stream as from a disk, whatever the server does; or a clear error."""

import http.server
import os
import threading
from collections import Counter
from functools import partial

import pytest
import torch
from test_shards_stream import content_of
from tiny_shards import NO_IMAGES, config_of, dataset_of, picture, write_numbered

from mmlib import paths
from mmlib.data.shards import ShardStream, load_shards, write_shards
from mmlib.data.shards.fetching import Retry, open_shard
from mmlib.data.shards.places import Place
from mmlib.data.tokenizers import build_tokenizer

TOKENIZER = build_tokenizer("word", [f"sample {n} caption 0" for n in range(40)], 1)
NOW = Retry(tries=3, wait=0.0, timeout=10.0)


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
        else:
            super().do_GET()

    def do_HEAD(self):
        if self.server.without_head:
            self.send_error(self.server.without_head)
        else:
            super().do_HEAD()

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
    server.asked, server.faults, server.without_head = Counter(), {}, None
    server.folder, server.url = folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def shards(server):
    """20 samples in 4 shards, behind the server; their paths on the disk."""
    return write_numbered(server.folder, [5] * 4)


def stream_of(shards, held_out=NO_IMAGES, retry=NOW, **changes):
    return ShardStream(
        config_of(shards, **changes), TOKENIZER, held_out, 0, 1, 2, torch.device("cpu"), buffer=6, retry=retry
    )


def remote(server, pattern="{00000..00003}.tar"):
    return stream_of([f"{server.url}/{pattern}"])


def test_the_stream_is_that_of_the_files(server, shards):
    expected = content_of(stream_of(shards).batches(0, 1))
    stream = remote(server)
    assert stream.identity == stream_of(shards).identity
    assert content_of(stream.batches(0, 1)) == expected
    assert content_of(remote(server).batches(0, 1, start_step=3)) == expected[3:]


def test_counting_fetches_once_and_an_epoch_once_more(server, shards):
    assert len(shards) == 4
    assert server.asked == Counter()
    remote(server)
    remote(server)
    tars = {path: count for path, count in server.asked.items() if path.endswith(".tar")}
    assert set(tars.values()) == {1}
    list(remote(server).batches(0, 1))
    assert {count for path, count in server.asked.items() if path.endswith(".tar")} == {2}


def test_a_manifest_saves_the_counting(server):
    images = [(f"{n}.jpg", [f"sample {n} caption 0"]) for n in range(9)]
    write_shards(dataset_of(train=images), server.folder, samples_per_shard=3)
    stream = remote(server, "train-{000000..000002}.tar")
    assert (stream.pairs, server.asked) == (9, {"/shards.json": 1})
    assert sorted(i for batch in stream.batches(0, 1) for i in batch.image_id_R.tolist())[0] == 0
    (server.folder / "train-000001.tar").write_bytes(
        (server.folder / "train-000000.tar").read_bytes() + bytes(512)
    )
    remote(server, "train-{000000..000002}.tar")  # another size than listed: counted
    assert server.asked["/train-000001.tar"] == 2


@pytest.mark.parametrize("fault", [503, 429, "cut", "hang up"])
def test_what_passes_is_tried_again(server, shards, fault):
    expected = content_of(stream_of(shards).batches(0, 1))
    stream = remote(server)
    server.faults["/00002.tar"] = [fault, fault]
    server.asked.clear()
    assert content_of(stream.batches(0, 1)) == expected
    assert server.asked["/00002.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(503, "HTTP 503 Service Unavailable"), ("cut", "the connection ended after [0-9,]+ of [0-9,]+ bytes")],
)
@pytest.mark.usefixtures("shards")
def test_what_does_not_pass_is_an_error_with_the_url_and_the_last_reason(server, fault, reason):
    stream = remote(server)
    server.faults["/00001.tar"] = [500, *[fault] * 10]
    with pytest.raises(
        ConnectionError, match=f"{server.url}/00001.tar, found none in 3 tries, the last time: {reason}"
    ):
        list(stream.batches(0, 1))
    assert threading.active_count() < 10


@pytest.mark.usefixtures("shards")
def test_what_is_not_there_is_asked_for_once(server):
    with pytest.raises(
        FileNotFoundError, match=f"a shard at {server.url}/gone.tar, found: HTTP 404 File not"
    ):
        remote(server, "gone.tar")
    server.faults["/00001.tar"] = [403]
    with pytest.raises(ConnectionError, match="HTTP 403 Forbidden; correct the address"):
        remote(server)
    assert server.asked["/00001.tar"] == 1


def test_a_server_that_is_not_there(server, shards):
    assert shards
    url = f"{server.url}/00000.tar"
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=f"{url}, found none in 3 tries, the last time: .*refused"):
        stream_of([url])


@pytest.mark.parametrize("answer", [405, 403, 501])
def test_a_server_that_tells_no_sizes(server, shards, answer):
    expected = content_of(stream_of(shards).batches(0, 1))
    server.without_head = answer
    assert content_of(remote(server).batches(0, 1)) == expected


def test_remote_val_shards_are_fetched_once_and_kept(server):
    images = [(f"{n}.jpg", [f"caption {n}"]) for n in range(3)]
    write_shards(dataset_of(val=images), server.folder)
    config = config_of(["x"], val_shards=[f"{server.url}/val-000000.tar?signed=1"])
    for _ in range(2):
        dataset = load_shards(config, NOW)
        assert dataset.splits["val"].images == ("0.jpg", "1.jpg", "2.jpg")
        assert dataset.source.load("1.jpg").tobytes() == picture(1).tobytes()
    assert server.asked == {"/val-000000.tar?signed=1": 1}


@pytest.mark.usefixtures("shards")
def test_a_fetched_shard_leaves_nothing_on_the_disk(server):
    with open_shard(Place(f"{server.url}/00000.tar"), NOW) as file:
        assert file.read(13) == b"000000000.jpg"
    assert os.listdir(paths.CACHE / "shards") == []


@pytest.mark.usefixtures("shards")
def test_closing_does_not_wait_for_a_server(server):
    """A stream that is closed while it waits to try again ends at once."""
    stream = stream_of([f"{server.url}/{{00000..00003}}.tar"], retry=Retry(tries=3, wait=1e6))
    waiting = threading.Event()
    for shard in range(4):
        server.faults[f"/{shard:05d}.tar"] = []
    batches = stream.batches(0, 1)
    first = stream._index.places[_order(stream)[-1]].name
    server.faults[f"/{first}"] = [503] * 5
    next(batches)
    waiting.set()
    batches.close()
    assert threading.active_count() < 10


def _order(stream):
    from mmlib.data.shards.order import epoch_segments

    return [segment.shard for segment in epoch_segments(stream._index.samples, 0, 1, 0, 1)]
