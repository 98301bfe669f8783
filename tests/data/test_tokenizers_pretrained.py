"""Tokenizers of CLIP and of pretrained text encoders: their libraries' own ids, restored without them."""

import json
import pickle
import re
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mmlib import files
from mmlib.config import ParameterError
from mmlib.data import build_tokenizer, restore_tokenizer
from mmlib.data.tokenizers import count_losses, encoder_tokenizer, losses_warning
from mmlib.data.tokenizers.pretrained import EncoderTokenizer

CAPTIONS = [
    "A dog runs over the grass!",
    "a cat &amp; 2 dogs , un café",
    "",
    "!? zebra 北京 \U0001f415\n\t",
    "a dog a dog a dog a dog a dog",
    "[PAD] <end_of_text> [SEP]",
]


@pytest.fixture(scope="module")
def clip():
    return build_tokenizer("clip", ["unread"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text encoder's folder with a WordPiece tokenizer whose padding is not 0."""
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "dog", "##s", "cat", "runs", "grass", "!", ",", "?"]
    library = LibraryTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    library.enable_truncation(5)  # as sentence encoders' files have it
    library.enable_padding(length=5, pad_id=3)
    folder = tmp_path_factory.mktemp("encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=library, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", model_max_length=20,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return encoder_tokenizer(f"hf:{folder}")


def local_clip(folder, root, **text_cfg):
    """Adds a model to open_clip, with the tokenizer of `folder`; returns its name."""
    import open_clip

    config = {"embed_dim": 1, "vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": str(folder), **text_cfg}}
    path = root / f"{root.name}-{len(text_cfg)}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem


def restored(tokenizer):
    return restore_tokenizer(json.loads(json.dumps(tokenizer.state)))


# --- CLIP's


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 77])
def test_clips_ids_are_those_of_open_clip(clip, max_tokens):
    import open_clip

    theirs_BL = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS, max_tokens).numpy()
    tokens_BL, length_B = clip.encode(CAPTIONS, max_tokens)
    assert np.array_equal(tokens_BL, theirs_BL)
    assert (tokens_BL[np.arange(len(CAPTIONS)), length_B - 1] == 49407).all()  # cut ones keep the end
    if max_tokens == 77:
        assert length_B[:3].tolist() == [9, 10, 2]


def test_clip_is_ready_made_and_needs_no_captions(clip):
    assert (clip.kind, clip.size, clip.padding_id, clip.context_length) == ("clip", 49408, 0, None)
    assert clip.encode(["a " * 99], 90)[1] == 90  # a text encoder of ours reads as much as is asked for


def test_clip_reads_back_its_text_and_no_padding(clip):
    text = "a dog runs over the grass !"
    tokens_BL, length_B = clip.encode([text, "!! a", "!!!!!!!! b"], 20)
    assert [clip.decode(row) for row in tokens_BL] == [text, "!! a", "!!!!!!!! b"]
    assert clip.decode(tokens_BL[0, : length_B[0]]) == text
    assert clip.decode([]) == ""


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.text(), strategies.integers(1, 12))
def test_clip_takes_any_text(clip, text, max_tokens):
    tokens_BL, length_B = clip.encode([text, "\ud83d"], max_tokens)
    assert ((tokens_BL >= 0) & (tokens_BL < clip.size)).all()
    assert tokens_BL[0, length_B[0] - 1] == 49407
    clip.decode(tokens_BL[0])


def test_clip_comes_back_from_a_few_bytes(clip):
    assert len(json.dumps(clip.state)) < 200
    again = restored(clip)
    assert (again.kind, again.size, again.fingerprint) == ("clip", clip.size, clip.fingerprint)
    assert np.array_equal(again.encode(CAPTIONS, 9)[0], clip.encode(CAPTIONS, 9)[0])
    assert pickle.loads(pickle.dumps(clip)).fingerprint == clip.fingerprint


def test_other_merges_are_refused(clip):
    with pytest.raises(ValueError, match=r"expected CLIP's merges with SHA-256 00, found [0-9a-f]{64} in"):
        restore_tokenizer({**clip.state, "merges_sha256": "00"})


# --- a folder of transformers


@pytest.mark.parametrize("max_tokens", [2, 3, 6, 20])
def test_an_encoders_ids_are_those_of_transformers(folder, max_tokens):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, truncation=True, max_length=max_tokens, padding="max_length", return_tensors="np"
    )
    tokens_BL, length_B = encoder_tokenizer(f"hf:{folder}").encode(CAPTIONS, max_tokens)
    assert np.array_equal(tokens_BL, theirs["input_ids"])
    assert np.array_equal(length_B, theirs["attention_mask"].sum(1))


def test_an_encoders_padding_is_its_own(folder):
    tokenizer = build_tokenizer("encoder", [], text_encoder=f"hf:{folder}")
    assert (tokenizer.kind, tokenizer.size, tokenizer.padding_id) == ("encoder", 13, 3)
    tokens_BL, length_B = tokenizer.encode(["Dogs!", ""], 6)
    assert tokens_BL.tolist() == [[1, 5, 6, 10, 2, 3], [1, 2, 3, 3, 3, 3]]
    assert length_B.tolist() == [5, 2]
    assert tokenizer.decode(tokens_BL[0]) == "dogs!"


def test_one_token_is_the_first(folder):
    tokens_BL, length_B = encoder_tokenizer(f"hf:{folder}").encode(["a dog", ""], 1)
    assert (tokens_BL.tolist(), length_B.tolist()) == ([[1], [1]], [1, 1])


@hypothesis.given(strategies.text(), strategies.integers(1, 12))
@hypothesis.settings(deadline=None)
def test_an_encoder_takes_any_text(tokenizer, text, max_tokens):
    tokens_BL, length_B = tokenizer.encode([text], max_tokens)
    assert ((tokens_BL >= 0) & (tokens_BL < tokenizer.size)).all()
    assert 1 <= length_B[0] <= max_tokens
    tokenizer.decode(tokens_BL[0])


def test_an_encoder_comes_back_without_its_folder(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    tokenizer = encoder_tokenizer(f"hf:{moved}")
    shutil.rmtree(moved)
    again = restored(tokenizer)
    assert (again.size, again.padding_id, again.context_length) == (13, 3, 20)
    assert again.fingerprint == tokenizer.fingerprint == encoder_tokenizer(f"hf:{folder}").fingerprint
    for there, here in zip(again.encode(CAPTIONS, 7), tokenizer.encode(CAPTIONS, 7)):
        assert np.array_equal(there, here)
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint


def test_a_relative_folder_is_read_from_the_repositorys_root(folder, monkeypatch):
    monkeypatch.setattr(files, "ROOT", folder.parent)
    assert encoder_tokenizer(f"hf:{folder.name}").size == 13


def test_more_tokens_than_the_encoder_reads_are_refused(folder):
    with pytest.raises(ValueError, match=r"max_tokens: expected at most 20, .*, found 21; lower max_tokens"):
        encoder_tokenizer(f"hf:{folder}").encode(CAPTIONS, 21)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"weights) in the folder {tmp_path}")):
        encoder_tokenizer(f"hf:{tmp_path}")


def test_a_name_that_is_not_here_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = "text_encoder hf:some/encoder: expected the encoder's files (config.json"
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as refused:
        encoder_tokenizer("hf:some/encoder")
    assert "run `hf download some/encoder --local-dir data/models/some/encoder`" in str(refused.value)
    assert str(refused.value).endswith("text_encoder hf:data/models/some/encoder")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("install it with pip install 'mmlib[hf]'")):
        encoder_tokenizer("hf:some/encoder")


@pytest.mark.parametrize("encoder", [None, "transformer", "hf:", "timm:vit"])
def test_an_encoder_without_a_tokenizer_is_refused(encoder):
    with pytest.raises(
        ParameterError, match=r"expected text_encoder hf:<name or folder> or open_clip:<name>"
    ):
        build_tokenizer("encoder", CAPTIONS, text_encoder=encoder)


# --- open_clip


@pytest.mark.parametrize(("name", "context_length"), [("ViT-B-32", 77), ("PE-Core-B-16", 32)])
def test_most_models_of_open_clip_read_clips_tokens(clip, name, context_length):
    tokenizer = encoder_tokenizer(f"open_clip:{name}")
    assert (tokenizer.kind, tokenizer.context_length) == ("clip", context_length)
    assert np.array_equal(tokenizer.encode(CAPTIONS, 9)[0], clip.encode(CAPTIONS, 9)[0])
    assert restored(tokenizer).context_length == context_length
    with pytest.raises(ValueError, match=f"max_tokens: expected at most {context_length}"):
        tokenizer.encode(CAPTIONS, context_length + 1)


@pytest.mark.parametrize(
    "settings", [{}, {"clean": "canonicalize"}, {"clean": "lower"}, {"strip_sep_token": True}]
)
def test_others_are_prepared_as_open_clip_does(folder, tmp_path, settings):
    import open_clip

    name = local_clip(folder, tmp_path, tokenizer_kwargs=settings, context_length=12)
    tokenizer = encoder_tokenizer(f"open_clip:{name}")
    assert (tokenizer.kind, tokenizer.context_length, tokenizer.padding_id) == ("encoder", 12, 3)
    theirs_BL = open_clip.get_tokenizer(name)(CAPTIONS).numpy()
    for ours in (tokenizer, restored(tokenizer)):
        assert np.array_equal(ours.encode(CAPTIONS, 12)[0], theirs_BL)


def test_settings_tell_fingerprints_apart(folder, tmp_path):
    kinds = [{}, {"clean": "canonicalize"}, {"strip_sep_token": True}]
    names = []
    for number, kind in enumerate(kinds):
        (tmp_path / f"clip-{number}").mkdir()
        names.append(local_clip(folder, tmp_path / f"clip-{number}", tokenizer_kwargs=kind))
    assert len({encoder_tokenizer(f"open_clip:{name}").fingerprint for name in names}) == 3


def test_a_name_that_open_clip_does_not_know_is_refused_with_the_nearest():
    with pytest.raises(
        ParameterError, match=r"a model of open_clip, found 'ViT-B32'; did you mean 'ViT-B-32'\?"
    ):
        encoder_tokenizer("open_clip:ViT-B32")


def test_a_model_whose_tokenizer_is_not_here_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="open_clip:roberta-ViT-B-32 has a tokenizer of its own, whose"
    ):
        encoder_tokenizer("open_clip:roberta-ViT-B-32")


def test_a_tokenizer_with_rules_of_its_own_is_refused(folder, tmp_path):
    name = local_clip(folder, tmp_path, tokenizer_mode="clips")
    with pytest.raises(
        ValueError, match="found a HFTokenizer with settings of its own, which cannot be kept"
    ):
        encoder_tokenizer(f"open_clip:{name}")
    name = local_clip(folder, tmp_path, hf_tokenizer_name="", tokenizer_kwargs={"reduction_mask": "random"})
    with pytest.raises(ValueError, match="found a SimpleTokenizer with settings of its own"):
        encoder_tokenizer(f"open_clip:{name}")


def test_what_an_encoder_does_not_know_is_counted(tokenizer):
    """WordPiece by its token's name; Unigram by number; CLIP's bytes know everything."""
    losses = count_losses(tokenizer, ["a dog !", "zebra 北京"], 20)
    assert (losses["tokens"], losses["unknown"]) == (10, 3)  # two special ones each; a character a token
    assert "another text_encoder" in losses_warning(losses)
    pieces = LibraryTokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.5)], unk_id=0))
    assert EncoderTokenizer(pieces.to_str(), 1).unknown_id == 0
    assert count_losses(EncoderTokenizer(pieces.to_str(), 1), ["ab", "az"], 9)["unknown"] == 1
