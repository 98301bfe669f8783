"""Text encoders around open_clip's towers and transformers' models: the library's own features, its weights.

Shapes: B captions, L tokens, F feature channels.
"""

import json

import pytest
import torch
from encoder_samples import CLIP, CLIP_TIMM, add_clip, captions, config, randomise, write_bert

from mmlib.config import ParameterError
from mmlib.model import build_text_encoder

EOT = 49  # CLIP's end is its highest id


def build(name, weights="none", max_tokens=8, padding=0, **changes):
    settings = {"text_encoder": name, "text_weights": str(weights), "max_tokens": max_tokens}
    return build_text_encoder(config(**settings), 50, padding=padding, **changes).eval()


def with_end(tokens_BL, length_B):
    """CLIP's captions: real ids below the end's, the end last."""
    length_B = length_B.clamp(min=1)
    tokens_BL = (tokens_BL % 40).scatter(1, length_B[:, None] - 1, EOT)
    return tokens_BL.masked_fill(torch.arange(8) >= length_B[:, None], 0), length_B


def test_features_of_a_causal_tower_are_open_clips_without_its_full_length(tmp_path):
    import open_clip

    add_clip(tmp_path, "tiny-text", CLIP)
    model = randomise(open_clip.create_model("tiny-text"))
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    encoder = build("open_clip:tiny-text", tmp_path / "clip.pt")
    tokens_BL, length_B = with_end(*captions())
    expected_BF = model.encode_text(torch.nn.functional.pad(tokens_BL, (0, 2)))
    torch.testing.assert_close(encoder.features(tokens_BL, length_B), expected_BF)
    torch.testing.assert_close(encoder.features(tokens_BL[1:, :3], length_B[1:]), expected_BF[1:])
    assert encoder.feature_shape == (24,)
    assert torch.equal(encoder(encoder.features(tokens_BL, length_B)), encoder(tokens_BL, length_B))


def test_a_tower_that_reads_padding_gets_its_full_length(tmp_path):
    import open_clip

    add_clip(tmp_path, "tiny-last", CLIP_TIMM)
    model = randomise(open_clip.create_model("tiny-last"))
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    encoder = build("open_clip:tiny-last", tmp_path / "clip.pt", padding=1)
    tokens_BL, length_B = captions()
    tokens_BL = tokens_BL.masked_fill(torch.arange(8) >= length_B[:, None], 1)
    expected_BF = model.encode_text(torch.nn.functional.pad(tokens_BL, (0, 2), value=1))
    torch.testing.assert_close(encoder.features(tokens_BL, length_B), expected_BF)


def st_pooling(x_BLF, length_B, mode):
    """sentence-transformers' modes, caption by caption."""
    rows = []
    for x_LF, length in zip(x_BLF, length_B.clamp(min=1).tolist()):
        real = x_LF[:length]
        rows.append(
            {
                "mean": real.mean(0),
                "cls": real[0],
                "max": real.amax(0),
            }[mode]
        )
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("said", "modes"),
    [
        (None, ["mean"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ["mean"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ["cls", "mean"]),
        ({"pooling_mode_max_tokens": True}, ["max"]),
        ({"pooling_mode": ["max", "mean"]}, ["max", "mean"]),
    ],
)
def test_features_of_a_transformers_model_are_pooled_as_its_folder_says(tmp_path, said, modes):
    from transformers import AutoModel

    write_bert(tmp_path)
    if said:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
    encoder = build(f"hf:{tmp_path}", "default")
    model = AutoModel.from_pretrained(tmp_path).eval()
    tokens_BL, length_B = captions()
    real_BL = (torch.arange(8) < length_B.clamp(min=1)[:, None]).long()
    state_BLF = model(input_ids=tokens_BL, attention_mask=real_BL).last_hidden_state
    expected_BF = torch.cat([st_pooling(state_BLF, length_B, mode) for mode in modes], dim=1)
    feature_BF = encoder.features(tokens_BL, length_B)
    torch.testing.assert_close(feature_BF, expected_BF)
    assert encoder.feature_shape == tuple(expected_BF.shape[1:])
    other_BL = torch.where(real_BL.bool(), tokens_BL, 7)
    torch.testing.assert_close(encoder.features(other_BL, length_B), feature_BF)
    torch.testing.assert_close(encoder.features(tokens_BL[1:, :3], length_B[1:]), feature_BF[1:])


@pytest.mark.parametrize(
    ("said", "mode"),
    [({"pooling_mode": "median"}, "median"), ({"pooling_mode_lasttoken": True}, "lasttoken")],
)
def test_a_pooling_that_is_not_known(tmp_path, said, mode):
    write_bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.raises(ParameterError, match=f"asks for pooling '{mode}', known are mean, cls, max"):
        build(f"hf:{tmp_path}", "default")


def test_positions_that_count_from_behind_the_padding(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(
        RobertaConfig(vocab_size=50, max_position_embeddings=12, pad_token_id=1, **sizes)
    ).save_pretrained(tmp_path)
    encoder = build(f"hf:{tmp_path}", "default", max_tokens=10)
    tokens_BL = torch.randint(2, 50, (2, 10))
    assert encoder(tokens_BL, torch.tensor([10, 10])).isfinite().all()
    with pytest.raises(ParameterError, match="has 10 positions, found 11"):
        build(f"hf:{tmp_path}", "default", max_tokens=11)


def test_the_encoder_of_an_encoder_and_decoder_is_taken(tmp_path):
    from transformers import T5Config, T5Model

    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    model = randomise(T5Model(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes)))
    model.save_pretrained(tmp_path)
    encoder = build(f"hf:{tmp_path}", "default")
    tokens_BL, length_B = torch.randint(1, 50, (2, 8)), torch.tensor([8, 8])
    expected_BF = model.encoder(input_ids=tokens_BL).last_hidden_state.mean(1)
    torch.testing.assert_close(encoder.features(tokens_BL, length_B), expected_BF)
    assert len(encoder.blocks) == 3


def test_weights_of_a_transformers_model_from_a_file(tmp_path):
    write_bert(tmp_path / "a")
    write_bert(tmp_path / "b")
    one = build(f"hf:{tmp_path / 'a'}", tmp_path / "b" / "model.safetensors")
    two = build(f"hf:{tmp_path / 'b'}", "default")
    assert one.backbone.state_dict().keys() == two.backbone.state_dict().keys()
    for key, tensor in one.backbone.state_dict().items():
        assert torch.equal(tensor, two.backbone.state_dict()[key]), key
    write_bert(tmp_path / "wide", hidden_size=32)
    with pytest.raises(ValueError, match=r"model.safetensors cannot be loaded into hf:.*size mismatch"):
        build(f"hf:{tmp_path / 'a'}", tmp_path / "wide" / "model.safetensors")


def test_without_weights_a_transformers_model_is_random(tmp_path):
    name = f"hf:{write_bert(tmp_path)}"
    random, stored = build(name).backbone, build(name, "default").backbone
    assert not torch.equal(random.embeddings.word_embeddings.weight, stored.embeddings.word_embeddings.weight)


def test_a_folder_whose_weights_lack_something_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    write_bert(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack what its config asks for: encoder.layer.1.out"):
        build(f"hf:{tmp_path}", "default")


def test_a_restored_encoder_needs_neither_folder_nor_network(tmp_path):
    write_bert(tmp_path / "bert")
    (tmp_path / "bert" / "1_Pooling").mkdir()
    (tmp_path / "bert" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    name = f"hf:{tmp_path / 'bert'}"
    encoder = build(name, "default")
    architecture = json.loads(json.dumps(encoder.architecture))
    (tmp_path / "bert").rename(tmp_path / "gone")
    for weights in ("default", tmp_path / "gone.safetensors"):
        restored = build(name, weights, load_pretrained=False, architecture=architecture)
        restored.load_state_dict(encoder.state_dict())
        tokens_BL, length_B = captions()
        assert torch.equal(restored(tokens_BL, length_B), encoder(tokens_BL, length_B))
        assert restored.fingerprint() == encoder.fingerprint()
        assert restored.architecture == architecture


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json of hf:.*/gone: .* text_encoder=hf:<folder>"):
        build(f"hf:{tmp_path}/gone")


def test_a_model_that_cannot_be_downloaded(monkeypatch):
    def load(*_, **__):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", load)
    expected = "no config.json of hf:org/model: .*We couldn't connect.*name it: text_encoder=hf:<folder>"
    with pytest.raises(FileNotFoundError, match=expected):
        build("hf:org/model", "default")


def test_loading_shows_no_progress_bar(tmp_path, capsys):
    write_bert(tmp_path)
    capsys.readouterr()
    build(f"hf:{tmp_path}", "default")
    assert capsys.readouterr().err == ""
