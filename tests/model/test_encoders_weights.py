"""Files of weights: every key must fit, classifiers are cut off on purpose, nothing runs code."""

import pytest
import timm
import torch
from encoder_samples import config, randomise
from safetensors.torch import save_file

from mmlib import files
from mmlib.model import build_image_encoder


def build(weights, name="timm:test_resnet"):
    return build_image_encoder(config(image_encoder=name, image_weights=str(weights), image_size=64))


@pytest.fixture
def state():
    return randomise(timm.create_model("test_resnet")).state_dict()


def assert_loaded(encoder, state):
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_files_in_each_format(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert_loaded(build(path), state)


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18", "open_clip:ViT-B-32"])
def test_nothing_is_said_to_be_looked_for_where_there_is_nothing_to_fetch(name, caplog):
    build_image_encoder(config(image_encoder=name, image_size=224))
    assert [record.message for record in caplog.records if "looking for" in record.message] == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    ],
)
def test_checkpoints_around_the_weights(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "w.pth")
    assert_loaded(build(tmp_path / "w.pth"), state)


def test_a_relative_path_is_read_from_the_root(tmp_path, state, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    torch.save(state, tmp_path / "w.pth")
    assert_loaded(build("w.pth"), state)


def test_a_file_without_classifier_fits_too(tmp_path, state):
    save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, tmp_path / "w.safetensors")
    assert_loaded(build(tmp_path / "w.safetensors"), state)


def test_old_files_lack_the_counters_of_batch_norm(tmp_path, state):
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    build(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), 'Missing key(s) in state_dict: "layer1.0.conv1.weight"'),
        (
            lambda s: s.update({"fcx.weight": torch.zeros(3, 4)}),
            'Unexpected key(s) in state_dict: "fcx.weight"',
        ),
        (
            lambda s: s.update({"layer1.0.bn1.weight": torch.zeros(7)}),
            "size mismatch for layer1.0.bn1.weight: copying a param with shape torch.Size([7])",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_first_keys(tmp_path, state, change, message):
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth cannot be loaded into timm:test_resnet: ") as caught:
        build(tmp_path / "w.pth")
    assert message in str(caught.value)
    assert str(caught.value).endswith("or was made for another encoder")


def test_of_many_keys_that_differ_the_first_are_named(tmp_path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r'Missing key.*"conv1.0.weight"') as caught:
        build(tmp_path / "w.pth")
    assert len(str(caught.value)) < 1000


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_file_cannot_run_code(tmp_path, capsys):
    torch.save({"weight": Code()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth cannot be loaded .*print.*asks to run code"):
        build(tmp_path / "w.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.safetensors", b"\x08\x00\x00"),
        ("w.pth", b"garbage"),
        ("w.pt", b"PK\x03\x04garbage"),
        ("w.bin", b""),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be loaded into timm:test_resnet: .*; it is damaged"):
        build(tmp_path / name)


def test_a_file_of_something_else(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth cannot be loaded into timm:test_resnet: "):
        build(tmp_path / "w.pth")


def test_a_missing_file():
    with pytest.raises(
        FileNotFoundError, match=r"no weights: expected the file .*gone.pth, found nothing there"
    ):
        build("data/gone.pth")
