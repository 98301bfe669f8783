"""Export: ONNX towers give torch's embeddings and the evaluation's hits; what cannot be exported is said."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from tiny_runs import tiny_evaluate

from mmlib import export, files
from mmlib.cli import main
from mmlib.config import TrainConfig, build, read_yaml
from mmlib.data import load_dataset
from mmlib.export import tower_bytes
from mmlib.metrics import RetrievalRanks
from mmlib.model import build_model
from mmlib.reporting.explorer import explorer_page
from mmlib.search import Retriever
from mmlib.training import train
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


@pytest.mark.parametrize("memory", ["published", "cosine", "none"])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_references_encoders_are_torchs_with_memory_and_without(kind, memory):
    model = network(memory=memory)
    if memory == "cosine":
        torch.nn.init.constant_(model.central_memory.gain, 0.5)
    assert_close(model, kind)


@pytest.mark.parametrize(("encoder", "memory"), [("gru", "none"), ("words", "published"), ("words", "none")])
def test_light_text_encoders_are_torchs(encoder, memory):
    assert_close(network(text_encoder=encoder, memory=memory), "text")


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
    """The demo on few training images, evaluated; its test images as PNG files; its towers as ONNX files."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("export")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    given = read_yaml(files.PARAMS / "demo" / "01_train.yaml")
    few = {
        "run": "demo",
        "epochs": 1,
        "warmup_epochs": 0,
        "shapes_train": 60,
        "shapes_val": 10,
        "device": "cpu",
    }
    config = build(TrainConfig, given | few)
    train(config, log=lambda line: None)
    tiny_evaluate("demo")
    dataset, whole = load_dataset(config), load_dataset(build(TrainConfig, given))
    split = dataset.split("test")
    assert (len(split.images), len(split.captions)) == (250, 1250)
    assert split.captions == whole.split("test").captions
    out = root / "onnx"
    (out / "photos").mkdir(parents=True)
    for number, name in enumerate(split.images):
        dataset.source.load(name, config.image_size).save(out / "photos" / f"{number:03d}.png")
    assert main(["export", "demo", "--out", str(out)]) == 0
    assert main(["index", "demo", str(out / "photos")]) == 0
    yield out
    patch.undo()


def assert_same_hits(similarity_MK: np.ndarray, found_MK: np.ndarray) -> None:
    """The evaluation's own first five images of each caption; rounding may turn what is equal to 1e-6."""
    arrays = read_arrays("demo", "neighbours")
    value_MK, expected_MK = arrays["t2i_similarity"][:, :5], arrays["t2i_top"][:, :5]
    np.testing.assert_allclose(similarity_MK, value_MK, atol=1e-5)
    for value_K, found_K, first_K in zip(arrays["t2i_similarity"], found_MK, arrays["t2i_top"]):
        value = dict(zip(first_K, value_K))
        near = [value.get(image, value_K[-1]) for image in found_K]
        np.testing.assert_allclose(near, value_K[:5], atol=1e-6)
    assert (found_MK != expected_MK).mean() < 0.02


def test_a_search_gives_the_evaluations_first_five_for_every_caption_of_the_demo(place):
    retriever, captions = Retriever.load("demo"), read_queries("demo")["captions"]
    hits = [retriever.search(text=caption, top=5) for caption in captions]
    assert len(hits) == 1250
    found_MK = np.array([[int(hit.file.stem) for hit in found] for found in hits])
    assert_same_hits(np.array([[hit.similarity for hit in found] for found in hits]), found_MK)


def test_the_explorer_lists_what_the_evaluation_found_for_every_caption_of_the_demo(place):
    _, content = explorer_page("demo", ["demo"])
    data = re.search(rb'<script type="application/json" id="data">(.*?)</script>', content, re.S)[1]
    lists = json.loads(data)["runs"][0]["t2i"]
    assert lists["top"] == read_arrays("demo", "neighbours")["t2i_top"].tolist()
    ranks = RetrievalRanks.load(files.RUNS / "demo" / "ranks.npz")
    assert lists["rank"] == ranks.t2i_M.tolist()
    for top, rank, ties, own in zip(lists["top"], ranks.t2i_M, ranks.ties_t2i_M, ranks.image_of_text_M):
        where = top.index(own) + 1 if own in top else 11
        assert rank - ties <= where <= rank or (where == 11 and rank > 10)


def test_the_example_beside_the_towers_finds_what_the_evaluation_found(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    queries = read_queries("demo")
    code = re.search(r"^```python\n(.*?)^```", (place / "README.md").read_text("utf-8"), re.M | re.S)[1]
    code = code.replace('["a dog runs on the beach"]', "captions").replace("*.jpg", "*.png")
    scope = {"captions": list(queries["captions"])}
    exec(code, scope)
    similarity_MN = scope["texts"] @ scope["images"].T
    first_MK = np.argsort(-similarity_MN, axis=1, kind="stable")[:, :5]
    assert_same_hits(np.take_along_axis(similarity_MN, first_MK, axis=1), first_MK)
    assert len(json.loads(capsys.readouterr().out.replace("'", '"'))) == 10


def test_model_json_says_what_the_towers_take(place):
    said = json.loads((place / "model.json").read_text("utf-8"))
    for kind in ("image", "text"):
        session = onnxruntime.InferenceSession(place / said[kind]["file"])
        assert {i.name: list(i.shape) for i in session.get_inputs()} == said[kind]["inputs"]
        assert [o.name for o in session.get_outputs()] == ["embeddings"]
    assert said["weights"] == Retriever.load("demo").model_digest
    assert said["text"]["tokenizer"] == json.loads(
        (files.RUNS / "demo" / "tokenizer.json").read_text("utf-8")
    )
    assert (said["image"]["size"], said["image"]["resize"]) == (64, "squash")


def test_without_the_extra_it_says_what_to_install(place, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["export", "demo", "--out", "x"]) == 1
    said = capsys.readouterr().err
    assert "export needs onnxscript, found none; install with pip install 'mmlib[onnx]'" in said


def test_what_cannot_be_exported_is_said(place, tmp_path, capsys, monkeypatch):
    assert main(["export", "absent", "--out", str(tmp_path / "x")]) == 2
    assert "no run 'absent' in" in capsys.readouterr().err
    (tmp_path / "file").write_text("kept")
    assert main(["export", "demo", "--out", str(tmp_path / "file")]) != 0
    assert "could not write" in capsys.readouterr().err
    assert main(["export", "demo", "--out", str(tmp_path / "file" / "x")]) != 0
    assert "A file lies where its folder should be" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"
    status = files.RUNS / "demo" / "status.json"
    said = status.read_text()
    try:
        status.write_text(said.replace('"complete"', '"failed"'))
        assert main(["export", "demo", "--out", str(tmp_path / "x")]) == 1
    finally:
        status.write_text(said)
    assert "run 'demo' is not complete but failed" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_tower_that_torch_cannot_export_or_onnx_reads_otherwise_is_named():
    model = network(memory="none")

    def by_its_values(tokens_BL, length_B):
        return torch.ones(len(tokens_BL), 16) if tokens_BL.sum().item() > 3 else torch.zeros(1, 16)

    model.embed_captions = by_its_values
    with pytest.raises(ValueError, match=r"text tower cannot be exported to ONNX: .*another text_encoder"):
        tower_bytes(model, "text", SIZE, TOKENS, IDS)
    with pytest.raises(ValueError, match=r"torch.s embeddings to 0\.0001, found a difference of 0\.5"):
        export._check_close("text", np.zeros((1, 2)), np.full((1, 2), 0.5))
