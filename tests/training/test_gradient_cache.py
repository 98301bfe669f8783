"""Gradient caching against one graph over the whole batch.

Shapes: B pairs, C pairs of a chunk, D width.
"""

import weakref

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from tiny_runs import tiny_config

from mmlib.model import build_model
from mmlib.model.losses import InfoNCE
from mmlib.training.optimisation import Chunked

B, C = 200, 64  # the last chunk is smaller
VOCABULARY = 40


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def batch():
    length_B = torch.randint(1, 9, (B,))
    tokens_BL = torch.randint(1, VOCABULARY, (B, 8)) * (torch.arange(8) < length_B[:, None])
    return torch.randn(B, 3, 16, 16), tokens_BL, length_B, torch.arange(B) // 2


def small_model(dropout: float = 0.1) -> torch.nn.Module:
    config = tiny_config(dropout=dropout, max_tokens=8)
    return build_model(config, VOCABULARY).train()


def in_chunks(model, *inputs):
    """The embeddings in one graph, over the same chunks: the same masks."""
    pairs = [model(*chunk) for chunk in zip(*(x.split(C) for x in inputs))]
    return (torch.cat(parts) for parts in zip(*pairs))


def step(embed, model, loss, batch, backward=torch.Tensor.backward, seed=1):
    """Loss and gradients, and a number drawn afterwards."""
    torch.manual_seed(seed)
    value = loss(*embed(*batch[:3]), batch[3])
    backward(value)
    modules = (model, loss)
    found = {n: p.grad.clone() for m in modules for n, p in m.named_parameters() if p.grad is not None}
    for module in modules:
        module.zero_grad(set_to_none=True)
    return value.detach(), found, torch.rand(1)


def assert_close(found, expected, tolerance=1e-5):
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= tolerance * gradient.norm() + 1e-7 * total, (name, error, gradient.norm())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_those_of_one_graph_with_the_same_masks_in_every_precision(batch, precision):
    """Fabric casts under bf16, and scales its backward under fp16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256) if precision == "16-mixed" else None
    plugin = Precision() if precision == "32-true" else MixedPrecision(precision, "cpu", scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model, loss = small_model(), InfoNCE(0.07, learned=True)
    chunked, plain = fabric.setup_module(Chunked(model, C)), fabric.setup_module(model)
    value, found, drawn = step(chunked, model, loss, batch, fabric.backward)
    expected_value, expected, expected_drawn = step(
        lambda *inputs: in_chunks(plain, *inputs), model, loss, batch, fabric.backward
    )
    # Halved precision rounds each chunk's share of a gradient.
    assert_close(found, expected, tolerance=1e-5 if precision == "32-true" else 0.02)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-6)
    assert torch.equal(drawn, expected_drawn)  # the random stream goes on as without caching
    assert (expected["log_scale"].abs() > 100) == (precision == "16-mixed")  # scaled indeed


def test_other_masks_would_show(batch):
    """The test above could not fail if dropout did nothing to these gradients."""
    model, loss = small_model(), InfoNCE()
    _, found, _ = step(Chunked(model, C), model, loss, batch)
    _, other, _ = step(lambda *inputs: in_chunks(model, *inputs), model, loss, batch, seed=2)
    with pytest.raises(AssertionError):
        assert_close(found, other, tolerance=1e-2)


def test_without_dropout_they_are_those_of_the_plain_batch(batch):
    model, loss = small_model(dropout=0.0), InfoNCE()
    _, found, _ = step(Chunked(model, C), model, loss, batch)
    _, expected, _ = step(model, model, loss, batch)
    assert_close(found, expected)


def most_alive(act, module) -> int:
    """How many outputs of a module of the model are in memory at once, at most, while `act()` runs."""
    alive, most = 0, 0

    def count(_, __, output):
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        weakref.finalize(output.untyped_storage(), release)

    def release():
        nonlocal alive
        alive -= 1

    hook = module.register_forward_hook(count)
    act()
    hook.remove()
    return most


def test_no_more_than_the_graph_of_one_chunk_is_held(batch):
    model, loss = small_model(), InfoNCE()
    linear = model.fusion[0]  # the layer norm that follows keeps its output for the way back
    one_chunk = most_alive(lambda: model(*(x[:C] for x in batch[:3])), linear)
    chunks = -(-B // C)
    at_once = most_alive(lambda: step(lambda *x: in_chunks(model, *x), model, loss, batch), linear)
    assert at_once == chunks * one_chunk
    assert most_alive(lambda: step(Chunked(model, C), model, loss, batch), linear) == one_chunk
