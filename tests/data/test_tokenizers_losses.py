"""What a tokenizer loses is counted, and said in words where it is much."""

import random

import pytest

from mmlib.data import build_tokenizer
from mmlib.data.tokenizers import count_losses, loss_shares, losses_warning
from mmlib.data.tokenizers.learned import UNCUT


def chinese(count: int, seed: int) -> list[str]:
    """Captions as people write them: no spaces, and few said twice."""
    rng = random.Random(seed)
    parts = (
        "两只三个一名许多",
        "黑白棕红蓝黄小大",
        "狗猫马人鸟孩羊牛",
        "在正要想",
        "草海雪街屋山河路",
        "上旁里边",
        "跑跳走坐看睡玩吃",
    )
    return ["".join(rng.choice(part) for part in parts + parts[:4]) for _ in range(count)]


@pytest.mark.parametrize(
    ("kind", "unknown", "cut"),
    [
        ("word", (0.98, 1.0), 0),
        ("char-reference", (1.0, 1.0), 0),
        ("char", (0.0, 0.0), 0),
        ("bpe", (0.0, 0.0), 0),
    ],
)
def test_chinese_captions(kind, unknown, cut):
    train, val = chinese(600, 0), chinese(200, 1)
    tokenizer = build_tokenizer(kind, train, bpe_vocabulary=700)
    losses = count_losses(tokenizer, val, 24)
    share, cut_share = loss_shares(losses)
    assert unknown[0] <= share <= unknown[1]
    assert cut_share == cut
    warning = losses_warning(losses)
    if kind in ("word", "char-reference"):
        assert warning.startswith("Warning: ")
        assert f"are unknown to the tokenizer '{kind}'" in warning
        assert "take tokenizer: bpe, which knows every text" in warning
    else:
        assert warning == ""


def test_bpe_reads_chinese():
    """Bit for bit, in fewer tokens than bytes, and two captions are never one."""
    train, val = chinese(600, 0), chinese(200, 1)
    tokenizer = build_tokenizer("bpe", train, bpe_vocabulary=700)
    tokens_BL, length_B = tokenizer.encode(val, 40)
    assert [tokenizer.decode(row) for row in tokens_BL] == val
    assert length_B.mean() < sum(len(text.encode()) for text in val) / len(val) / 2
    assert len({tuple(row) for row in tokens_BL.tolist()}) == len(set(val))


def test_counts_are_those_of_the_tokens_by_hand():
    tokenizer = build_tokenizer("word", ["a dog runs ."])
    captions = ["A dog .", "a cat sleeps", "", "a dog runs and runs .", "\ud83d dog"]
    assert count_losses(tokenizer, captions, 4) == {
        "tokenizer": "word", "max_tokens": 4,
        "captions": 5, "tokens": 14, "unknown": 4, "cut": 1, "longest": 6,
    }  # fmt: skip
    assert loss_shares(count_losses(tokenizer, captions, 4)) == (4 / 14, 1 / 5)
    assert loss_shares(count_losses(tokenizer, [], 4)) == (0, 0)


def test_captions_that_are_cut_call_for_more_tokens():
    tokenizer = build_tokenizer("clip", [])
    losses = count_losses(tokenizer, ["a dog", "a dog runs over the green grass"], 5)
    assert (losses["tokens"], losses["cut"], losses["longest"], losses["unknown"]) == (13, 1, 9, 0)
    assert losses_warning(losses) == (
        "Warning: 50.0 % of the validation captions are cut at max_tokens 5: raise max_tokens (the longest"
        " has 9), as far as the text encoder can read."
    )


def test_little_is_no_warning():
    """One of twenty is the limit, and not much yet."""
    tokenizer = build_tokenizer("word", ["a"])
    assert losses_warning(count_losses(tokenizer, ["a"] * 19 + ["b"], 4)) == ""
    assert losses_warning(count_losses(tokenizer, ["a"] * 19 + ["a a"], 1)) == ""
    assert "unknown" in losses_warning(count_losses(tokenizer, ["a"] * 18 + ["b"], 4))
    assert "cut" in losses_warning(count_losses(tokenizer, ["a"] * 18 + ["a a"], 1))


def test_no_kind_cuts_what_is_counted():
    text = "dog " * 30_000
    for kind in ("word", "char", "bpe", "clip"):
        tokenizer = build_tokenizer(kind, ["dog"])
        losses = count_losses(tokenizer, [text], 10)
        assert losses["tokens"] == losses["longest"] == len(tokenizer.token_ids([text], UNCUT)[0]) >= 30_000
