"""Copies of a training's state: whole, and untouched by what training does afterwards."""

import contextlib

import pytest
import torch

from mmlib.training import snapshot
from mmlib.training.snapshot import FREE_TIMES, Snapshot

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def content(device: str = "cpu") -> dict:
    """Nested as a checkpoint is, with a tensor that needs a gradient among the others."""
    weight = torch.ones(3, device=device, requires_grad=True)
    return {"model": {"w": weight}, "rng": [(torch.zeros(2), 7, None), "x"], "epoch": 2}


def spoil(original: dict) -> None:
    """What training does to the original after the copy."""
    with torch.no_grad():
        original["model"]["w"].fill_(9)
    original["rng"][0][0].fill_(9)
    original["model"]["v"] = torch.ones(1)
    original["epoch"] = 3


def check_is_as_before(found: dict) -> None:
    weight = found["model"].pop("w")
    zeros, seven, none = found["rng"][0]
    assert (weight.tolist(), weight.device.type, weight.requires_grad) == ([1, 1, 1], "cpu", False)
    assert (zeros.tolist(), seven, none, found["rng"][1]) == ([0, 0], 7, None, "x")
    assert (found["model"], found["epoch"]) == ({}, 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_a_copy_stays_as_it_was(device):
    original = content(device)
    copied = Snapshot(original)
    spoil(original)
    check_is_as_before(copied.on_host())


def test_a_copy_on_the_gpu_is_fetched_on_a_stream_of_its_own_once_it_is_made(monkeypatch):
    done = []

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def record_event(self):
            done.append("made")
            return "event"

        def wait_event(self, event):
            done.append(f"waited for {event}")

    @contextlib.contextmanager
    def entered(stream):
        done.append("entered")
        yield

    monkeypatch.setattr(snapshot, "_gpu_with_room", lambda content: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    original = content()
    copied = Snapshot(original)
    spoil(original)
    assert done == ["made"]
    check_is_as_before(copied.on_host())
    assert done == ["made", "waited for event", "entered"]


@on_gpu
@pytest.mark.parametrize(("times", "stays"), [(FREE_TIMES, True), (FREE_TIMES - 1, False)])
def test_a_copy_stays_on_the_gpu_only_where_there_is_room(monkeypatch, times, stays):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (times * 3 * 4, 0))
    kept = Snapshot(content("cuda"))._content["model"]["w"]
    assert kept.is_cuda == stays
