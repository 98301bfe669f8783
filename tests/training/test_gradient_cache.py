"""Gradient caching against one graph over the whole batch.

Shapes: B pairs, C pairs of a chunk, D width.
"""

import contextlib
import weakref

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from tiny_runs import tiny_config

from mmlib.model import build_model
from mmlib.model.losses import InfoNCE
from mmlib.training.gradient_cache import cached_backward, fabric_push

B, C = 1024, 64
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


@pytest.fixture
def part(batch):
    """Four chunks, where the number of them does not matter."""
    return tuple(x[: 4 * C] for x in batch)


def small_model(dropout: float = 0.1) -> torch.nn.Module:
    config = tiny_config(dropout=dropout, max_tokens=8)
    return build_model(config, VOCABULARY).train()


def chunks_of(batch, size=C):
    return list(zip(*(x.split(size) for x in batch[:3])))


def gradients(*modules):
    found = {n: p.grad.clone() for m in modules for n, p in m.named_parameters() if p.grad is not None}
    for module in modules:
        module.zero_grad(set_to_none=True)
    return found


def cached(model, loss, batch, **options):
    """Loss and gradients in chunks, and a number drawn afterwards."""
    ids = batch[3]
    value = cached_backward(
        lambda chunk: model(*chunk), chunks_of(batch), lambda i, t: loss(i, t, ids), **options
    )
    return value, gradients(model, loss), torch.rand(1)


def at_once(model, loss, batch):
    """The same in one graph, over the same chunks: the same masks."""
    pairs = [model(*chunk) for chunk in chunks_of(batch)]
    value = loss(*(torch.cat(parts) for parts in zip(*pairs)), batch[3])
    value.backward()
    return value.detach(), gradients(model, loss), torch.rand(1)


def assert_close(found, expected, tolerance=1e-5):
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm()
        assert error <= tolerance * gradient.norm() + 1e-7 * total, (name, error, gradient.norm())


@pytest.mark.parametrize("learned", [False, True])
def test_the_gradients_are_those_of_one_graph_with_the_same_masks(batch, learned):
    model, loss = small_model(), InfoNCE(0.07, learned=learned)
    torch.manual_seed(1)
    value, found, drawn = cached(model, loss, batch)
    torch.manual_seed(1)
    expected_value, expected, expected_drawn = at_once(model, loss, batch)
    assert_close(found, expected)
    assert ("log_scale" in found) is learned
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-6)
    assert not value.requires_grad
    assert torch.equal(drawn, expected_drawn)  # the random stream goes on as without caching


def test_other_masks_would_show(part):
    """The test above could not fail if dropout did nothing to these gradients."""
    model, loss = small_model(), InfoNCE()
    torch.manual_seed(1)
    _, found, _ = cached(model, loss, part)
    torch.manual_seed(2)
    _, other, _ = at_once(model, loss, part)
    with pytest.raises(AssertionError):
        assert_close(found, other, tolerance=1e-2)


def test_without_dropout_they_are_those_of_the_plain_batch(batch):
    model, loss = small_model(dropout=0.0), InfoNCE()
    _, found, _ = cached(model, loss, batch)
    loss(*model(*batch[:3]), batch[3]).backward()
    assert_close(found, gradients(model))


def test_gradients_are_added_to_those_that_are_there(part):
    model, loss = small_model(dropout=0.0), InfoNCE()
    ids, chunks = part[3], chunks_of(part)
    for _ in range(2):
        cached_backward(lambda chunk: model(*chunk), chunks, lambda i, t: loss(i, t, ids))
    twice = gradients(model)
    _, once, _ = cached(model, loss, part)
    assert_close(twice, {name: 2 * gradient for name, gradient in once.items()})


def test_one_chunk_is_the_plain_way(part):
    model, loss, entered, calls = small_model(), InfoNCE(), [], []

    def embed(chunk):
        calls.append(torch.is_grad_enabled())
        return model(*chunk)

    def last_chunk(is_last):
        entered.append(is_last)
        return contextlib.nullcontext()

    torch.manual_seed(1)
    cached_backward(embed, [part[:3]], lambda i, t: loss(i, t, part[3]), last_chunk=last_chunk)
    found = gradients(model)
    torch.manual_seed(1)
    loss(*model(*part[:3]), part[3]).backward()
    expected = gradients(model)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert (calls, entered) == ([True], [True])


def test_chunks_of_unequal_size_keep_their_rows(part):
    model, loss = small_model(dropout=0.0), InfoNCE()
    part = tuple(x[:100] for x in part)
    cached_backward(lambda c: model(*c), chunks_of(part, 30), lambda i, t: loss(i, t, part[3]))
    found = gradients(model)
    loss(*model(*part[:3]), part[3]).backward()
    assert_close(found, gradients(model))


# --- memory


class Saved:
    """Counts the tensors that graphs hold, now and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        self.now += 1
        self.most = max(self.most, self.now)
        held = [tensor]
        box = _Box(held)
        weakref.finalize(box, self.release)
        return box

    def release(self):
        self.now -= 1


class _Box:
    def __init__(self, held):
        self.held = held


def most_saved(act) -> int:
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda box: box.held[0]):
        act()
    return saved.most


def test_no_more_than_the_graph_of_one_chunk_is_held(batch):
    model, loss = small_model(), InfoNCE()
    one_chunk = most_saved(lambda: model(*chunks_of(batch)[0]))
    assert most_saved(lambda: at_once(model, loss, batch)) > 16 * one_chunk
    assert one_chunk > 100
    assert most_saved(lambda: cached(model, loss, batch)) < 1.1 * one_chunk


def test_the_first_pass_builds_no_graph_and_the_second_comes_once_per_chunk_in_order(part):
    model, loss, seen, entered = small_model(), InfoNCE(), [], []

    def embed(chunk):
        seen.append((torch.is_grad_enabled(), chunk[0].data_ptr()))
        return model(*chunk)

    @contextlib.contextmanager
    def last_chunk(is_last):
        entered.append((is_last, len(seen)))
        yield

    chunks = chunks_of(part)
    cached_backward(embed, chunks, lambda i, t: loss(i, t, part[3]), last_chunk=last_chunk)
    places = [chunk[0].data_ptr() for chunk in chunks]
    assert seen == [(False, place) for place in places] + [(True, place) for place in places]
    # Entered before the forward of its chunk: DistributedDataParallel decides there what to do.
    assert entered == [(False, 4), (False, 5), (False, 6), (True, 7)]


# --- precision


def test_under_autocast_the_gradients_are_those_of_one_graph_under_autocast(part):
    """Weights that pass 1 has cast have no graph: autocast must not hand them to pass 2."""
    model, loss = small_model(), InfoNCE()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        _, found, _ = cached(model, loss, part)
        torch.manual_seed(1)
        _, expected, _ = at_once(model, loss, part)
    # In bf16 each chunk rounds its share of a weight's gradient, then they are added.
    assert_close(found, expected, tolerance=0.02)
    plain = small_model()
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    _, in_float32, _ = cached(plain, loss, part)
    name = "fusion.0.weight"
    assert not torch.equal(found[name], in_float32[name])  # autocast was on indeed


def test_the_loss_sees_float32_leaves(part):
    model, loss, seen = small_model().bfloat16(), InfoNCE(), []

    def loss_of(image_BD, text_BD):
        seen.extend((x.dtype, x.is_leaf, len(x)) for x in (image_BD, text_BD))
        return loss(image_BD, text_BD, part[3])

    cached_backward(lambda c: model(c[0].bfloat16(), *c[1:]), chunks_of(part), loss_of)
    assert seen == [(torch.float32, True, 4 * C)] * 2
    assert all(g.dtype == torch.bfloat16 for g in gradients(model).values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_fabric_of_every_precision_gives_what_it_gives_without_caching(part, precision):
    """Fabric guards its own backward, and scales it under fp16."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256) if precision == "16-mixed" else None
    plugin = Precision() if precision == "32-true" else MixedPrecision(precision, "cpu", scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model, loss = small_model(), InfoNCE(0.07, learned=True)
    forward = fabric.setup_module(model)
    torch.manual_seed(1)
    cached_backward(
        lambda chunk: forward(*chunk),
        chunks_of(part),
        lambda i, t: loss(i, t, part[3]),
        backward=fabric.backward,
        push=fabric_push(fabric),
    )
    found = gradients(model, loss)
    torch.manual_seed(1)
    pairs = [forward(*chunk) for chunk in chunks_of(part)]
    fabric.backward(loss(*(torch.cat(parts) for parts in zip(*pairs)), part[3]))
    expected = gradients(model, loss)
    assert_close(found, expected, tolerance=1e-5 if precision == "32-true" else 0.02)
    assert (expected["log_scale"].abs() > 100) == (precision == "16-mixed")  # scaled indeed


def test_no_chunks_are_refused():
    with pytest.raises(ValueError, match="expected at least one chunk of the batch, found none"):
        cached_backward(None, [], None)


def test_the_random_state_is_put_right_if_the_second_pass_fails(part):
    model, loss = small_model(), InfoNCE()

    def push(tensor, gradient):
        raise RuntimeError("out of memory")

    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        cached(model, loss, part, push=push)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, at_once(model, loss, part)[2])
