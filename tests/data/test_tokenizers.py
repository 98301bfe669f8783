"""Tokenizers: the interface, the reference's one shared index (REFERENCE §3.9) and closed vocabularies."""

import json
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from mmlib.config import ParameterError
from mmlib.data import build_tokenizer, restore_tokenizer
from mmlib.data.shapes import load_shapes
from mmlib.data.tokenizers.learned import ClosedTokenizer, split_text

CAPTIONS = ["A dog's ball .", "a dog, a dog", "Ünïted 北京 cafés_2!", ""]
KINDS = ["char", "char-reference", "word"]


def ids_of(tokenizer, caption, max_tokens=40):
    tokens_BL, length_B = tokenizer.encode([caption], max_tokens)
    return tokens_BL[0, : length_B[0]].tolist()


# --- the reference's


def test_the_references_vocabulary_is_its_33_characters_and_0():
    tokenizer = build_tokenizer("char-reference", CAPTIONS)
    assert tokenizer.size == 34
    assert "".join(tokenizer.vocabulary[1:]) == " abcdefghijklmnopqrstuvwxyz.,!?'-"
    assert len(tokenizer.vocabulary[1:]) == 33
    assert tokenizer.vocabulary == build_tokenizer("char-reference", ["other captions"]).vocabulary
    assert ids_of(tokenizer, "Az -") == [2, 27, 1, 33]


def test_in_the_references_digits_and_unknown_share_the_index_of_padding():
    tokenizer = build_tokenizer("char-reference", CAPTIONS)
    tokens_BL, length_B = tokenizer.encode(["a1é", "a"], 4)
    assert tokens_BL.tolist() == [[2, 0, 0, 0], [2, 0, 0, 0]]  # two captions that it cannot tell apart
    assert length_B.tolist() == [3, 1]
    assert tokenizer.decode(tokens_BL[0]) == "a"


# --- the honest ones


@pytest.mark.parametrize("kind", ["char", "word"])
def test_padding_unknown_and_digits_have_indices_of_their_own(kind):
    tokenizer = build_tokenizer(kind, ["a 1"])
    assert tokenizer.vocabulary[:2] == ("<pad>", "<unk>")
    a, digit, unknown = (ids_of(tokenizer, text)[0] for text in ("a", "1", "?"))
    assert unknown == 1
    assert len({a, digit, 0, 1}) == 4
    tokens_BL, length_B = tokenizer.encode(["a"], 3)
    assert tokens_BL.tolist() == [[a, 0, 0]]
    assert length_B.tolist() == [1]


def test_characters_are_those_of_the_training_captions_in_their_own_order():
    assert build_tokenizer("char", ["ba", "É a"]).vocabulary == ("<pad>", "<unk>", " ", "a", "b", "é")
    assert build_tokenizer("char", ["a É", "ab"]).vocabulary == ("<pad>", "<unk>", " ", "a", "b", "é")


def test_words_are_those_of_the_training_captions_most_frequent_first():
    tokenizer = build_tokenizer("word", CAPTIONS)
    assert tokenizer.vocabulary == (
        "<pad>", "<unk>", "a", "dog",
        "!", "'", ",", ".", "2", "_", "ball", "cafés", "s", "ünïted", "北京",
    )  # fmt: skip


def test_rare_words_are_unknown():
    tokenizer = build_tokenizer("word", ["a dog", "a cat", "a dog"], min_count=2)
    assert tokenizer.vocabulary == ("<pad>", "<unk>", "a", "dog")
    assert ids_of(tokenizer, "a cat") == [2, 1]
    assert tokenizer.decode([2, 1, 0]) == "a <unk>"


def test_the_vocabulary_comes_from_the_training_captions_alone():
    dataset = load_shapes(0, 2, 30, 30, 16)
    train = build_tokenizer("word", dataset.splits["train"].captions)
    everywhere = {
        token
        for split in dataset.splits.values()
        for c in split.captions
        for token in split_text(train.kind, c)
    }
    assert set(train.vocabulary) - {"<pad>", "<unk>"} < everywhere


def test_the_words_for_padding_and_unknown_in_a_caption_are_text_like_any_other():
    for kind in ("char", "word"):
        tokenizer = build_tokenizer(kind, ["<pad> <unk>"])
        assert 0 not in ids_of(tokenizer, "<pad>")
        assert 1 not in ids_of(tokenizer, "<unk>")


# --- all of them


@pytest.mark.parametrize("caption", CAPTIONS)
def test_characters_come_back_up_to_case(caption):
    tokenizer = build_tokenizer("char", CAPTIONS)
    assert tokenizer.decode(tokenizer.encode([caption], 40)[0][0]) == caption.lower()


def test_words_come_back_with_a_space_between():
    tokenizer = build_tokenizer("word", CAPTIONS)
    assert tokenizer.decode(tokenizer.encode(["A dog's  BALL."], 9)[0][0]) == "a dog ' s ball ."


@pytest.mark.parametrize("kind", KINDS)
def test_longer_captions_are_cut_and_empty_ones_are_all_padding(kind):
    tokenizer = build_tokenizer(kind, ["a a a a a"])
    tokens_BL, length_B = tokenizer.encode(["a a a a a", "", "a"], 3)
    assert (tokens_BL.dtype, length_B.dtype, tokens_BL.shape) == (np.int64, np.int64, (3, 3))
    assert length_B.tolist() == [3, 0, 1]
    assert tokens_BL[1].tolist() == [0, 0, 0]
    assert (tokens_BL[0] > 0).all()
    assert tokenizer.encode([], 3)[0].shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_comes_back_from_json(kind):
    tokenizer = build_tokenizer(kind, CAPTIONS)
    restored = restore_tokenizer(json.loads(json.dumps(tokenizer.state)))
    assert (restored.kind, restored.vocabulary, restored.size) == (kind, tokenizer.vocabulary, tokenizer.size)
    assert restored.fingerprint == tokenizer.fingerprint
    unseen = [*CAPTIONS, "zebra 7 ?"]
    for there, here in zip(restored.encode(unseen, 12), tokenizer.encode(unseen, 12)):
        assert np.array_equal(there, here)


def test_a_fingerprint_tells_tokenizers_apart():
    made = [
        *(build_tokenizer(kind, CAPTIONS) for kind in KINDS),
        build_tokenizer("char", CAPTIONS[:1]),
        ClosedTokenizer(
            "word", build_tokenizer("char", CAPTIONS).vocabulary
        ),  # same vocabulary, another rule
        ClosedTokenizer("char", build_tokenizer("char", CAPTIONS).vocabulary[::-1]),
    ]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)
    assert all(len(t.fingerprint) == 16 and int(t.fingerprint, 16) >= 0 for t in made)


@pytest.mark.parametrize(
    ("kind", "vocabulary", "fingerprint"),
    [
        ("char", ["<pad>", "<unk>", " ", "a", "é"], "d8f8188a8d2643dc"),
        ("char-reference", ["<pad>", *" abcdefghijklmnopqrstuvwxyz.,!?'-"], "a6836cce1df77d11"),
        ("word", ["<pad>", "<unk>", "dog"], "47ba1052323d3772"),
    ],
)
def test_states_of_earlier_runs_load_with_the_fingerprint_that_they_had(kind, vocabulary, fingerprint):
    restored = restore_tokenizer({"kind": kind, "vocabulary": vocabulary})
    assert restored.fingerprint == fingerprint
    assert restored.vocabulary == tuple(vocabulary)


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.lists(strategies.text(), max_size=4), strategies.integers(1, 20))
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_encodes_to_known_ids(kind, captions, max_tokens):
    tokenizer = build_tokenizer(kind, CAPTIONS)
    tokens_BL, length_B = tokenizer.encode(captions, max_tokens)
    assert tokens_BL.shape == (len(captions), max_tokens)
    assert ((tokens_BL >= 0) & (tokens_BL < tokenizer.size)).all()
    for b, caption in enumerate(captions):
        assert length_B[b] == min(len(split_text(kind, caption)), max_tokens)
        assert not tokens_BL[b, length_B[b] :].any()
        tokenizer.decode(tokens_BL[b])


def test_batches_of_more_than_a_chunk_keep_their_order(monkeypatch):
    monkeypatch.setattr("mmlib.data.tokenizers.learned.CHUNK", 2)
    tokenizer = build_tokenizer("char", ["abcde"])
    tokens_BL, length_B = tokenizer.encode(["a", "bb", "c", "dd", "e"], 2)
    assert [tokenizer.decode(row) for row in tokens_BL] == ["a", "bb", "c", "dd", "e"]
    assert length_B.tolist() == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("kind", ["words", None])
def test_an_unknown_kind_is_refused(kind):
    said = f"expected one of char, char-reference, word, bpe, clip, encoder, found {kind!r}"
    with pytest.raises(ParameterError, match=f"^tokenizer: {re.escape(said)}$"):
        build_tokenizer(kind, CAPTIONS)
    with pytest.raises(ValueError, match=f"^tokenizer state: {re.escape(said)}$"):
        restore_tokenizer({"kind": kind, "vocabulary": []})


@pytest.mark.parametrize(
    ("kind", "part"), [("word", "vocabulary"), ("bpe", "tokenizer"), ("encoder", "tokenizer")]
)
def test_an_incomplete_state_is_refused(kind, part):
    with pytest.raises(ValueError, match=f"a tokenizer state of kind '{kind}' with '{part}', found none;"):
        restore_tokenizer({"kind": kind})
