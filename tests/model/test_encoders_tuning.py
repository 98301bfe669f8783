"""What of a pretrained encoder is trained: blocks, frozen parts, and the fingerprint of its features."""

import copy

import pytest
import torch
from encoder_samples import CLIP, CLIP_RESNET, CLIP_TIMM, add_clip, captions, config, write_bert
from torch import nn

from mmlib.config import ParameterError
from mmlib.model import build_image_encoder, build_text_encoder

IMAGES = (
    "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:densenet121",
    "torchvision:squeezenet1_1", "timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet",
)  # fmt: skip


def image_encoder(name="timm:test_efficientnet", **changes):
    return build_image_encoder(config(image_encoder=name, image_size=64, **changes))


@pytest.fixture
def bert(tmp_path):
    return build_text_encoder(config(text_encoder=f"hf:{write_bert(tmp_path)}"), 50)


def assert_blocks_cover(encoder):
    """Every parameter of the backbone is in one block."""
    in_blocks = [id(p) for _, parameters in encoder.blocks for p in parameters]
    assert sorted(in_blocks) == sorted(id(p) for p in encoder.backbone_parameters())
    assert len({name for name, _ in encoder.blocks}) == len(encoder.blocks)


@pytest.mark.parametrize("name", IMAGES)
def test_blocks_run_from_input_to_output(name):
    """What is computed from the output back to a block needs no block before it."""
    encoder = image_encoder(name).eval()
    assert_blocks_cover(encoder)
    names = [block for block, _ in encoder.blocks]
    used = first_uses(encoder, torch.randn(1, 3, 64, 64))
    places = [min(used[id(p)] for p in parameters) for _, parameters in encoder.blocks]
    assert places == sorted(places), list(zip(names, places))
    assert len(names) >= 4


def first_uses(encoder, image_BCHW):
    """When each parameter's module first runs."""
    used, handles = {}, []

    def hook(module, _):
        for parameter in module.parameters(recurse=False):
            used.setdefault(id(parameter), len(used))

    for module in encoder.backbone.modules():
        handles.append(module.register_forward_pre_hook(hook))
    # Scales that a block applies itself belong to no module that runs later.
    encoder.features(image_BCHW)
    for handle in handles:
        handle.remove()
    return used


@pytest.mark.parametrize("content", [CLIP, CLIP_RESNET, CLIP_TIMM], ids=["vit", "resnet", "timm"])
def test_blocks_of_both_towers_of_open_clip(tmp_path, content):
    add_clip(tmp_path, "tiny-blocks", content)
    settings = config(
        image_encoder="open_clip:tiny-blocks", text_encoder="open_clip:tiny-blocks", max_tokens=8
    )
    image, text = build_image_encoder(settings), build_text_encoder(settings, 50)
    for encoder in (image, text):
        assert_blocks_cover(encoder)
    names = {id(p): name for name, p in text.backbone.named_parameters()}
    first, *_, last = [{names[id(p)] for p in parameters} for _, parameters in text.blocks]
    assert first == {"token_embedding.weight", "positional_embedding"}
    assert {"ln_final.weight", "text_projection"} <= last
    assert len(text.blocks) == 3


def test_blocks_of_a_transformers_model(bert):
    assert_blocks_cover(bert)
    assert [name for name, _ in bert.blocks] == ["embedding", "encoder.layer.0", "encoder.layer.1"]


@pytest.mark.parametrize(
    ("tune", "trained"), [("all", 6), ("none", 0), ("last-1", 1), ("last-3", 3), ("last-6", 6)]
)
def test_what_is_tuned_has_a_gradient_and_the_rest_has_not(tune, trained):
    encoder = image_encoder()
    encoder.set_tune(tune)
    encoder.train()
    encoder(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.head.parameters())
    has_gradient = [[p.grad is not None for p in parameters] for _, parameters in encoder.blocks]
    assert len(has_gradient) == 6
    assert not any(any(block) for block in has_gradient[: 6 - trained])
    assert all(all(block) for block in has_gradient[6 - trained :])


def test_frozen_parts_stay_in_evaluation_mode():
    encoder = image_encoder()
    encoder.set_tune("last-2")
    frozen = copy.deepcopy(encoder.backbone.state_dict())
    encoder.train().eval()
    assert not any(module.training for module in encoder.modules())
    encoder.train()
    assert encoder.training
    assert encoder.head.dropout.training
    encoder(torch.randn(4, 3, 64, 64))
    names = {id(p): name for name, p in encoder.backbone.named_parameters()}
    tuned = {names[id(p)].rpartition(".")[0] for _, block in encoder.blocks[-2:] for p in block}
    for name, module in encoder.backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            changed = not torch.equal(module.running_mean, frozen[f"{name}.running_mean"])
            assert changed == (name in tuned), name


def test_dropout_of_frozen_parts_is_off(tmp_path, bert):
    tokens_BL, length_B = captions()
    bert.train()
    assert not torch.equal(bert.features(tokens_BL, length_B), bert.features(tokens_BL, length_B))
    bert.set_tune("last-1")
    assert not bert.backbone.embeddings.dropout.training
    assert not bert.backbone.encoder.layer[0].output.dropout.training
    assert bert.backbone.encoder.layer[1].output.dropout.training
    bert.set_tune("none")
    assert torch.equal(bert.features(tokens_BL, length_B), bert.features(tokens_BL, length_B))
    assert not bert.features(tokens_BL, length_B).requires_grad
    bert.set_tune("all")
    assert bert.backbone.embeddings.dropout.training
    assert bert.features(tokens_BL, length_B).requires_grad


def test_dropout_that_stands_before_the_tuned_blocks_is_off():
    encoder = build_image_encoder(config(image_encoder="timm:test_vit", image_size=160))
    encoder.backbone.pos_drop.p = 0.5
    encoder.set_tune("last-1")
    encoder.train()
    assert not encoder.backbone.pos_drop.training
    assert encoder.backbone.blocks[-1].training


def test_a_copy_keeps_what_is_frozen():
    encoder = image_encoder()
    encoder.set_tune("last-1")
    twin = copy.deepcopy(encoder).train()
    frozen = [p.requires_grad for p in twin.backbone_parameters()]
    assert frozen == [p.requires_grad for p in encoder.backbone_parameters()]
    assert [id(p) for p in twin.blocks[0][1]] != [id(p) for p in encoder.blocks[0][1]]
    twin.blocks[0][1][0].data.zero_()
    assert encoder.blocks[0][1][0].abs().sum() > 0


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            "last-7",
            r"tune 'last-7': timm:test_efficientnet .* has 6 blocks \(conv_stem, .*; use last-<n> with n up",
        ),
    ],
)
def test_wrong_tunings(tune, message):
    with pytest.raises(ParameterError, match=message):
        image_encoder().set_tune(tune)


@pytest.mark.parametrize("tune", ["none", "last-1"])
def test_an_encoder_from_scratch_is_trained_whole(tune):
    encoder = image_encoder("vit")
    encoder.set_tune("all")
    assert encoder.blocks == []
    with pytest.raises(ParameterError, match=f"tune '{tune}' needs a pretrained encoder: ImageEncoder"):
        encoder.set_tune(tune)


def test_the_fingerprint_is_of_backbone_and_all_that_features_depend_on(bert):
    encoder = image_encoder()
    fingerprint = encoder.fingerprint()
    assert len(fingerprint) == 16
    assert int(fingerprint, 16)
    with torch.no_grad():
        encoder.head.project.weight.zero_()
    assert encoder.fingerprint() == copy.deepcopy(encoder).fingerprint() == fingerprint
    attention = image_encoder(image_pooling="attention")
    attention.backbone.load_state_dict(encoder.backbone.state_dict())
    assert attention.fingerprint() != fingerprint
    for name in ("conv_stem.weight", "bn1.running_mean"):
        changed = copy.deepcopy(encoder)
        changed.backbone.state_dict()[name][0] += 1e-6
        assert changed.fingerprint() != fingerprint
    assert bert.fingerprint() not in ("", fingerprint)
