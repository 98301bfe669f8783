"""The course of the learning rate against values worked by hand and PyTorch's own schedulers."""

import pytest
import torch
from tiny_runs import STEPS, before_step, tiny_config, tiny_train

from mmlib.training import loop
from mmlib.training.optimisation import learning_rate


def rates(steps=4, **changes) -> list[float]:
    """The learning rate of every step of a phase."""
    config = tiny_config(**changes)
    return [learning_rate(config, e, s, steps) for e in range(config.epochs) for s in range(steps)]


def torch_rates(scheduler_class, count: int, lr: float, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_class(optimizer, **options)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_per_epoch_is_the_one_of_pytorch_down_to_one_percent():
    ours = rates(epochs=30, lr=0.01, schedule_unit="epoch")
    theirs = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 30, 0.01, T_max=30, eta_min=0.0001)
    assert ours[::4] == pytest.approx(theirs)
    assert all(len(set(ours[e * 4 : e * 4 + 4])) == 1 for e in range(30))  # one rate an epoch


def test_cosine_per_step_is_the_one_of_pytorch():
    ours = rates(epochs=5, lr=0.01, schedule_unit="step")
    theirs = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 20, 0.01, T_max=20, eta_min=0.0001)
    assert ours == pytest.approx(theirs)


def test_cosine_by_hand():
    # cos 0, 60, 120 degrees = 1, 1/2, -1/2: shares 1, 3/4, 1/4 of the way from 0 to the base rate.
    assert rates(steps=1, epochs=3, lr=0.4, final_lr_fraction=0.0) == pytest.approx([0.4, 0.3, 0.1])
    # Half of the way stays: 0.2 + 0.2 · (1, 3/4, 1/4).
    assert rates(steps=1, epochs=3, lr=0.4, final_lr_fraction=0.5) == pytest.approx([0.4, 0.35, 0.25])


def test_warm_up_rises_linearly_and_the_cosine_has_the_rest():
    found = rates(steps=4, epochs=3, lr=0.4, warmup_epochs=1, schedule_unit="step", final_lr_fraction=0.0)
    assert found[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # Of the eight steps left: share 0 at the first, half at the fifth (cos 90° = 0).
    assert found[4] == pytest.approx(0.4)
    assert found[8] == pytest.approx(0.2)


def test_warm_up_of_a_fraction_of_an_epoch():
    found = rates(steps=4, epochs=2, lr=0.3, warmup_epochs=0.75, schedule="constant")
    assert found == pytest.approx([0.1, 0.2] + [0.3] * 6)


def test_warm_up_with_a_cosine_per_epoch():
    found = rates(steps=2, epochs=3, lr=0.4, warmup_epochs=1, final_lr_fraction=0.0)
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.2, 0.2])


def test_constant_is_constant():
    assert set(rates(epochs=3, lr=0.4, schedule="constant")) == {0.4}


@pytest.mark.usefixtures("tiny_place")
def test_the_optimizer_runs_at_these_rates_and_the_history_keeps_the_first_of_each_epoch(monkeypatch):
    changes = {"epochs": 3, "lr": 0.01, "warmup_epochs": 0.5, "schedule_unit": "step"}
    seen = before_step(monkeypatch, 0, None)
    history = tiny_train(**changes)
    assert [groups[0] for groups in seen] == rates(STEPS, **changes)
    assert [row["lr"] for row in history] == rates(STEPS, **changes)[::STEPS]


@pytest.mark.usefixtures("tiny_place")
def test_gradients_are_clipped_to_the_norm_that_was_asked_for(monkeypatch):
    norms, rank_split = [], loop.rank_split

    def record(model, *more):  # at the epoch's end, the gradients are those of its last step as clipped
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())
        return rank_split(model, *more)

    monkeypatch.setattr(loop, "rank_split", record)
    tiny_train(run="clipped", epochs=1, clip_norm=0.001)
    tiny_train(run="unclipped", epochs=1, clip_norm=0)
    assert norms[0] == pytest.approx(0.001, rel=1e-3)
    assert norms[1] > 0.1
