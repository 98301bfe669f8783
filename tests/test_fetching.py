"""Servers that never answer: they are given up, and what lies in the cache is read."""

import logging
import socket
import urllib.request
from types import SimpleNamespace

import pytest

from mmlib import files
from mmlib.data.tokenizers.pretrained import from_open_clip, from_transformers
from mmlib.files import fetching
from mmlib.model.backbones import build_timm
from mmlib.model.pretrained import downloading


@pytest.fixture
def silent_server(monkeypatch):
    """A server that takes connections and never says a word, and a short patience with it."""
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def address(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def calls(server: socket.socket) -> int:
    """How often the server was called."""
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.fixture
def silent_hub(silent_server, monkeypatch, tmp_path):
    """The hub of Hugging Face as that server, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address(silent_server))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return silent_server


@pytest.mark.parametrize(
    ("load", "what"),
    [
        (
            lambda: build_timm("test_resnet", SimpleNamespace(image_weights="default"), load_pretrained=True),
            "weights 'default' of timm:test_resnet",
        ),
        (lambda: from_transformers("some/encoder"), "the tokenizer of hf:some/encoder"),
        (lambda: from_open_clip("roberta-ViT-B-32"), "the tokenizer of open_clip:roberta-ViT-B-32"),
    ],
    ids=["weights", "transformers", "open_clip"],
)
def test_a_silent_hub_is_asked_once_and_what_is_looked_for_is_said(load, what, silent_hub, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(FileNotFoundError) as caught:
        load()
    said = [record.message for record in caplog.records if record.name == "mmlib.files"]
    assert said == [f"looking for {what} in the library's cache, or downloading it"]
    assert f"{address(silent_hub)} does not answer" in str(caught.value)
    assert calls(silent_hub) == 1


def test_what_the_cache_has_is_read_though_the_hub_is_silent(silent_hub, tmp_path):
    from huggingface_hub import constants, hf_hub_download

    folder, commit = tmp_path / "models--some--encoder", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    with fetching("x", hub=True):
        path = hf_hub_download("some/encoder", "config.json")
    assert path == str(folder / "snapshots" / commit / "config.json")
    assert calls(silent_hub) == 1
    assert not constants.HF_HUB_OFFLINE


def test_another_server_that_never_answers_is_given_up(silent_server):
    with (
        pytest.raises(FileNotFoundError, match=r"no weights of a: not in the library's cache.*timed out"),
        downloading("a", "weights", "b"),
    ):
        urllib.request.urlopen(f"{address(silent_server)}/weights.pth")
    assert socket.getdefaulttimeout() is None


def test_another_server_is_asked_by_the_library_alone(silent_hub):
    with pytest.raises(ZeroDivisionError), fetching("x", hub=False):
        raise ZeroDivisionError
    assert calls(silent_hub) == 0
