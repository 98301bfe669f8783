"""The text towers of pages: in Chromium they read and embed texts as Python and torch do."""

import json
import sys

import numpy as np
import pytest
import torch
from browser import needs_browser, open_page
from tiny_runs import TINY, quiet, tiny_evaluate

from mmlib import files
from mmlib.config import TrainConfig, build
from mmlib.data import load_dataset
from mmlib.data.tokenizers import build_tokenizer
from mmlib.model import build_model
from mmlib.reporting.explorer import explorer_page
from mmlib.training import train
from mmlib.training.embed import embed_captions, page_tower
from mmlib.training.evaluation import load_run
from mmlib.training.runs import read_arrays, read_queries

sys.path.insert(0, str(files.ROOT / "tests" / "model"))
from encoder_samples import CLIP, add_clip, randomise

pytestmark = needs_browser
TEXTS = [
    "", " ", "\n\t tab \r\n line  ", "a_b__c -- 'x' \"q\" it's we'll DON'T I'M", "word " * 500, "x" * 3000,
    "aaaa aaaaa  aaaaaaaaaa", "ΑΣ ΟΔΟΣ Σ σ. İstanbul STRASSE ẞ ß ǅ ﬁ Ⅷ ⓐ 𝐀", "café cafe\u0301 ÉCOLE naïve",
    "🎈\U0001f468\u200d\U0001f469\u200d\U0001f467 red 🟥 circle!!", "שלום עולם \u202e abc", "مرحبا بالعالم",
    "क्षि ไทย 한국어 日本語テキスト", "1²½Ⅷ一二٣ 3.14", "x\x1b[31m\x1c\x1d\x85\u00a0y\ufeffz\u2028w\u3000",
    "\ud83d lone \udc00 pair \ud83d\udd34", "zyzzyva Qwxkj", "<pad> <unk> </script>&amp;<img src=x>",
    "__proto__ constructor toString",
]  # fmt: skip
KINDS = {  # run to text encoder, tokenizer, memory
    "words": ("words", "word", "published"),
    "gru": ("gru", "bpe", "cosine"),
    "transformer": ("transformer", "char", "none"),
    "reference": ("transformer", "char-reference", "none"),
}


def config_of(run: str, encoder: str, tokenizer: str, memory: str, **changes) -> TrainConfig:
    given = TINY | {"run": run, "text_encoder": encoder, "tokenizer": tokenizer, "memory": memory} | changes
    if tokenizer == "bpe":
        given |= {"bpe_vocabulary": 300}
    unread = {"published": (), "cosine": ("feedback_steps",), "none": ("feedback_steps", "memory_slots")}
    return build(TrainConfig, {name: value for name, value in given.items() if name not in unread[memory]})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The explorer of a trained run of each kind, in a browser."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("towers")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    for run, parts in KINDS.items():
        without = {"padding_mask": False} if run == "reference" else {}
        train(
            config_of(run, *parts, shapes_test=30, epochs=4, **without),
            quiet,
        )
        tiny_evaluate(run)
    name, content = explorer_page("tiny", list(KINDS))
    (root / name).write_bytes(content)
    with open_page(root / "profile", f"file://{root / name}") as opened:
        yield opened
        assert (opened.complaints, opened.requests) == ([], [])
    patch.undo()


def asked(page, code: str, tower: str, texts: list[str]):
    """What a function `code` of a tower and a text gives for each text."""
    return page.evaluate(f"(() => {{ const tower = {tower}; return {json.dumps(texts)}.map({code}); }})()")


def assert_embeds(page, tower: str, model, tokenizer, texts: list[str], tokens: int) -> None:
    found_MD = asked(page, "(text) => [...embedText(tower, text).values]", tower, texts)
    expected_MD = torch.nn.functional.normalize(
        embed_captions(model, tokenizer, texts, tokens), dim=-1
    ).numpy()
    np.testing.assert_allclose(np.linalg.norm(found_MD, axis=1), 1, atol=1e-5)
    assert (np.array(found_MD) * expected_MD).sum(1).min() >= 0.995


@pytest.mark.parametrize("run", KINDS)
def test_a_trained_run_reads_embeds_and_finds_as_torch(page, run):
    loaded, captions = load_run(run, "best", torch.device("cpu")), read_queries(run)["captions"]
    tower, tokens = f"towerOf({json.dumps(run)})", loaded.config.max_tokens
    texts = TEXTS + captions
    ids_ML, length_M = loaded.tokenizer.encode(texts, tokens)
    expected = [ids[:length].tolist() for ids, length in zip(ids_ML, length_M)]
    assert asked(page, "(text) => tokenIds(tower, text)", tower, texts) == expected
    assert_embeds(page, tower, loaded.model, loaded.tokenizer, texts, tokens)
    top_MK = read_arrays(run, "neighbours")["t2i_top"]
    found_MK = asked(
        page, "(text) => nearestImages(tower, text, 10).map(({ item }) => item)", tower, captions
    )
    assert np.mean(np.array(found_MK)[:, 0] == top_MK[:, 0]) >= 0.97
    assert page.evaluate(f"{tower}.bits") == 16


@pytest.mark.parametrize("memory", ["none", "cosine", "published"])
@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        ("words", {}), ("gru", {}), ("transformer", {}),
        ("transformer", {"padding_mask": False, "num_layers": 2, "num_heads": 4}),
    ],
)  # fmt: skip
def test_every_encoder_with_every_memory_embeds_as_torch_from_8_bits(
    page, encoder, changes, memory, monkeypatch
):
    monkeypatch.setattr("mmlib.training.embed.FINE_BYTES", 0)
    config = config_of("untrained", encoder, "word", memory, **changes)
    captions = ["a red circle above a blue star", "two big dogs, one small cat"]
    tokenizer = build_tokenizer("word", captions)
    model = randomise(build_model(config, tokenizer.size))
    if memory == "cosine":
        torch.nn.init.constant_(model.central_memory.gain, 0.5)
    arrays = page_tower(model, tokenizer, config.max_tokens, torch.randn(3, config.latent_dim))
    packed = json.loads(arrays["tower"].tobytes())
    assert packed["bits"] == 8
    weights = arrays["tower_weights"].tobytes().hex()
    page.evaluate(
        f"globalThis.bytes = '{weights}'.match(/../g).map((h) => String.fromCharCode(parseInt(h, 16)))"
    )
    tower = f"unpackTower({{...{json.dumps(packed)}, weights: btoa(bytes.join(''))}})"
    assert_embeds(page, tower, model, tokenizer, [*captions, "a star " * 30, "dog", ""], config.max_tokens)


def test_weights_are_unpacked_at_the_first_text_that_needs_them(page):
    page.open(page.evaluate("location.href.split('#')[0]") + "#q=3")
    assert page.evaluate("towers.size") == 0
    page.evaluate("go({ s: 'zeppelin', q: 'typed' })")
    assert page.evaluate("[...towers.keys()]") == ["reference"]


def test_a_pretrained_or_too_large_tower_is_left_out(tmp_path, monkeypatch):
    add_clip(tmp_path, "tiny-text", CLIP)
    given = TINY | {"text_encoder": "open_clip:tiny-text", "tokenizer": "encoder", "text_weights": "none"}
    given = {k: v for k, v in given.items() if k not in ("padding_mask",)}
    model = build_model(build(TrainConfig, given | {"max_tokens": 8}), 50)
    tokenizer = build_tokenizer("word", ["a dog"])
    assert page_tower(model, tokenizer, 8, torch.randn(3, 16)) == {}
    own = build_model(config_of("own", "words", "word", "none"), tokenizer.size)
    assert len(page_tower(own, tokenizer, 8, torch.randn(3, 16))) == 2
    for most in ("FINE_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(f"mmlib.training.embed.{most}", 100)
    assert page_tower(own, tokenizer, 8, torch.randn(3, 16)) == {}


def test_no_tower_is_kept_of_a_memory_that_is_written_while_it_is_read(page):
    run = config_of("writes", "words", "word", "published", memory_write=True, epochs=1)
    train(run, quiet)
    tiny_evaluate("writes")
    assert "tower" not in read_arrays("writes", "neighbours")
    assert load_dataset(run).redistributable


def test_the_demos_page_finds_for_its_captions_typed_what_its_exact_lists_have(page):
    address = page.evaluate("location.href")
    page.open(f"file://{files.PUBLISHED / 'demo' / 'explore.html'}")
    assert len((files.PUBLISHED / "demo" / "explore.html").read_bytes()) < 2.5e6
    for run in ("demo-train", "demo-continue"):
        tower, exact_M = f"towerOf('{run}')", page.evaluate(f"run('{run}').t2i.top.map((row) => row[0])")
        first = "(text) => nearestImages(tower, text, 1)[0].item"
        found_M = page.evaluate(f"(() => {{ const tower = {tower}; return data.captions.map({first}); }})()")
        assert len(found_M) == 1250
        assert np.mean(np.array(found_M) == exact_M) >= 0.95
    page.open(address)
