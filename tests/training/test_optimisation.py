"""Optimizers: which one, which groups, at which multiple of the rate, and whose state."""

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from tiny_runs import assert_same, tiny_config
from torch import nn

from mmlib.config.parameters import OPTIMIZERS
from mmlib.training.optimisation import (
    build_optimizer,
    keep_optimizer_state,
    optimizer_names,
    rate_scales,
)

CLASSES = {
    "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam, "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop, "adafactor": torch.optim.Adafactor,
}  # fmt: skip
FUSED = ("sgd", "adamw", "adam", "adagrad")
DECOUPLED = ("adamw", "adafactor")


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Tower(nn.Module):
    """Two blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


def trained(model, optimizer, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def build(modules, rate_of=None, **changes):
    modules = modules if isinstance(modules, tuple) else (modules,)
    if callable(rate_of):
        rate_of = {p: rate_of(name) for module in modules for name, p in module.named_parameters()}
    return build_optimizer(tiny_config(**changes), modules, rate_of or {})


def checkpoint(optimizer, *modules):
    return {
        "optimizer": optimizer.state_dict(),
        "optimizer_names": optimizer_names(optimizer, modules),
    }


# --- which optimizer


def test_every_name_of_the_config_is_here():
    assert set(CLASSES) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_is_that_of_pytorch_and_steps_as_it_does(name):
    """Whatever is fused: the same weights as the plain loop over tensors, but for rounding."""
    ours, theirs = Tower(), Tower()
    theirs.load_state_dict(ours.state_dict())
    optimizer = build(ours, optimizer=name, lr=0.01, weight_decay=0.1, momentum=0.8)
    assert type(optimizer) is CLASSES[name]
    options = {"momentum": 0.8} if name in ("sgd", "rmsprop") else {}
    options |= {"nesterov": True} if name == "sgd" else {}
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == n], "weight_decay": decay}
        for n, decay in ((2, 0.1), (1, 0.0))
    ]
    reference = CLASSES[name](groups, lr=0.01, foreach=False, **options)
    before = [p.detach().clone() for p in ours.parameters()]
    found, expected = trained(ours, optimizer), trained(theirs, reference)
    for one, other, start in zip(found, expected, before):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_run_gives_the_same_bits(name):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Tower()
        results.append(trained(model, build(model, optimizer=name, weight_decay=0.1)))
    assert all(torch.equal(one, other) for one, other in zip(*results))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_decoupled_from_the_gradient_where_it_is_said_to_be(name):
    model = nn.Linear(3, 3, bias=False)
    optimizer = build(model, optimizer=name, lr=0.5, weight_decay=0.1, momentum=0.0)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros_like(before)
    for _ in range(2):  # the first one of radam is plain
        optimizer.step()
    only_shrunk = torch.allclose(model.weight, before * (1 - 0.5 * 0.1) ** 2, rtol=1e-6)
    # SGD without momentum is where L2 and decoupled decay are the same.
    assert only_shrunk == (name in (*DECOUPLED, "sgd"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_kernel_for_all_weights_where_pytorch_has_it(name):
    optimizer = build(Tower(), optimizer=name)
    assert bool(optimizer.defaults.get("fused")) == (name in FUSED)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_can_be_clipped_under_fp16(name):
    """Fabric refuses to clip for optimizers that unscale gradients on their own."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    model = Tower()
    optimizer = build(model, optimizer=name, precision="fp16", device="cuda")
    forward, stepper = fabric.setup_module(model), fabric.setup_optimizers(optimizer)
    fabric.backward(forward(torch.randn(4, 3)).sum())
    fabric.clip_gradients(forward, stepper, max_norm=0.5, error_if_nonfinite=False)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_nesterov_where_there_is_momentum(momentum):
    optimizer = build(nn.Linear(2, 2), optimizer="sgd", momentum=momentum)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (momentum, momentum > 0)


# --- groups


def test_weight_decay_is_of_matrices_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    matrices, vectors = build(model, weight_decay=0.1).param_groups
    assert [tuple(p.shape) for p in matrices["params"]] == [(3, 4)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(3,), (3,), (3,)]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert (matrices["scale"], vectors["scale"]) == (1.0, 1.0)


def test_what_is_frozen_is_in_no_group():
    model = Tower()
    model.blocks.requires_grad_(False)
    optimizer = build(model)
    assert optimizer_names(optimizer, (model,)) == ["head.weight", "head.bias"]


def by_name(optimizer, *modules):
    names = iter(optimizer_names(optimizer, modules))
    return {next(names): group for group in optimizer.param_groups for _ in group["params"]}


def test_scales_by_name_make_groups_of_their_own():
    model = Tower()
    optimizer = build(model, lambda name: 0.1 if name.startswith("blocks") else 1, lr=0.5, weight_decay=0.1)
    found = {name: (g["scale"], g["lr"], g["weight_decay"]) for name, g in by_name(optimizer, model).items()}
    assert len(optimizer.param_groups) == 4
    assert found["blocks.0.weight"] == found["blocks.1.weight"] == (0.1, 0.05, 0.1)
    assert found["blocks.0.bias"] == (0.1, 0.05, 0.0)
    assert found["head.weight"] == (1.0, 0.5, 0.1)
    assert found["head.bias"] == (1.0, 0.5, 0.0)


def test_scales_by_parameter_leave_the_others_at_one():
    model = Tower()
    optimizer = build(model, {model.head.weight: 0.25})
    assert {name: g["scale"] for name, g in by_name(optimizer, model).items() if g["scale"] != 1} == {
        "head.weight": 0.25
    }


def test_a_step_is_as_long_as_its_scale():
    moved = {}
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        model = Tower()
        before = model.head.weight.detach().clone()
        trained(model, build(model, lambda name, s=scale: s, optimizer="sgd", momentum=0.0), steps=1)
        moved[scale] = model.head.weight.detach() - before
    torch.testing.assert_close(moved[0.1], 0.1 * moved[1.0], rtol=1e-4, atol=1e-7)


def test_layer_decay_falls_from_the_last_block_to_the_first():
    model = Tower()
    scales = rate_scales([part.parameters() for part in (*model.blocks, model.head)], 0.2, 0.5)
    by_weight = {name: scales[p] for name, p in model.named_parameters()}
    assert by_weight == {
        "blocks.0.weight": pytest.approx(0.05), "blocks.0.bias": pytest.approx(0.05),
        "blocks.1.weight": pytest.approx(0.1), "blocks.1.bias": pytest.approx(0.1),
        "head.weight": pytest.approx(0.2), "head.bias": pytest.approx(0.2),
    }  # fmt: skip
    assert len(build(model, scales).param_groups) == 6


def test_a_parameter_of_two_blocks_has_the_rate_of_the_last():
    tied, other = list(nn.Linear(2, 2).parameters()), list(nn.Linear(2, 2).parameters())
    assert set(rate_scales([tied, other, tied], 1.0, 0.5).values()) == {1.0, 0.5}
    assert rate_scales([tied, tied], 1.0, 0.5)[tied[0]] == 1.0


# --- state of the parent


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_is_kept_and_the_settings_are_not(name):
    parent = Tower()
    theirs = build(parent, optimizer=name, lr=0.1, weight_decay=0.2)
    trained(parent, theirs)
    child = Tower()
    ours = build(child, optimizer=name, lr=0.005, weight_decay=0.0)
    keep_optimizer_state(ours, checkpoint(theirs, parent), (child,))
    assert_same(ours.state_dict()["state"], theirs.state_dict()["state"])
    assert {g["lr"] for g in ours.param_groups} == {0.005}
    assert {g["weight_decay"] for g in ours.param_groups} == {0.0}
    trained(child, ours, steps=1)  # the state fits


def state_by_name(optimizer, *modules):
    state = optimizer.state_dict()["state"]
    return {name: state.get(i) for i, name in enumerate(optimizer_names(optimizer, modules))}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tower_that_is_unfrozen_starts_without_state_and_the_rest_keeps_its_own(name):
    """The groups differ in number, order and scale: only names can tell."""
    parent = Tower()
    parent.blocks[0].requires_grad_(False)
    theirs = build(parent, optimizer=name)
    trained(parent, theirs)
    child = Tower()
    ours = build(child, lambda n: 0.1 if "blocks" in n else 1.0, optimizer=name)
    fresh = state_by_name(ours, child)
    keep_optimizer_state(ours, checkpoint(theirs, parent), (child,))
    there, here = state_by_name(theirs, parent), state_by_name(ours, child)
    assert len(there) == 4
    kept = {parameter: here[parameter] for parameter in there}
    assert_same(kept, there)
    for parameter in here.keys() - there.keys():
        # A momentum of zero is what sgd starts from: its kernel wants it of all or of none.
        zero = {"momentum_buffer": torch.zeros_like(dict(child.named_parameters())[parameter])}
        assert_same(
            here[parameter], {k: v.detach() for k, v in zero.items()} if name == "sgd" else fresh[parameter]
        )
    trained(child, ours, steps=1)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
@pytest.mark.parametrize(("momentum_there", "momentum_here"), [(0.0, 0.9), (0.9, 0.0)])
def test_momentum_can_be_turned_on_and_off(name, momentum_there, momentum_here):
    parent = Tower()
    theirs = build(parent, optimizer=name, momentum=momentum_there)
    trained(parent, theirs)
    ours = build(parent, optimizer=name, momentum=momentum_here)
    keep_optimizer_state(ours, checkpoint(theirs, parent), (parent,))
    before = parent.head.weight.detach().clone()
    trained(parent, ours)
    assert not torch.equal(parent.head.weight, before)


def test_a_momentum_of_zero_is_a_fresh_start():
    results = []
    for seeded in (True, False):
        torch.manual_seed(0)
        model = Tower()
        optimizer = build(model, optimizer="sgd", momentum=0.9)
        if seeded:
            for parameter in model.parameters():
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        results.append(trained(model, optimizer))
    assert_same(*results)


def test_a_tower_that_is_frozen_leaves_its_state_behind():
    parent = Tower()
    theirs = build(parent, optimizer="adamw")
    trained(parent, theirs)
    child = Tower()
    child.blocks.requires_grad_(False)
    ours = build(child, optimizer="adamw")
    keep_optimizer_state(ours, checkpoint(theirs, parent), (child,))
    there, here = state_by_name(theirs, parent), state_by_name(ours, child)
    assert_same(here, {name: there[name] for name in ("head.weight", "head.bias")})
