"""Byte-level BPE: lossless for any text, the same tokens wherever they are learned."""

import json
import os
import pickle
import random
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from mmlib.data import build_tokenizer, restore_tokenizer

CAPTIONS = [
    "A dog runs on the grass .",
    "Two dogs run on the green grass .",
    "The dog's ball is on the grass .",
    "A child runs with a dog .",
    "Un café à 北京 \U0001f415\n",
] * 3
LONG = 400


@pytest.fixture(scope="module")
def bpe():
    return build_tokenizer("bpe", CAPTIONS, bpe_vocabulary=300)


def round_trip(tokenizer, text):
    tokens_BL, length_B = tokenizer.encode([text], LONG)
    assert length_B[0] <= LONG
    return tokenizer.decode(tokens_BL[0])


def test_the_vocabulary_has_the_size_asked_for(bpe):
    assert (bpe.kind, bpe.size, bpe.padding_id) == ("bpe", 300, 0)
    tokens_BL, _ = bpe.encode(CAPTIONS, LONG)
    assert tokens_BL.max() < 300


def test_frequent_words_are_one_token_and_rare_ones_several(bpe):
    _, length_B = bpe.encode([" dog", " zebra"], LONG)
    assert length_B[0] == 1
    assert length_B[1] > 2


def test_few_captions_make_a_smaller_vocabulary():
    assert build_tokenizer("bpe", ["ab ab", "cd"], bpe_vocabulary=5000).size == 258  # "ab" occurs twice
    assert build_tokenizer("bpe", [], bpe_vocabulary=5000).size == 257


@pytest.mark.parametrize(
    "text", [*CAPTIONS[:5], "", " ", "a  b\n\n\tc ", "<pad>", "<unk> <pad>", "\x00", "ÅÅ", "\u2028"]
)
def test_text_comes_back_bit_for_bit(bpe, text):
    assert round_trip(bpe, text) == text


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.text(max_size=90))
def test_any_text_comes_back_bit_for_bit(bpe, text):
    assert round_trip(bpe, text) == text


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.text(), strategies.integers(1, 12))
def test_cut_captions_are_the_first_tokens_of_the_whole(bpe, text, max_tokens):
    whole, _ = bpe.encode([text], 4 * len(text) + 1)
    tokens_BL, length_B = bpe.encode([text], max_tokens)
    n = length_B[0]
    assert n == min(np.count_nonzero(whole), max_tokens)
    assert tokens_BL[0, :n].tolist() == whole[0, :n].tolist()
    assert (tokens_BL[0, :n] > 0).all()
    assert not tokens_BL[0, n:].any()


def test_halves_of_a_character_do_no_harm(bpe):
    assert round_trip(bpe, "a\ud83d\udc15") == "a\U0001f415"
    assert round_trip(bpe, "a\ud83d b") == "a\ufffd b"
    assert build_tokenizer("bpe", ["a\ud83d"], bpe_vocabulary=257).size == 257


def test_a_caption_that_spells_padding_cannot_take_its_id():
    tokenizer = build_tokenizer("bpe", ["<pad>", " <pad>"] * 9, bpe_vocabulary=300)
    tokens_BL, length_B = tokenizer.encode(["<pad>"], 8)
    assert length_B[0] == np.count_nonzero(tokens_BL) > 0
    assert tokenizer.decode(tokens_BL[0]) == "<pad>"


def test_it_comes_back_from_json(bpe):
    restored = restore_tokenizer(json.loads(json.dumps(bpe.state)))
    assert (restored.kind, restored.size, restored.fingerprint) == ("bpe", bpe.size, bpe.fingerprint)
    assert restored.state == bpe.state
    assert pickle.loads(pickle.dumps(bpe)).fingerprint == bpe.fingerprint
    unseen = [*CAPTIONS, "zebra 7 ?"]
    for there, here in zip(restored.encode(unseen, 12), bpe.encode(unseen, 12)):
        assert np.array_equal(there, here)


def test_equal_captions_make_equal_tokens_in_any_order_and_process(bpe):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert build_tokenizer("bpe", shuffled, bpe_vocabulary=300).state == bpe.state
    assert (
        build_tokenizer("bpe", [*CAPTIONS, "zebras " * 9], bpe_vocabulary=300).fingerprint != bpe.fingerprint
    )
    code = (
        "import json, sys; from mmlib.data import build_tokenizer;"
        "print(build_tokenizer('bpe', json.load(sys.stdin), bpe_vocabulary=300).fingerprint)"
    )
    threads = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "2"}
    said = subprocess.check_output(
        [sys.executable, "-c", code], input=json.dumps(shuffled), text=True, env=threads
    )
    assert said.strip() == bpe.fingerprint


@pytest.mark.parametrize("setting", [None, "true"])
def test_a_process_that_forks_is_not_warned_and_a_persons_setting_wins(setting):
    code = (
        "import os; from mmlib.data import build_tokenizer; CAPTIONS = ['a dog'] * 99;"
        "t = build_tokenizer('bpe', CAPTIONS, bpe_vocabulary=300);"
        "setting = os.environ['TOKENIZERS_PARALLELISM'];"
        "child = setting == 'true' or os.fork();"
        "os.write(1, f'{setting} {t.encode(CAPTIONS, 9)[1].sum()} '.encode());"
        "child is True or child and os.wait()"
    )
    env = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork beside other threads warns too
    env |= {"TOKENIZERS_PARALLELISM": setting} if setting else {}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == (["true", "198"] if setting else ["false", "198"] * 2)


def test_a_damaged_state_is_refused(bpe):
    with pytest.raises(ValueError, match="expected the JSON of a tokenizer"):
        restore_tokenizer({**bpe.state, "tokenizer": bpe.state["tokenizer"][:100]})
