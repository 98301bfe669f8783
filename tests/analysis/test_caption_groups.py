"""The rules that sort captions: length, nouns, people."""

import pytest

from mmlib.analysis.groups import PEOPLE, length_bins, object_words, people_mentioned


def test_length_bins_are_quartiles_named_by_their_range():
    captions = [" ".join(["w"] * n) + " ." for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    bin_M, names = length_bins(captions)
    assert bin_M.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert names == ["1–2 words", "3–4 words", "5–6 words", "7–8 words"]


def test_equal_lengths_share_one_bin():
    assert length_bins(["a dog .", "a cat !", "one, two"]) == (pytest.approx([0, 0, 0]), ["2 words"])


def test_object_words_are_nouns_most_frequent_first():
    captions = [
        "A black dog is running through the grass .",
        "the dog jumps over a ball.",
        "A dog and another dog in the grass",
        "A cat is on the building",
        "the black cat near two buildings, smiling.",
    ]
    found = object_words(captions, minimum=1)
    assert list(found) == ["dog", "cat", "grass", "ball", "building", "buildings"]
    assert found["dog"].tolist() == [True, True, True, False, False]
    assert list(object_words(captions, minimum=2)) == ["dog", "cat", "grass"]
    assert list(object_words(captions, minimum=1, limit=1)) == ["dog"]
    assert object_words(captions, minimum=9) == {}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two dogs play in the snow .", 0),
        ("A man in a red shirt", 1),
        ("A skier jumps .", 1),
        ("A man and a woman", 2),
        ("Two very young boys on a beach", 2),
        ("A couple sits on a bench", 2),
        ("A couple of kids", 2),
        ("A man and two girls", 3),
        ("Three people", 3),
        ("Children in a pool", 3),
        ("A crowd watches a boy", 3),
        ("Two men watch players", 3),
        ("A large red circle", 0),
    ],
)
def test_people_are_counted_as_documented(caption, expected):
    assert people_mentioned(caption) == expected
    assert len(PEOPLE) == 4
