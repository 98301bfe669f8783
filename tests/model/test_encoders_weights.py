"""Files of weights: every key must fit, classifiers are cut off on purpose, nothing runs code."""

import re

import pytest
import timm
import torch
from encoder_samples import config, randomise
from safetensors.torch import save_file

from mmlib import files
from mmlib.model import build_image_encoder
from mmlib.model.pretrained import is_file, read_weights


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
    assert is_file(str(path))
    assert_loaded(build(path), state)


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
        (
            lambda s: s.pop("layer1.0.conv1.weight"),
            "layer1.0.conv1.weight: expected (32, 32, 3, 3), found nothing; name the encoder",
        ),
        (
            lambda s: s.update({"layer9.weight": torch.zeros(3, 4)}),
            "layer9.weight: expected nothing, found (3, 4); name",
        ),
        (
            lambda s: s.update({"layer1.0.bn1.weight": torch.zeros(7)}),
            "layer1.0.bn1.weight: expected (32,), found (7,); name",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("layer1.0.bn")],
            "; and 5 more; name the encoder that the file was made for",
        ),
        (lambda s: s.update({"fcx.weight": torch.zeros(1)}), "fcx.weight: expected nothing, found (1,)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_first_keys(tmp_path, state, change, message):
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth does not fit the architecture: ") as caught:
        build(tmp_path / "w.pth")
    assert message in str(caught.value)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"does not fit the architecture: conv1.0.weight: expected"):
        build(tmp_path / "w.pth")


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_file_cannot_run_code(tmp_path, capsys):
    torch.save({"weight": Code()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth is refused: it asks to run code \(print\)"):
        read_weights(str(tmp_path / "w.pth"))
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"\x08\x00\x00", "is truncated or no safetensors file ("),
        ("w.pth", b"garbage", "is refused: it is damaged or no file of weights"),
        ("w.pt", b"PK\x03\x04garbage", "is truncated or no file of weights ("),
        ("w.bin", b"", "is truncated or no file of weights ("),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_weights(str(tmp_path / name))


def test_a_file_of_something_else(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth holds no weights: expected a dict of tensors"):
        read_weights(str(tmp_path / "w.pth"))


def test_a_missing_file():
    with pytest.raises(
        FileNotFoundError, match=r"no weights: expected the file .*gone.pth, found nothing there"
    ):
        build("data/gone.pth")
