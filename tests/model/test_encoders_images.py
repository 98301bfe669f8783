"""Image encoders around models of torchvision, timm and open_clip: the library's own features and weights.

Shapes: B images, F feature channels, P positions.
"""

import re

import pytest
import torch
from encoder_samples import CLIP, CLIP_RESNET, CLIP_TIMM, add_clip, config, randomise
from safetensors.torch import save_file

from mmlib.config import ParameterError
from mmlib.model import build_image_encoder

# What each library calls to bring weights from its cache or the network.
TORCHVISION = "torchvision.models._api.load_state_dict_from_url"
TIMM = "timm.models._builder.load_state_dict_from_hf"
OPEN_CLIP = "open_clip.download_pretrained"


def build(name, weights="none", size=32, **changes):
    settings = {"image_encoder": name, "image_weights": str(weights), "image_size": size}
    return build_image_encoder(config(**settings | changes)).eval()


def saved(path, model):
    """`model` with every weight random, stored as its library publishes it."""
    randomise(model)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    return path


def flat(map_BFHW):
    return map_BFHW.flatten(2).mT


def penultimate(model, layer, image_BCHW):
    """What reaches the layer."""
    seen = []
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(image_BCHW)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mobilenet_v3_small", lambda m: m.classifier),
        ("shufflenet_v2_x0_5", lambda m: m.fc),
        ("densenet121", lambda m: m.classifier),
        ("mnasnet0_5", lambda m: m.classifier),
        ("regnet_y_400mf", lambda m: m.fc),
        ("resnet18", lambda m: m.fc),
        ("googlenet", lambda m: m.fc),
    ],
)
def test_torchvision_features_are_what_reaches_the_classifier(tmp_path, name, last):
    from torchvision.models import get_model

    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    model = get_model(name, **options).to(memory_format=torch.channels_last)  # as the encoder computes
    encoder = build(f"torchvision:{name}", saved(tmp_path / "weights.pth", model), 64)
    image_BCHW = torch.randn(2, 3, 64, 64)
    expected_BF = penultimate(model, last(model), image_BCHW)
    torch.testing.assert_close(encoder.features(image_BCHW), expected_BF.flatten(1))
    assert encoder.feature_shape == tuple(expected_BF.shape[1:])


@pytest.mark.parametrize("pooling", ["encoder", "attention"])
def test_torchvision_positions_and_class_token(tmp_path, pooling):
    from torchvision.models import VisionTransformer, squeezenet1_1, vit_b_16

    class Tiny(VisionTransformer):
        def __init__(self, **options):
            super().__init__(**options | {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8})

    image_BCHW = torch.randn(2, 3, 32, 32)
    model = squeezenet1_1().to(memory_format=torch.channels_last)
    encoder = build("torchvision:squeezenet1_1", saved(tmp_path / "s.pt", model), image_pooling=pooling)
    map_BFHW = model.features(image_BCHW)
    expected = map_BFHW.mean((2, 3)) if pooling == "encoder" else flat(map_BFHW)
    torch.testing.assert_close(encoder.features(image_BCHW), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.models.vision_transformer.VisionTransformer", Tiny)
        model, image_BCHW = vit_b_16(), torch.randn(2, 3, 224, 224)
        encoder = build("torchvision:vit_b_16", saved(tmp_path / "v.pth", model), 224, image_pooling=pooling)
        with pytest.raises(ParameterError, match="vit_b_16 cannot take 65 pixels; it was made for 224"):
            build("torchvision:vit_b_16", size=65)
    expected_BF = penultimate(model, model.heads, image_BCHW)
    feature = encoder.features(image_BCHW)
    assert feature.shape[1:] == encoder.feature_shape == ((8,) if pooling == "encoder" else (197, 8))
    torch.testing.assert_close(feature if pooling == "encoder" else feature[:, 0], expected_BF)
    assert [block for block, _ in encoder.blocks][1:] == [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]


@pytest.mark.parametrize("pooling", ["encoder", "attention"])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_mambaout"]
)
def test_timm_features_are_timms(tmp_path, name, pooling):
    import timm

    size = 160 if name == "test_vit" else 64
    model = timm.create_model(name)
    encoder = build(f"timm:{name}", saved(tmp_path / "w.safetensors", model), size, image_pooling=pooling)
    image_BCHW = torch.randn(2, 3, size, size)
    last = model.forward_features(image_BCHW)
    if pooling == "encoder":
        expected = model.forward_head(last, pre_logits=True)
    elif last.ndim == 3:
        expected = last
    else:
        expected = flat(last) if name != "test_mambaout" else last.flatten(1, 2)
    torch.testing.assert_close(encoder.features(image_BCHW), expected)
    assert encoder.feature_shape == tuple(expected.shape[1:])
    expected_mean = (0.485, 0.456, 0.406) if name in ("test_mambaout", "test_efficientnet") else (0.5,) * 3
    assert encoder.mean == expected_mean  # timm's of this model
    assert encoder(image_BCHW).shape == (2, 16)


@pytest.mark.parametrize("pooling", ["encoder", "attention"])
@pytest.mark.parametrize(
    ("content", "positions"),
    [(CLIP, (4, 32)), (CLIP_RESNET, (1, 256)), (CLIP_TIMM, (1, 96))],
    ids=["vit", "resnet", "timm"],
)
def test_open_clip_features_are_those_of_its_image_tower(tmp_path, content, positions, pooling):
    import open_clip

    add_clip(tmp_path, "tiny-image", content)
    model = randomise(open_clip.create_model("tiny-image"))
    file = tmp_path / "clip.pt"
    torch.save(model.state_dict(), file)
    encoder = build("open_clip:tiny-image", file, image_pooling=pooling)
    image_BCHW = torch.randn(2, 3, 32, 32)
    feature = encoder.features(image_BCHW)
    if pooling == "encoder":
        torch.testing.assert_close(feature, model.encode_image(image_BCHW))
    else:
        assert feature.shape[1:] == encoder.feature_shape == positions
        out = model.visual.forward_intermediates(image_BCHW, indices=1)["image_intermediates"][-1]
        torch.testing.assert_close(feature, flat(out))
    assert encoder.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


def test_ready_features_stand_in_place_of_pixels():
    for pooling, shape in (("encoder", (96,)), ("attention", (4, 96))):
        encoder = build("timm:test_resnet", size=64, image_pooling=pooling)
        assert encoder.feature_shape == shape
        image_BCHW = torch.randn(2, 3, 64, 64)
        feature = encoder.features(image_BCHW)
        assert torch.equal(encoder(feature), encoder(image_BCHW))
        torch.testing.assert_close(encoder(feature.half()), encoder(feature), atol=0.05, rtol=0.05)


def test_attention_pooling_weighs_positions():
    head = build("timm:test_resnet", size=64, image_pooling="attention").head
    feature_BPF = torch.randn(2, 4, 96)
    shuffled_BPF = feature_BPF[:, [2, 0, 3, 1]]
    torch.testing.assert_close(head(shuffled_BPF), head(feature_BPF), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        head.query_QD.mul_(100)
        head.attention.in_proj_weight.mul_(5)
    mean_BPF = feature_BPF.mean(1, keepdim=True).expand(-1, 4, -1)
    assert (head(feature_BPF) - head(mean_BPF)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "weights", "loader"),
    [
        ("torchvision:mobilenet_v3_small", "IMAGENET1K_V1", TORCHVISION),
        ("timm:test_resnet", "r160_in1k", TIMM),
        ("timm:test_resnet", "default", TIMM),
        ("timm:test_resnet.r160_in1k", "default", TIMM),
    ],
)
def test_weights_come_through_the_librarys_own_loader(monkeypatch, name, weights, loader):
    asked = []

    def load(source, *_, **__):
        asked.append(str(source))
        return state

    library, _, model = name.partition(":")
    if library == "timm":
        import timm

        state = randomise(timm.create_model(model.partition(".")[0])).state_dict()
    else:
        from torchvision.models import get_model

        state = randomise(get_model(model)).state_dict()
    monkeypatch.setattr(loader, load)
    encoder = build(name, weights)
    assert len(asked) == 1
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_tag_of_open_clip_decides_on_its_form_of_gelu(monkeypatch, tmp_path):
    import open_clip
    from open_clip.transformer import QuickGELU

    add_clip(tmp_path, "tiny-tag", CLIP)
    model = randomise(open_clip.create_model("tiny-tag", force_quick_gelu=True))
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    tags = {"first": {"file": str(tmp_path / "clip.pt"), "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-tag", tags)
    image_BCHW = torch.randn(2, 3, 32, 32)
    fingerprints = set()
    for weights in ("first", "default"):
        encoder = build("open_clip:tiny-tag", weights)
        torch.testing.assert_close(encoder.features(image_BCHW), model.encode_image(image_BCHW))
        assert encoder.mean == (0.1, 0.2, 0.3)
        fingerprints.add(encoder.fingerprint())
    assert len(fingerprints) == 1
    restored = build_image_encoder(
        config(image_encoder="open_clip:tiny-tag", image_weights="first"), load_pretrained=False
    )
    assert any(isinstance(module, QuickGELU) for module in restored.modules())
    assert restored.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("name", "loader", "error"),
    [
        ("torchvision:mobilenet_v3_small", TORCHVISION, "urllib"),
        ("timm:test_resnet", TIMM, "hub"),
        ("open_clip:ViT-B-32", OPEN_CLIP, "hub"),
        ("timm:test_resnet", TIMM, "http"),
    ],
)
def test_weights_that_cannot_be_downloaded(monkeypatch, name, loader, error):
    from urllib.error import URLError

    from huggingface_hub.errors import LocalEntryNotFoundError

    class ConnectError(Exception):
        """As an HTTP client raises it: no OSError."""

    ConnectError.__module__ = "httpx"
    errors = {
        "urllib": URLError("name not known"),
        "hub": LocalEntryNotFoundError("name not known"),
        "http": ConnectError("name not known"),
    }

    def load(*_, **__):
        raise errors[error]

    monkeypatch.setattr(loader, load)
    with pytest.raises(FileNotFoundError) as caught:
        build(name, "default", 224)
    wanted = "'openai'" if name.startswith("open_clip") else "'default'"
    assert str(caught.value).startswith(f"no weights {wanted} of {name}: not in the library's cache, and not")
    assert "name not known" in str(caught.value)
    assert str(caught.value).endswith("bring the file and name it: image_weights=<path>")


def test_a_fault_of_the_library_is_no_missing_file(monkeypatch):
    def load(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(TIMM, load)
    with pytest.raises(ZeroDivisionError):
        build("timm:test_resnet", "default")


def test_without_weights_of_its_own_default_is_refused(tmp_path):
    add_clip(tmp_path, "tiny-untagged", CLIP)
    message = re.escape(
        "open_clip has no weights for open_clip:tiny-untagged: use image_weights 'none' or a file"
    )
    with pytest.raises(ParameterError, match=message):
        build("open_clip:tiny-untagged", "default")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:test_resnet", "open_clip:tiny-new"])
@pytest.mark.parametrize("weights", ["default", "gone.safetensors"])
def test_a_restored_run_needs_no_weights(monkeypatch, tmp_path, name, weights):
    import open_clip

    def refuse(*_, **__):
        raise AssertionError("loaded")

    for loader in (TORCHVISION, TIMM, OPEN_CLIP, "timm.models.load_state_dict", "open_clip.load_checkpoint"):
        monkeypatch.setattr(loader, refuse)
    add_clip(tmp_path, "tiny-new", CLIP)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-new", {"first": {"hf_hub": "some/where"}})
    encoder = build_image_encoder(config(image_encoder=name, image_weights=weights), load_pretrained=False)
    encoder.load_state_dict(encoder.state_dict())
    assert encoder.feature_shape


PAIR = "timm:test_efficientnet+torchvision:mobilenet_v3_small"  # they normalise pixels differently


@pytest.fixture
def pair(tmp_path):
    """Two encoders, and both as one, with the same weights."""
    import timm
    from torchvision.models import mobilenet_v3_small

    files = (
        saved(tmp_path / "e.safetensors", timm.create_model("test_efficientnet")),
        saved(tmp_path / "m.pth", mobilenet_v3_small()),
    )
    alone = [build(name, file) for name, file in zip(PAIR.split("+"), files)]
    return alone, build(PAIR, "+".join(map(str, files)))


def test_the_features_of_joined_encoders_stand_side_by_side(pair):
    alone, joined = pair
    pixels_B3HW = torch.rand(2, 3, 32, 32)
    *expected, found = (
        e.features((pixels_B3HW - as_column(e.mean)) / as_column(e.std)) for e in (*alone, joined)
    )
    assert joined.feature_shape == (sum(e.feature_shape[0] for e in alone),)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-4)


def as_column(values):
    return torch.tensor(values)[:, None, None]


def test_joined_encoders_are_tuned_from_the_output_alike(pair):
    alone, joined = pair
    joined.set_tune("last-1")
    tuned = {name for name, p in joined.backbone.named_parameters() if p.requires_grad}
    for number, encoder in enumerate(alone):
        encoder.set_tune("last-1")
        own = {name for name, p in encoder.backbone.named_parameters() if p.requires_grad}
        assert own == {
            n.removeprefix(f"models.{number}.") for n in tuned if n.startswith(f"models.{number}.")
        }
    joined.set_tune(f"last-{max(len(e.blocks) for e in alone)}")
    assert all(p.requires_grad for p in joined.backbone.parameters())


def test_the_order_and_weights_of_joined_encoders_are_in_the_fingerprint(pair):
    _, joined = pair
    others = (joined, build(PAIR), build("+".join(reversed(PAIR.split("+")))))
    assert len({encoder.fingerprint() for encoder in others}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": f"{PAIR}+timm:test_vit", "weights": "none+none"},
            "image_weights: expected one for all of 3 image encoders or one for each, joined.* found 2",
        ),
        (
            {"name": PAIR, "image_pooling": "attention"},
            "image_pooling 'attention' takes one image encoder, found 2; use 'encoder'",
        ),
        ({"name": "timm:test_vit+vit"}, "unknown image_encoder 'vit'"),
        ({"name": "timm:test_vit+"}, "unknown image_encoder ''"),
        ({"name": "timm:test_vit+timm:test_vitt"}, "unknown timm model 'test_vitt'.*test_vit"),
    ],
)
def test_what_cannot_be_joined_is_named(settings, message):
    with pytest.raises(ParameterError, match=message):
        build(**settings)
