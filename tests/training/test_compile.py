"""A compiled model trains to the same numbers, and `auto` leaves short runs alone."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import checkpoint, tiny_config, tiny_train

from mmlib.training.processes import COMPILE_STEPS, compiles


def fabric(device: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(device))


@pytest.mark.parametrize(
    ("compile", "device", "steps", "expected"),
    [
        ("auto", "cpu", 10 * COMPILE_STEPS, False),
        ("auto", "cuda", COMPILE_STEPS - 2, False),
        ("auto", "cuda", COMPILE_STEPS, True),
        ("on", "cpu", 2, True),
        ("off", "cuda", 10 * COMPILE_STEPS, False),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(compile, device, steps, expected):
    config = tiny_config(compile=compile, epochs=2, batch_size=10)
    assert compiles(config, fabric(device), pairs=10 * steps // 2) is expected


def test_a_compiled_run_has_the_numbers_and_the_names_of_a_plain_one(tiny_place, monkeypatch):
    # The graph is captured as for any backend, and run by torch: generating code takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = tiny_train(run="plain", dropout=0.0, compile="off")
    compiled = tiny_train(run="compiled", dropout=0.0, compile="on")
    for there, here in zip(plain, compiled, strict=True):
        assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-4)
    there, here = (checkpoint(run)["model"] for run in ("plain", "compiled"))
    assert there.keys() == here.keys()
    for name, weight in there.items():
        torch.testing.assert_close(here[name], weight, rtol=1e-3, atol=1e-4)
