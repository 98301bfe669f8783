"""Export: ONNX towers give torch's embeddings and the evaluation's hits; what cannot be exported is said."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from tiny_runs import tiny_config, tiny_evaluate, tiny_train

from mmlib import export, files
from mmlib.cli import main
from mmlib.config import TrainConfig, build
from mmlib.data import load_dataset
from mmlib.export import tower_bytes
from mmlib.model import build_model
from mmlib.training.runs import read_arrays, read_queries

sys.path.insert(0, str(files.ROOT / "tests" / "model"))
from encoder_samples import CLIP, add_clip, randomise, write_bert

TOKENS, SIZE, IDS = 8, 32, 50
SIZES = {
    "run": "untrained", "epochs": 1, "lr": 0.1, "max_tokens": TOKENS, "image_size": SIZE, "patch_size": 8,
    "latent_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2, "memory_slots": 8, "feedback_steps": 2,
}  # fmt: skip
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")


def network(**changes):
    return randomise(build_model(build(TrainConfig, SIZES | changes), IDS))


def assert_close(model, kind: str) -> None:
    """ONNX gives torch's vectors, of unit length, for batches of any size."""
    session = onnxruntime.InferenceSession(tower_bytes(model, kind, SIZE, TOKENS, IDS))
    for items in (1, 3, 17):
        if kind == "image":
            pixels = np.random.default_rng(items).integers(256, size=(items, SIZE, SIZE, 3), dtype=np.uint8)
            encoder = model.image_encoder
            normal = (pixels.astype(np.float32) / 255 - encoder.mean) / encoder.std
            given = {"pixels": pixels}
            inputs = (torch.from_numpy(normal).float().permute(0, 3, 1, 2),)
            embed = model.embed_images
        else:
            length = np.random.default_rng(items).integers(1, TOKENS + 1, size=items)
            tokens = np.random.default_rng(items).integers(1, IDS, size=(items, TOKENS))
            given = {"tokens": np.where(np.arange(TOKENS) < length[:, None], tokens, 0), "lengths": length}
            inputs, embed = tuple(map(torch.from_numpy, given.values())), model.embed_captions
        with torch.no_grad():
            expected = torch.nn.functional.normalize(embed(*inputs), dim=-1).numpy()
        (found,) = session.run(None, given)
        assert found.shape == (items, 16)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("slots", [8, 0])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_references_encoders_are_torchs_with_memory_and_without(kind, slots):
    assert_close(network(memory_slots=slots), kind)


@pytest.mark.parametrize(("encoder", "slots"), [("gru", 0), ("words", 8), ("words", 0)])
def test_light_text_encoders_are_torchs(encoder, slots):
    assert_close(network(text_encoder=encoder, memory_slots=slots), "text")


def test_a_mean_over_padding_is_torchs():
    assert_close(network(padding_mask=False), "text")


@pytest.mark.parametrize(
    ("encoder", "pooling"), [("timm:test_vit", "encoder"), ("timm:test_resnet", "attention")]
)
def test_backbones_of_images_are_torchs(encoder, pooling):
    assert_close(network(image_encoder=encoder, image_weights="none", image_pooling=pooling), "image")


def test_backbones_of_texts_are_torchs(tmp_path):
    add_clip(tmp_path, "tiny-text", CLIP)
    pytest.importorskip("transformers")
    write_bert(tmp_path / "bert")
    for name in ("open_clip:tiny-text", f"hf:{tmp_path / 'bert'}"):
        given = {"text_encoder": name, "tokenizer": "encoder", "text_weights": "none"}
        assert_close(network(**given), "text")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained and evaluated run, its test images as PNG files, and its towers as ONNX files."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("export")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    tiny_train(shapes_test=30)
    tiny_evaluate()
    dataset = load_dataset(tiny_config(shapes_test=30))
    out = root / "onnx"
    (out / "photos").mkdir(parents=True)
    for number, name in enumerate(dataset.split("test").images):
        dataset.source.load(name, 16).save(out / "photos" / f"{number:02d}.png")
    assert main(["export", "tiny", "--out", str(out)]) == 0
    yield out
    patch.undo()


def test_the_example_beside_the_towers_finds_what_the_evaluation_found(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    queries, arrays = read_queries("tiny"), read_arrays("tiny", "neighbours")
    code = re.search(r"^```python\n(.*?)^```", (place / "README.md").read_text("utf-8"), re.M | re.S)[1]
    code = code.replace('["a dog runs on the beach"]', "captions").replace("*.jpg", "*.png")
    scope = {"captions": list(queries["captions"])}
    exec(code, scope)
    similarity_MN = scope["texts"] @ scope["images"].T
    first_MK = np.argsort(-similarity_MN, axis=1, kind="stable")[:, :5]
    expected_MK, value_MK = arrays["t2i_top"][:, :5], arrays["t2i_similarity"][:, :5]
    found_MK = np.take_along_axis(similarity_MN, first_MK, axis=1)
    np.testing.assert_allclose(found_MK, value_MK, atol=1e-5)
    others = first_MK != expected_MK  # only where two images are as similar as rounding can tell
    own_MK = np.take_along_axis(similarity_MN, expected_MK, axis=1)
    assert (np.abs(own_MK - found_MK)[others] < 1e-6).all()
    assert others.mean() < 0.02
    assert len(json.loads(capsys.readouterr().out.replace("'", '"'))) == 10


def test_model_json_says_what_the_towers_take(place):
    said = json.loads((place / "model.json").read_text("utf-8"))
    for kind in ("image", "text"):
        session = onnxruntime.InferenceSession(place / said[kind]["file"])
        assert {i.name: list(i.shape) for i in session.get_inputs()} == said[kind]["inputs"]
        assert [o.name for o in session.get_outputs()] == ["embeddings"]
    from mmlib.search import Retriever

    assert said["weights"] == Retriever.load("tiny").model_digest
    assert said["text"]["tokenizer"] == json.loads(
        (files.RUNS / "tiny" / "tokenizer.json").read_text("utf-8")
    )
    assert (said["image"]["size"], said["image"]["resize"]) == (16, "squash")


def test_without_the_extra_it_says_what_to_install(place, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", "tiny", "--out", "x"]) == 1
    said = capsys.readouterr().err
    assert "export needs onnxscript, found none; install with pip install 'mmlib[onnx]'" in said


def test_what_cannot_be_exported_is_said(place, tmp_path, capsys, monkeypatch):
    assert main(["export", "absent", "--out", str(tmp_path / "x")]) == 2
    assert "no run 'absent' in" in capsys.readouterr().err
    (tmp_path / "file").write_text("kept")
    assert main(["export", "tiny", "--out", str(tmp_path / "file")]) != 0
    assert "could not write" in capsys.readouterr().err
    assert main(["export", "tiny", "--out", str(tmp_path / "file" / "x")]) != 0
    assert "A file lies where its folder should be" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    status = files.RUNS / "tiny" / "status.json"
    said = status.read_text()
    try:
        status.write_text(said.replace('"complete"', '"failed"'))
        assert main(["export", "tiny", "--out", str(tmp_path / "x")]) == 1
    finally:
        status.write_text(said)
    assert "run 'tiny' is not complete but failed" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_tower_that_torch_cannot_export_or_onnx_reads_otherwise_is_named():
    model = network(memory_slots=0)

    def by_its_values(tokens_BL, length_B):
        return torch.ones(len(tokens_BL), 16) if tokens_BL.sum().item() > 3 else torch.zeros(1, 16)

    model.embed_captions = by_its_values
    with pytest.raises(ValueError, match=r"text tower cannot be exported to ONNX: .*another text_encoder"):
        tower_bytes(model, "text", SIZE, TOKENS, IDS)
    with pytest.raises(ValueError, match=r"torch.s embeddings to 0\.0001, found a difference of 0\.5"):
        export._check_close("text", np.zeros((1, 2)), np.full((1, 2), 0.5))
