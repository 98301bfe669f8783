"""`mmlib evaluate --model`: open_clip's own embeddings, CLIP_benchmark's recall, and what is refused."""

import json

import numpy as np
import pytest
import torch
from encoder_samples import CLIP, add_clip, randomise

from mmlib import files
from mmlib.cli import main
from mmlib.config import DataConfig, ParameterError, build
from mmlib.data import load_dataset
from mmlib.training.zero_shot import embed_zero_shot

NAME = "tiny-zero-shot"
SMALL = {"shapes_train": 4, "shapes_val": 4, "shapes_test": 20, "image_size": 32}
DATA = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP with random weights, and their file."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    add_clip(
        folder, NAME, CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": 49_408, "context_length": 20}}
    )
    torch.manual_seed(0)
    model = randomise(open_clip.create_model(NAME)).eval()
    torch.save(model.state_dict(), folder / "weights.pt")
    return model, str(folder / "weights.pt")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@torch.no_grad()
def by_hand(model, template="{}"):
    """open_clip's own preprocessing, tokenizer and towers, one item after the other."""
    import open_clip

    preprocess, tokenizer = (
        open_clip.image_transform(model.visual.image_size, False),
        open_clip.get_tokenizer(NAME),
    )
    dataset = load_dataset(build(DataConfig, SMALL))
    split = dataset.split("test")
    image_ND = torch.cat([model.encode_image(preprocess(dataset.source.load(n))[None]) for n in split.images])
    texts = [template.replace("{}", caption) for caption in split.captions]
    return image_ND, torch.cat([model.encode_text(tokenizer([text])) for text in texts]), split


def test_embeddings_are_those_of_open_clip(clip):
    model, weights = clip
    dataset = load_dataset(build(DataConfig, SMALL))
    image_ND, caption_MD, map_M = embed_zero_shot(
        f"open_clip:{NAME}", weights, dataset, "test", "a photo of {}."
    )
    expected = by_hand(model, "a photo of {}.")
    np.testing.assert_allclose(image_ND, expected[0], atol=1e-5)
    np.testing.assert_allclose(caption_MD, expected[1], atol=1e-5)
    np.testing.assert_array_equal(map_M, expected[2].image_of_caption_M)


def test_recall_is_that_of_clip_benchmark(clip, place, capsys):
    model, weights = clip
    command = [
        "evaluate",
        "--model",
        f"open_clip:{NAME}",
        "--weights",
        weights,
        "-p",
        "dataset",
        "shapes",
        *DATA,
    ]
    assert main([*command, "--out", str(place / "r.json"), "--ranks", str(place / "r.npz")]) == 0
    image_ND, caption_MD, split = by_hand(model)
    score_MN = torch.nn.functional.normalize(caption_MD) @ torch.nn.functional.normalize(image_ND).T
    right_MN = torch.zeros_like(score_MN, dtype=torch.bool)
    right_MN[torch.arange(len(score_MN)), torch.as_tensor(split.image_of_caption_M)] = True
    result = json.loads((place / "r.json").read_text())
    assert (result["model"], result["weights"], result["template"]) == (f"open_clip:{NAME}", weights, "{}")
    assert result["identity"]["name"] == "shapes"
    for direction, score, right in (("t2i", score_MN, right_MN), ("i2t", score_MN.T, right_MN.T)):
        for k in (1, 5, 10):
            hits = right.gather(1, score.topk(k).indices).any(1).float().mean().item()
            assert result["summary"][direction][f"r{k}"]["value"] == pytest.approx(hits)
    assert main([*command, "--split", "val", "--template", "x {}", "--out", str(place / "v.json")]) == 0
    assert "shapes, val split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "timm:resnet18"], "expected open_clip:<name>, found 'timm:resnet18'; models of other"),
        (["--model", "open_clip:ViT-B-33"], "unknown open_clip model 'ViT-B-33'; did you mean 'ViT"),
        (["--model", f"open_clip:{NAME}", "--weights", "none"], "expected a tag or a file, found 'none'"),
        (["--model", f"open_clip:{NAME}", "--weights", "gone.pt"], "no weights: expected the file"),
        (["--model", f"open_clip:{NAME}", "--template", "x"], "expected {} where the caption goes"),
        (["--model", f"open_clip:{NAME}", "--images", "i.npy"], "and neither a parameter file nor --images"),
        (["--model", f"open_clip:{NAME}", "-p", "datset", "coco"], "did you mean 'dataset'"),
        (["--model", f"open_clip:{NAME}", "--weights", "FILE", "--split", "dev"], "found 'dev'"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said(clip, capsys, words, message):
    words = [clip[1] if word == "FILE" else word for word in words]
    small = [] if "datset" in words else DATA
    assert main(["evaluate", *words, *small]) == 2
    assert message in capsys.readouterr().err


def test_weights_of_another_model_are_named(clip, place):
    torch.save({"visual.proj": torch.zeros(3)}, place / "other.pt")
    dataset = load_dataset(build(DataConfig, SMALL))
    with pytest.raises(ValueError, match=r"cannot be loaded into open_clip:tiny-zero-shot"):
        embed_zero_shot(f"open_clip:{NAME}", str(place / "other.pt"), dataset, "test")
    with pytest.raises(ParameterError, match=r"expected .* where the caption goes"):
        embed_zero_shot(f"open_clip:{NAME}", clip[1], dataset, "test", "no place")
