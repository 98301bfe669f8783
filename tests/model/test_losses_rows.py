"""What every loss keeps to: shares of a batch add up, and nothing depends on norm, rotation or order.

Shapes: B pairs, D width.
"""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from mmlib.config import LossConfig
from mmlib.model.losses import LOSSES, InfoNCE, SigmoidLoss, TripletLoss, build_loss, load_learned

B, D = 12, 8
IDS = torch.tensor([0, 1, 0, 2, 3, 4, 4, 4, 5, 6, 7, 1])


def hardest(**options):
    return TripletLoss(0.2, hardest_after_epochs=0, **options)


MAKERS = {
    "infonce": lambda **o: InfoNCE(0.07, learned=True, **o),
    "smoothed": lambda **o: InfoNCE(0.5, learned=True, label_smoothing=0.2, **o),
    "sigmoid": lambda **o: SigmoidLoss(0.1, learned=True, bias=-3.0, **o),
    "triplet": hardest,
    "mean-triplet": lambda **o: TripletLoss(0.2, hardest_after_epochs=1, **o),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    return MAKERS[request.param]


@pytest.fixture(params=[True, False])
def loss(request, maker):
    return maker(identity_positives=request.param)


@pytest.fixture
def pairs():
    return torch.randn(B, D), torch.randn(B, D)


def with_gradients(loss, image_BD, text_BD, slices):
    """Sum over the slices, and its gradients by both embeddings and the loss's own weights."""
    leaves = [x.clone().requires_grad_() for x in (image_BD, text_BD)]
    weights = [p for p in loss.parameters() if p.requires_grad]
    value = sum(loss(*leaves, IDS, rows) for rows in slices)
    return value.detach(), torch.autograd.grad(value, leaves + weights)


@pytest.mark.parametrize(
    "slices",
    [
        [slice(0, 6), slice(6, 12)],
        [slice(0, 1), slice(1, 5), slice(5, 12)],
        [slice(0, 12), slice(12, 12)],  # a process without rows
        [slice(0, 12)],
    ],
)
def test_the_losses_of_slices_add_up_to_that_of_the_batch(loss, pairs, slices):
    whole, whole_gradients = with_gradients(loss, *pairs, [None])
    found, gradients = with_gradients(loss, *pairs, slices)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, whole_gradients):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_slice_computes_its_own_similarities_alone(loss, pairs, monkeypatch):
    shapes = []
    cost = loss.cost

    def recorded(sim_RB, *rest):
        shapes.append(tuple(sim_RB.shape))
        return cost(sim_RB, *rest)

    monkeypatch.setattr(loss, "cost", recorded)
    loss(*pairs, IDS, slice(2, 5))
    assert shapes == [(3, B), (3, B)]


def test_norm_rotation_and_order_do_not_matter(loss, pairs):
    image_BD, text_BD = pairs
    expected = loss(image_BD, text_BD, IDS)
    rotation_DD, _ = torch.linalg.qr(torch.randn(D, D))
    order = torch.randperm(B)
    same = {
        "norm": (3 * image_BD, 0.2 * text_BD, IDS),
        "rotation": (image_BD @ rotation_DD, text_BD @ rotation_DD, IDS),
        "order": (image_BD[order], text_BD[order], IDS[order]),
        "sides": (text_BD, image_BD, IDS),
        "names": (image_BD, text_BD, 100 - IDS),
    }
    for name, batch in same.items():
        torch.testing.assert_close(loss(*batch), expected, rtol=1e-5, atol=1e-6, msg=name)


def test_identity_positives_make_a_difference(maker, pairs):
    with_option, without = (maker(identity_positives=option)(*pairs, IDS).item() for option in (True, False))
    assert with_option != pytest.approx(without, rel=1e-3)


def test_ids_do_not_matter_without_identity_positives(maker, pairs):
    loss = maker(identity_positives=False)
    assert torch.equal(loss(*pairs, IDS), loss(*pairs, torch.arange(B)))


def test_the_gradient_is_that_of_finite_differences(loss, pairs):
    loss.double()
    image_BD, text_BD = (x[:6].double().requires_grad_() for x in pairs)
    assert gradcheck(lambda i, t: loss(i, t, IDS[:6]), (image_BD, text_BD))
    assert gradcheck(lambda i, t: loss(i, t, IDS[:6], slice(1, 4)), (image_BD, text_BD))


def test_the_gradient_of_what_is_learned_is_that_of_finite_differences(maker, pairs):
    loss = maker().double()
    for name, weight in loss.named_parameters():

        def value(x, name=name):
            batch = (*(p.double() for p in pairs), IDS)
            return torch.func.functional_call(loss, {name: x}, batch)

        assert gradcheck(value, (weight.detach().clone().requires_grad_(),))


def test_it_is_computed_in_float32_under_autocast(loss, pairs):
    image_BD, text_BD = (x.bfloat16() for x in pairs)
    expected = loss(image_BD.float(), text_BD.float(), IDS, slice(0, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(image_BD, text_BD, IDS, slice(0, 5))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(0, 2**31), st.sampled_from(sorted(MAKERS)), st.booleans(), st.booleans()
)
def test_bounds(size, seed, name, identity_positives, alike):
    """No less than nothing, no more than the worst arrangement, and never NaN, gradients included."""
    generator = torch.Generator().manual_seed(seed)
    image_BD, text_BD = torch.randn(2, size, D, generator=generator)
    if alike:
        image_BD = text_BD = torch.ones(size, D)
    image_BD.requires_grad_()
    ids = torch.randint(0, 4, (size,), generator=generator)
    loss = MAKERS[name](identity_positives=identity_positives)
    value = loss(image_BD, text_BD, ids)
    (gradient_BD,) = torch.autograd.grad(value, image_BD)
    most = {
        "infonce": math.log1p((size - 1) * math.exp(2 / 0.07)),
        "smoothed": math.log1p((size - 1) * math.exp(2 / 0.5)),
        "sigmoid": size * F.softplus(torch.tensor(13.0)).item(),
        "triplet": 2 * 2.2,
        "mean-triplet": 2 * 2.2,
    }[name]
    assert -1e-6 <= value.item() <= most + 1e-4
    assert gradient_BD.isfinite().all()


def test_progress_changes_no_loss_but_the_triplet(pairs):
    for loss in (InfoNCE(), SigmoidLoss()):
        before = loss(*pairs, IDS)
        loss.set_progress(7.5)
        assert torch.equal(loss(*pairs, IDS), before)


@pytest.mark.parametrize(("images", "texts", "ids"), [(3, 2, 3), (3, 3, 2)])
def test_a_batch_that_does_not_match_is_refused(maker, images, texts, ids):
    message = f"found {images} images, {texts} captions, {ids} ids"
    with pytest.raises(ValueError, match=message):
        maker()(torch.randn(images, D), torch.randn(texts, D), torch.arange(ids))


# --- from a config


def test_the_config_chooses_the_loss_and_its_parameters():
    infonce = build_loss(
        LossConfig(temperature=0.2, learn_temperature=True, label_smoothing=0.1, identity_positives=False)
    )
    assert isinstance(infonce, InfoNCE)
    assert (infonce.label_smoothing, infonce.identity_positives) == (0.1, False)
    assert infonce.log_scale.requires_grad
    assert infonce.temperature == pytest.approx(0.2)
    sigmoid = build_loss(LossConfig(loss="sigmoid", temperature=0.1, sigmoid_bias=-4.0))
    assert isinstance(sigmoid, SigmoidLoss)
    assert (sigmoid.bias.item(), sigmoid.log_scale.requires_grad) == (-4.0, False)
    assert sigmoid.temperature == pytest.approx(0.1)
    triplet = build_loss(
        LossConfig(loss="triplet", margin=0.3, hardest_after_epochs=2.5, identity_positives=False)
    )
    assert isinstance(triplet, TripletLoss)
    assert (triplet.margin, triplet.hardest_after_epochs, triplet.identity_positives) == (0.3, 2.5, False)
    assert triplet.temperature is None


def test_every_loss_of_the_config_can_be_built():
    assert set(get_args(LossConfig.model_fields["loss"].annotation)) == LOSSES.keys()


def learned_then(loss_there, learned_there, loss_here, learned_here):
    """Temperature and bias of a continued run whose parent learned 0.5 and -1."""
    there = {"loss": loss_there, "learn_temperature": learned_there, "temperature": 0.5, "sigmoid_bias": -1.0}
    parent = build_loss(LossConfig(**there))
    own = build_loss(LossConfig(loss=loss_here, learn_temperature=learned_here, temperature=0.1))
    load_learned(own, parent.state_dict(), there | {"lr": 0.1, "epochs": 3})
    return round(own.temperature, 6), own.bias.item() if loss_here == "sigmoid" else None


def test_what_was_learned_goes_on_and_what_is_fixed_stays():
    assert learned_then("infonce", True, "infonce", True) == (0.5, None)
    assert learned_then("infonce", False, "infonce", True) == (0.1, None)
    assert learned_then("infonce", True, "infonce", False) == (0.1, None)
    assert learned_then("sigmoid", True, "sigmoid", True) == (0.5, -1.0)
    assert learned_then("sigmoid", False, "sigmoid", True) == (0.1, -1.0)  # the bias is always learned
    assert learned_then("infonce", True, "sigmoid", True) == (0.1, -10.0)  # another loss starts anew
    assert learned_then("triplet", True, "infonce", True) == (0.1, None)
