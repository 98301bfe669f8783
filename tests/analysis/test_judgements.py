"""Judgement files are found beside the data, and caption ids are given their texts."""

import numpy as np
import pytest

from mmlib.analysis.people import captions_by_id, find_judgements
from mmlib.data import Dataset, Split


def test_files_are_found_in_the_root_or_a_folder_of_it(tmp_path):
    assert find_judgements(tmp_path) is None
    (tmp_path / "Flickr8k_text").mkdir()
    expert = tmp_path / "Flickr8k_text" / "ExpertAnnotations.txt"
    expert.write_text("a.jpg\tb.jpg#0\t1\t1\t1\n")
    found = find_judgements(tmp_path)
    assert (found.expert, found.crowdflower, found.tokens) == (expert.resolve(), None, None)
    tokens = tmp_path / "Flickr8k.token.txt"
    tokens.write_text("a.jpg#0\tA dog\n")
    assert find_judgements(tmp_path).tokens == tokens.resolve()


def test_two_different_copies_are_refused(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text("a\n")
    (tmp_path / "text" / "CrowdFlowerAnnotations.txt").write_text("b\n")
    with pytest.raises(ValueError, match=r"expected one CrowdFlowerAnnotations\.txt, found .* different"):
        find_judgements(tmp_path)


def test_the_token_file_gives_the_texts_of_caption_ids(tmp_path):
    (tmp_path / "token.txt").write_text(
        "a.jpg#0\tA dog runs .\nb.jpg#2\tA cat\na.jpg#1\tA dog \nc.jpg.1#0\ttab\there\n"
    )
    assert captions_by_id(tmp_path / "token.txt", None) == {
        "a.jpg#0": "A dog runs .", "a.jpg#1": "A dog", "b.jpg#2": "A cat", "c.jpg.1#0": "tab\there",
    }  # fmt: skip
    (tmp_path / "token.txt").write_text("a.jpg#0 A dog\n")
    with pytest.raises(ValueError, match=r"token\.txt, line 1: expected 'name.jpg#0<TAB>caption', found"):
        captions_by_id(tmp_path / "token.txt", None)


def test_order_gives_the_numbers_where_no_file_has_them():
    train = Split("train", ("a.jpg",), ("A dog .", " A cat "), np.array([0, 0]))
    test = Split("test", ("b.jpg", "c.jpg"), ("one", "two", "three"), np.array([0, 1, 0]))
    dataset = Dataset("flickr8k", {"train": train, "test": test}, None, "0" * 16)
    assert captions_by_id(None, dataset) == {
        "a.jpg#0": "A dog .", "a.jpg#1": "A cat", "b.jpg#0": "one", "c.jpg#0": "two", "b.jpg#1": "three",
    }  # fmt: skip
