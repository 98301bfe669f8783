"""`mmlib evaluate` of files: the numbers of a plain loop, a verdict, and an error for all that is wrong."""

import html
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmlib import cli
from mmlib.metrics import RetrievalRanks, compare_runs
from mmlib.metrics.compare import holm
from mmlib.metrics.protocols import PROTOCOLS, Protocol

IMAGES, PER_IMAGE, WIDTH = 40, 5, 16
COMMAND = ["evaluate", "--images", "images.npy", "--texts", "texts.npy", "--image-of-text", "map.npy"]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Image, caption and map files of a model, and captions of a better and a much worse one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image_ND = rng.standard_normal((IMAGES, WIDTH))
    map_M = rng.permutation(np.repeat(np.arange(IMAGES), PER_IMAGE))
    noise_MD = rng.standard_normal((len(map_M), WIDTH))
    np.save("images.npy", image_ND.astype(np.float16))
    np.save("map.npy", map_M)
    for name, strength in (("texts", 1.5), ("better", 0.9), ("similar", 1.49)):
        np.save(f"{name}.npy", (image_ND[map_M] + strength * noise_MD).astype(np.float32))
    return tmp_path


def evaluate(*words, **replaced):
    command = [replaced.get(word.removesuffix(".npy"), word) for word in COMMAND]
    return cli.main([*command, *words])


def best_ranks(query_QD, gallery_GD, right):
    """By definition: 1 + items that score at least as much as the best right one and are not right."""
    ranks = []
    for q, query_D in enumerate(query_QD):
        cosine_G = gallery_GD @ query_D / np.linalg.norm(gallery_GD, axis=1)
        is_right_G = np.array([right(q, g) for g in range(len(gallery_GD))])
        ranks.append(1 + (cosine_G[~is_right_G] >= cosine_G[is_right_G].max()).sum())
    return np.array(ranks)


def test_the_numbers_are_those_of_a_loop(capsys, files):
    words = ["--data", "made up, test split", "--out", "new/result.json", "--ranks", "new/ranks.npz"]
    assert evaluate(*words) == 0
    image_ND, text_MD, map_M = (np.load(f"{name}.npy").astype(float) for name in ("images", "texts", "map"))
    expected = {
        "i2t": best_ranks(image_ND, text_MD, lambda image, text: map_M[text] == image),
        "t2i": best_ranks(text_MD, image_ND, lambda text, image: map_M[text] == image),
    }
    ranks = RetrievalRanks.load("new/ranks.npz")
    result = json.loads((files / "new/result.json").read_text())
    assert result["data"] == "made up, test split"
    assert result["files"] == {"images": "images.npy", "texts": "texts.npy", "image_of_text": "map.npy"}
    assert result["comparison"] is None
    said = capsys.readouterr()
    assert said.err == ""
    for direction, rank_Q in expected.items():
        assert np.array_equal(ranks.of(direction), rank_Q)
        for k in (1, 5, 10):
            part = result["summary"][direction][f"r{k}"]
            hits = int((rank_Q <= k).sum())
            assert (part["hits"], result["summary"][direction]["n"]) == (hits, len(rank_Q))
            assert part["low"] < part["value"] == hits / len(rank_Q) <= part["high"]
            assert f"({100 * part['low']:.2f}–{100 * part['high']:.2f}) {hits}/{len(rank_Q)}" in said.out
    assert "made up, test split · protocol standard · 40 image and 200 caption queries" in said.out


def test_every_format_prints_the_same(capsys):
    assert evaluate() == 0
    expected = capsys.readouterr().out
    assert "data not named · protocol standard" in expected
    image, text, map_M = np.load("images.npy"), np.load("texts.npy"), np.load("map.npy")
    np.savez("all.npz", images=image, texts=text, map=map_M)
    save_file(
        {n: torch.from_numpy(a) for n, a in (("i", image), ("t", text), ("m", map_M))}, "all.safetensors"
    )
    assert evaluate(images="all.npz:images", texts="all.npz:texts", map="all.npz:map") == 0
    assert capsys.readouterr().out == expected
    archive = "all.safetensors"
    assert evaluate(images=f"{archive}:i", texts=f"{archive}:t", map=f"{archive}:m") == 0
    assert capsys.readouterr().out == expected


def test_a_protocol_is_taken_by_name(capsys):
    assert evaluate("--protocol", "paired") == 0
    said = capsys.readouterr().out
    assert "protocol paired · 200 image and 200 caption queries" in said
    assert "a perfect model reaches 20.0 % image → text R@1" in said


def test_the_verdict_is_that_of_compare_runs(capsys, files):
    assert evaluate("--ranks", "a.npz") == 0
    assert evaluate("--ranks", "b.npz", "--compare", "a.npz", "--out", "b.json", texts="better.npy") == 0
    expected = compare_runs(RetrievalRanks.load("a.npz"), RetrievalRanks.load("b.npz"))
    assert expected["verdict"].startswith("better by ")
    said = capsys.readouterr().out
    assert f"against a.npz: {expected['verdict']}\n" in said
    assert "that images and captions are the same, files of ranks do not show" in said
    assert json.loads((files / "b.json").read_text())["comparison"] == expected
    assert evaluate("--compare", "a.npz", texts="similar.npy") == 0
    assert "against a.npz: no evidence of a difference (R@1 i2t " in capsys.readouterr().out
    assert evaluate("--compare", "b.npz") == 0
    assert "against b.npz: worse by " in capsys.readouterr().out


def test_several_are_compared_and_corrected_together_and_a_page_shows_it(capsys, files):
    for name in ("texts", "similar"):
        assert evaluate("--ranks", f"{name}.npz", texts=f"{name}.npy") == 0
    capsys.readouterr()
    words = ["--compare", "texts.npz", "similar.npz", "--out", "b.json", "--html", "page.html"]
    assert evaluate(*words, "--data", "<b>mine</b>, test", texts="better.npy") == 0
    said, page = capsys.readouterr().out, (files / "page.html").read_text()
    result = json.loads((files / "b.json").read_text())
    alone = [compare_runs(RetrievalRanks.load(f"{n}.npz"), result_ranks()) for n in ("texts", "similar")]
    expected = holm([comparison["metrics"]["mean_r1"]["p"] for comparison in alone])
    assert [found["p_holm"] for found in result["comparisons"].values()] == list(expected)
    assert result["comparison"] is None
    assert "corrected over 2 comparisons by Holm" in said
    assert "files of ranks do not show" in page
    assert "<b>mine" not in page
    assert "&lt;b&gt;mine&lt;/b&gt;, test" in page
    for name, found in result["comparisons"].items():
        assert f"Against {name}: better by " in page
        assert found["better"] == "this"
    assert f"{result['summary']['i2t']['r1']['hits']:,}/40" in page


def test_one_file_twice_is_refused_before_the_work(capsys):
    assert evaluate("--ranks", "a.npz") == 0
    capsys.readouterr()
    assert evaluate("--compare", "a.npz", "./a.npz", "--out", "x.json") == 2
    assert "--compare: expected each file and run once, found a.npz and ./a.npz" in capsys.readouterr().err
    assert not os.path.exists("x.json")


def test_a_page_shows_folds_and_hostile_names_as_text(capsys, files, monkeypatch):
    folds = Protocol("in_folds", "Two folds.", images=20, folds=2)
    monkeypatch.setitem(PROTOCOLS, "in_folds", folds)
    hostile = "<b>\x1b[31m \u202e x & 'y'"
    assert evaluate("--protocol", "in_folds", "--html", "page.html", "--data", hostile) == 0
    said, page = capsys.readouterr().out, (files / "page.html").read_text()
    for text in (said, html.unescape(page)):
        assert "mean over 2 folds" in text
        assert r"<b>\x1b[31m \u202e x & 'y' · protocol in_folds · 40 image and 200 caption queries" in text
        assert "\x1b" not in text
        assert " split ·" not in text
    assert "<b>" not in page
    assert evaluate("--protocol", "in_folds", "--ranks", "x.npz") == 2
    assert "ranks in folds, which have no file of ranks" in capsys.readouterr().err
    assert evaluate("--ranks", f"{hostile}.npz") == 0
    assert evaluate("--compare", f"{hostile}.npz", "--html", "page.html") == 0
    said, page = capsys.readouterr().out, html.unescape((files / "page.html").read_text())
    assert r"against <b>\x1b[31m \u202e x & 'y'.npz: no evidence" in said
    assert r"Against <b>\x1b[31m \u202e x & 'y'.npz: no evidence" in page
    assert "\x1b" not in said + page


def result_ranks():
    assert evaluate("--ranks", "mine.npz", texts="better.npy") == 0
    return RetrievalRanks.load("mine.npz")


@pytest.mark.parametrize(
    ("page", "said"),
    [("no/page.html", "found no folder no; make it"), (".", "expected the name of a file")],
)
def test_a_page_that_cannot_be_written_is_said_before_the_work(page, said, capsys):
    assert evaluate("--html", page, "--out", "x.json") == 2
    assert said in capsys.readouterr().err
    assert not os.path.exists("x.json")


# --- wrong commands


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate"], "found neither"),
        (["evaluate", "--out", "x.json"], "found neither"),
        (["evaluate", "-p", "split", "val"], "found neither"),
        (["evaluate", "a.yaml", *COMMAND[1:]], "found both"),
        (["evaluate", "a.yaml", "--compare", "x.npz"], "found both"),
        (["evaluate", "a.yaml", "--protocol", "paired"], "found both"),
        (COMMAND[:5], "found no --image-of-text; correct the command"),
        (COMMAND[:3], "found no --texts, --image-of-text"),
        ([*COMMAND, "-p", "split", "val"], "found -p, which is for parameter files"),
        (
            [*COMMAND, "--compare", "no.npz"],
            "expected ranks to compare with in no.npz, found no such file",
        ),
        ([*COMMAND, "--protocol", "best"], "protocol: expected one of standard, paired,"),
        ([*COMMAND, "--protocol", "flickr30k_1k"], "expected standard ranks of 1,000 images, found"),
    ],
)
def test_a_wrong_command_ends_with_2(capsys, words, said):
    assert cli.main(words) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: expected ") or "protocol" in found.err
    assert said in found.err
    assert found.out == ""


# --- wrong files


def bad_arrays():
    image, text, map_M = (np.load(f"{name}.npy") for name in ("images", "texts", "map"))
    nan, zero = text.copy(), image.copy()
    nan[[3, 5], 0] = np.nan, np.inf
    zero[7] = 0
    return {
        "beyond": np.where(map_M == 39, 40, map_M),
        "negative": map_M - 1,
        "silent": np.where(map_M == 7, 8, map_M),
        "short": map_M[:-1],
        "float-map": map_M.astype(float),
        "nan": nan,
        "zero": zero,
        "narrow": text[:, :-1],
        "flat": image[0],
        "deep": text[None],
        "none": image[:0],
        "whole-numbers": (10 * text).astype(np.int32),
        "objects": np.array([{"a": 1}], dtype=object),
    }


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"map": "beyond.npy"}, "image_of_text_M: expected image indices in 0..39, found 0..40"),
        ({"map": "negative.npy"}, "image_of_text_M: expected image indices in 0..39, found -1..38"),
        (
            {"map": "silent.npy"},
            "expected a caption for every image, found 1 of 40 images without one (first: [7])",
        ),
        ({"map": "short.npy"}, "image_of_text_M: expected 200 integers"),
        ({"map": "float-map.npy"}, "image_of_text_M: expected 200 integers"),
        (
            {"texts": "nan.npy"},
            "text_MD: expected finite, non-zero rows, found 2 of 200 rows NaN",
        ),
        (
            {"images": "zero.npy"},
            "image_ND: expected finite, non-zero rows, found 1 of 40 rows NaN, infinite or zero (first: [7])",
        ),
        ({"texts": "narrow.npy"}, "expected one embedding width, found 16 and 15"),
        ({"images": "flat.npy"}, "found shape (16,); pass one embedding per row"),
        ({"texts": "deep.npy"}, "found shape (1, 200, 16); pass one embedding per row"),
        ({"images": "none.npy"}, "image_ND: expected a matrix (rows, width) with at least one row"),
        ({"texts": "whole-numbers.npy"}, "text_MD: expected a floating-point dtype, found int32"),
        ({"texts": "objects.npy"}, "objects.npy: expected plain arrays"),
        ({"texts": "pickled.npy"}, "pickled objects, which are never loaded"),
        ({"texts": "missing.npy"}, "expected an array file missing.npy, found none"),
        ({"texts": "texts.pt"}, "texts.pt: expected a file that ends in .npy, .npz, .safetensors"),
        ({"texts": "all.npz:other"}, "all.npz: expected an array 'other', found texts"),
    ],
)
def test_a_wrong_file_ends_with_2_and_nothing_is_written(capsys, files, replaced, said):
    for name, array in bad_arrays().items():
        np.save(f"{name}.npy", array, allow_pickle=True)
    np.savez("all.npz", texts=np.load("texts.npy"))
    (files / "pickled.npy").write_bytes(pickle.dumps([1]))
    assert evaluate("--out", "new/x.json", "--ranks", "new/x.npz", **replaced) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: ")
    assert said in found.err
    assert next(iter(replaced.values())).split(":")[0] in found.err
    assert found.out == ""
    assert not (files / "new").exists()


@pytest.mark.parametrize(
    ("words", "replaced", "said"),
    [
        (
            [],
            {"texts": "less.npz:t", "map": "less.npz:m"},
            "not comparable: i2t gallery differs (200 vs 199)",
        ),
        ([], {"map": "other.npy"}, "not comparable: captions belong to different images"),
        (["--protocol", "paired"], {}, "not comparable: ranking differs (standard vs paired)"),
    ],
)
def test_ranks_of_other_queries_are_not_compared(capsys, words, replaced, said):
    assert evaluate("--ranks", "a.npz") == 0
    capsys.readouterr()
    map_M = np.load("map.npy")
    np.savez("less.npz", t=np.load("texts.npy")[:-1], m=map_M[:-1])
    np.save("other.npy", map_M[::-1])
    assert evaluate("--compare", "a.npz", *words, **replaced) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: a.npz: ")
    assert said in found.err
    assert found.out == ""


def test_what_is_no_file_of_ranks_is_not_compared(capsys):
    np.savez("other.npz", a=np.zeros(3))
    assert evaluate("--compare", "other.npz") == 2
    assert "other.npz: expected a ranks file" in capsys.readouterr().err


def test_folds_have_no_ranks_to_write(capsys, files):
    rng = np.random.default_rng(0)
    np.save("images.npy", rng.standard_normal((5000, 2), dtype=np.float32))
    np.save("map.npy", np.arange(5000))
    words = ["--protocol", "coco_1k_folds", "--ranks", "x.npz"]
    assert evaluate(*words, texts="images.npy") == 2
    assert "'coco_1k_folds' ranks in folds, which have no file of ranks" in capsys.readouterr().err
    assert not (files / "x.npz").exists()


@pytest.mark.parametrize("option", ["--out", "--ranks"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_only_a_file_is_replaced_by_results(option, kind, capsys, files):
    """A device, as /dev/null or /dev/stdout, would be gone for all programs."""
    place = files / "place"
    make = {"folder": place.mkdir, "pipe": lambda: os.mkfifo(place), "link": lambda: place.symlink_to("x")}
    make[kind]()
    before = place.lstat()
    assert evaluate(option, str(place)) == 2
    assert f"error: {option} {place}: expected the name of a file" in capsys.readouterr().err
    assert (place.lstat().st_ino, place.lstat().st_mode) == (before.st_ino, before.st_mode)
