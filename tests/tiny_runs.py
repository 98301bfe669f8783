"""Runs of a second: parameters, what a run left behind, and ways to stop one at a chosen moment."""

import contextlib
import signal
from types import SimpleNamespace

import torch

from mmlib.config import ContinueConfig, EvaluateConfig, TrainConfig, build
from mmlib.training import continue_training, evaluate, read_history, run_folder, train
from mmlib.training.checkpoint import load_checkpoint
from mmlib.training.loop import Learner

TINY = {
    "run": "tiny", "dataset": "shapes", "shapes_train": 24, "shapes_val": 8, "shapes_test": 8,
    "image_size": 16, "patch_size": 8, "max_tokens": 24, "latent_dim": 16, "num_heads": 2, "num_layers": 1,
    "memory_slots": 4, "feedback_steps": 1, "dropout": 0.1, "tokenizer": "char",
    "temperature": 0.07, "learn_temperature": False, "identity_positives": True,
    "epochs": 2, "batch_size": 30, "captions_per_image": "all", "optimizer": "adamw", "lr": 0.01,
    "weight_decay": 0.0, "clip_norm": 1.0, "schedule": "cosine", "schedule_unit": "epoch",
    "warmup_epochs": 0.0, "final_lr_fraction": 0.01, "select_by": "rsum", "device": "cpu",
    "checkpoint_steps": 99,  # at each epoch's end
}  # fmt: skip
STEPS = 4  # of an epoch: 24 images with 5 captions each, 30 pairs at once
SGD_ALL = {"optimizer": "sgd", "captions_per_image": "all"}
ADAMW_ONE = {"optimizer": "adamw", "captions_per_image": "one", "batch_size": 6}  # 24 pairs, 4 steps
RECIPES = {"sgd-all": SGD_ALL, "adamw-one": ADAMW_ONE}


def quiet(line: str) -> None:
    """A log that keeps nothing."""


def tiny_config(**changes) -> TrainConfig:
    return build(TrainConfig, TINY | changes)


def tiny_train(log=quiet, if_complete="refuse", **changes) -> list[dict]:
    return train(tiny_config(**changes), log, if_complete)


def tiny_continue(log=quiet, if_complete="refuse", **changes) -> list[dict]:
    defaults = {
        "run": "child",
        "parent": "tiny",
        "epochs": 2,
        "lr": 0.005,
        "device": "cpu",
        "checkpoint_steps": 99,
    }
    return continue_training(build(ContinueConfig, defaults | changes), log, if_complete)


def tiny_evaluate(*runs: str, **changes) -> list[dict]:
    defaults = {"runs": list(runs) or ["tiny"], "device": "cpu", "gallery_queries": 4}
    return evaluate(build(EvaluateConfig, defaults | changes))


def checkpoint(run: str, name: str = "last") -> dict:
    return load_checkpoint(run_folder(run) / f"{name}.pt")


def left_behind(run: str) -> dict:
    """All that a run left which must not depend on interruptions: everything but times."""
    history = [
        {key: value for key, value in row.items() if key not in ("seconds", "pairs_per_s")}
        for row in read_history(run)
    ]
    checkpoints = {name: checkpoint(run, name) for name in ("best", "last")}
    for content in checkpoints.values():
        del content["position"]["seconds"]
    weights = (run_folder(run) / "model.safetensors").read_bytes()
    return {"history": history, "weights": weights, **checkpoints}


def assert_same(there, here, where: str = "") -> None:
    """Equal to the last bit, tensors included; says where not."""
    assert type(there) is type(here), where
    if isinstance(there, torch.Tensor):
        assert torch.equal(there, here), where
    elif isinstance(there, dict):
        assert there.keys() == here.keys(), where
        for key in there:
            assert_same(there[key], here[key], f"{where}/{key}")
    elif isinstance(there, list | tuple):
        assert len(there) == len(here), where
        for place, (one, other) in enumerate(zip(there, here)):
            assert_same(one, other, f"{where}/{place}")
    else:
        assert there == here, where


def before_step(monkeypatch, number: int, act) -> list[float]:
    """Calls `act(training)` right before the `number`-th step (from 1) that is made from now on.

    Returns a list that fills with the learning rate of each step, as the optimizer has it.
    """
    rates = []
    step = Learner.backward

    def counted(training, caption_B):
        rates.append([group["lr"] for group in training.optimizer.param_groups])
        if len(rates) == number:
            act(training)
        return step(training, caption_B)

    monkeypatch.setattr(Learner, "backward", counted)
    return rates


def press_ctrl_c(*_) -> None:
    """What the terminal does on Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def half_written(name: str, number: int, act):
    """An `open` to put into a module: files whose name starts with `name` break, from the `number`-th on.

    Half of what is written to such a file reaches the disk, then `act()` is called.
    """
    opened = []

    @contextlib.contextmanager
    def breaking_open(path, mode):
        opened.append(path.name.startswith(name))
        with open(path, mode) as file:
            if not (opened[-1] and sum(opened) >= number):
                yield file
                return

            def write(data):
                file.write(bytes(data[: len(data) // 2]))
                file.flush()
                act()

            yield SimpleNamespace(write=write)

    return breaking_open
