"""`mmlib evaluate --model`: open_clip's own embeddings, CLIP_benchmark's recall, and what is refused."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_samples import CLIP, add_clip, randomise
from PIL import Image

from mmlib import files
from mmlib.cli import main
from mmlib.config import DataConfig, ParameterError, build
from mmlib.data import load_dataset
from mmlib.data.dataset import Dataset, Split
from mmlib.training.embed import ZeroShot, check_protocol_of

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
    zero_shot = ZeroShot(f"open_clip:{NAME}", weights, "a photo of {}.")
    image_ND, caption_MD, map_M, preprocess = zero_shot.embed(dataset, "test")
    expected = by_hand(model, "a photo of {}.")
    np.testing.assert_allclose(image_ND, expected[0], atol=1e-5)
    np.testing.assert_allclose(caption_MD, expected[1], atol=1e-5)
    np.testing.assert_array_equal(map_M, expected[2].image_of_caption_M)
    assert (preprocess["size"], preprocess["resize_mode"]) == ((32, 32), "shortest")


class Photos:
    """Pictures of noise that are no squares."""

    def load(self, name, size=None):
        pixels = np.random.default_rng(int(name)).integers(
            0, 256, (40 + 9 * int(name), 90, 3), dtype=np.uint8
        )
        return Image.fromarray(pixels)


@torch.no_grad()
@pytest.mark.parametrize("weights", ["first", "default"])
@pytest.mark.parametrize("resize_mode", ["squash", "longest"])
def test_a_tag_brings_its_preprocessing(clip, monkeypatch, weights, resize_mode):
    import open_clip

    own = {
        "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear",
        "resize_mode": resize_mode, "quick_gelu": True,
    }  # fmt: skip
    tags = {"first": {"file": clip[1], **own}, "second": {"file": "absent"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, tags)
    split = Split("test", ("0", "1", "2"), ("one", "two", "three", "four"), np.array([0, 1, 2, 2]))
    dataset = Dataset("photos", {"test": split}, Photos(), "0" * 16)
    zero_shot = ZeroShot(f"open_clip:{NAME}", weights)
    assert zero_shot.weights == "first"
    image_ND, caption_MD, _, preprocess = zero_shot.embed(dataset, "test")
    assert {key: preprocess.get(key, True) for key in own} == own

    model, _, transform = open_clip.create_model_and_transforms(NAME, "first", force_quick_gelu=True)
    pictures = torch.stack([transform(dataset.source.load(name)) for name in split.images])
    np.testing.assert_allclose(image_ND, model.eval().encode_image(pictures), atol=1e-5)
    tokens = open_clip.get_tokenizer(NAME)(list(split.captions))
    np.testing.assert_allclose(caption_MD, model.encode_text(tokens), atol=1e-5)


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
    assert (result["split"], result["summary"]["protocol"]) == ("test", "standard")
    assert result["preprocess"]["size"] == [32, 32]
    assert result["identity"]["name"] == "shapes"
    for direction, score, right in (("t2i", score_MN, right_MN), ("i2t", score_MN.T, right_MN.T)):
        for k in (1, 5, 10):
            hits = right.gather(1, score.topk(k).indices).any(1).float().mean().item()
            assert result["summary"][direction][f"r{k}"]["value"] == pytest.approx(hits)
    assert main([*command, "--split", "val", "--template", "x {}", "--out", str(place / "v.json")]) == 0
    assert "shapes, val split" in capsys.readouterr().out
    assert main([*command, "--template", "a <i>{}</i>", "--html", str(place / "page.html")]) == 0
    page = html.unescape((place / "page.html").read_text())
    assert f"open_clip:{NAME} ({weights}), zero-shot, template 'a <i>{{}}</i>'" in page
    assert "shapes, test split · protocol standard · " in page
    assert "<i>" not in (place / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "timm:resnet18"], "found 'timm:resnet18'; models of timm embed images or texts alone"),
        (["--model", "hf:bert"], "and have no joint space before a training"),
        (["--model", "ViT-B-32"], "expected open_clip:<name>, as open_clip:ViT-B-32, found 'ViT-B-32'"),
        (["--model", "open_clip:ViT-B-33"], "unknown open_clip model 'ViT-B-33'; did you mean 'ViT"),
        (["--model", f"open_clip:{NAME}", "--weights", "none"], "expected a tag or a file, found 'none'"),
        (["--model", f"open_clip:{NAME}", "--weights", "gone.pt"], "no weights: expected the file"),
        (["--model", f"open_clip:{NAME}", "--weights", "FILE", "--template", "x"], "expected {} where the"),
        (["--model", f"open_clip:{NAME}"], f"no weights for open_clip:{NAME}: use --weights a file (.safe"),
        (["--model", f"open_clip:{NAME}", "--weights", "folder"], "use --weights a file (.safetensors"),
        (["--model", "open_clip:ViT-B-32", "--weights", "openia"], "did you mean 'openai'"),
        (["--model", f"open_clip:{NAME}", "--images", "i.npy"], "and neither a parameter file nor --images"),
        (["--model", f"open_clip:{NAME}", "-p", "datset", "coco"], "did you mean 'dataset'"),
        (["--model", f"open_clip:{NAME}", "--weights", "FILE", "--split", "dev"], "found 'dev'"),
        (["--template", "a {}"], "--template: expected --model, which reads it, found none"),
        (["--images", "i.npy", "--weights", "x.pt", "--split", "val"], "--weights, --split: expected"),
        (["params/demo/03_evaluate.yaml", "--split", "val"], "--split: expected --model"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said(clip, capsys, words, message):
    words = [clip[1] if word == "FILE" else word for word in words]
    small = DATA if "--model" in words and "datset" not in words else []
    assert main(["evaluate", *words, *small]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_embedded_for_a_protocol_of_other_data(clip, capsys, monkeypatch):
    monkeypatch.setattr(ZeroShot, "embed", lambda *_: pytest.fail("embedded"))
    words = ["evaluate", "--model", f"open_clip:{NAME}", "--weights", clip[1], *DATA]
    for protocol in ("coco_5k", "full", "nonsense"):
        assert main([*words, "--protocol", protocol]) == 2
        message = "expected one of standard, paired, single_caption for the test split of shapes (20 images)"
        assert f"{message}, found {protocol!r}" in capsys.readouterr().err
    assert main([*words, "--protocol", "coco_1k_folds", "--ranks", "r.npz"]) == 2
    assert "ranks in folds, which have no file of ranks; leave it out" in capsys.readouterr().err


def test_flickr8k_is_not_named_flickr30k(clip):
    """Both test splits have 1,000 images."""
    split = Split("test", tuple(map(str, range(1000))), tuple(map(str, range(1000))), np.arange(1000))
    check_protocol_of(Dataset("flickr30k", {"test": split}, Photos(), "0" * 16), "test", "flickr30k_1k")
    with pytest.raises(
        ParameterError, match=r"test split of flickr8k \(1,000 images\), found 'flickr30k_1k'"
    ):
        check_protocol_of(Dataset("flickr8k", {"test": split}, Photos(), "0" * 16), "test", "flickr30k_1k")


@pytest.mark.parametrize("given", [["resize", "crop"], ["image_size", "224"]])
def test_the_model_brings_its_own_size(clip, capsys, given):
    words = ["evaluate", "--model", f"open_clip:{NAME}", "--weights", clip[1], "-p", "dataset", "flickr8k"]
    assert main([*words, "-p", *given]) == 2
    assert f"-p {given[0]}: expected parameters that choose data; the model brings" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_fetched_is_said_before_any_weights(capsys, monkeypatch):
    monkeypatch.setattr("mmlib.training.embed.create_open_clip", lambda *_: pytest.fail("loaded"))
    assert main(["evaluate", "--model", "open_clip:roberta-ViT-B-32", *DATA]) == 2
    assert "roberta-ViT-B-32 has a tokenizer of its own, whose files are not here" in capsys.readouterr().err


def test_weights_are_found_from_the_current_folder(clip, place, capsys, monkeypatch):
    (place / "here.pt").write_bytes(Path(clip[1]).read_bytes())
    monkeypatch.chdir(place)
    assert main(["evaluate", "--model", f"open_clip:{NAME}", "--weights", "here.pt", *DATA]) == 0
    assert f"open_clip:{NAME} ({place / 'here.pt'}), zero-shot" in capsys.readouterr().out


def test_weights_of_another_model_are_named(clip, place):
    torch.save({"visual.proj": torch.zeros(3)}, place / "other.pt")
    dataset = load_dataset(build(DataConfig, SMALL))
    with pytest.raises(ValueError, match=r"cannot be loaded into open_clip:tiny-zero-shot"):
        ZeroShot(f"open_clip:{NAME}", str(place / "other.pt")).embed(dataset, "test")
