"""Arithmetic and devices: what runs on a CPU, and what is refused there."""

import pytest
import torch
from tiny_runs import assert_same, before_step, left_behind, press_ctrl_c, tiny_train

from mmlib import files
from mmlib.config import ParameterError

pytestmark = pytest.mark.usefixtures("tiny_place")


def test_bf16_on_a_cpu_trains_in_bf16_keeps_fp32_weights_and_resumes_exactly(tmp_path, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "RUNS", tmp_path / "whole")
        before_step(
            patch, 1, lambda t: t.model.fusion[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
        )
        history = tiny_train(precision="bf16")
        whole = left_behind("tiny")
    assert seen[0] == torch.bfloat16  # a training step
    assert torch.float32 in seen  # the validation
    assert all(w.dtype == torch.float32 for w in whole["last"]["model"].values())
    assert 0 < history[-1]["train_loss"] < 8
    with monkeypatch.context() as patch:
        before_step(patch, 3, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            tiny_train(precision="bf16")
    tiny_train(precision="bf16")
    assert_same(whole, left_behind("tiny"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp16"}, "precision: fp16 needs a GPU, found a CPU; use bf16 or fp32"),
        ({"device": "cuda"}, "device: expected a CUDA GPU, found none; use device='auto' or 'cpu'"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_before_anything_is_touched(wrong, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match=message):
        tiny_train(**wrong)
    assert not (files.RUNS / "tiny").exists()
