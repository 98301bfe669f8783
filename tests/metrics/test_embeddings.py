"""Embeddings from files: every format gives the same numbers, and nothing in a file is executed."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmlib.metrics import (
    RetrievalRanks,
    bootstrap_intervals,
    paired_ranks,
    recall_at_k,
    retrieval_ranks,
    summarise,
)
from mmlib.metrics.embeddings import evaluate_embeddings, read_array, results_text
from mmlib.metrics.protocols import first_captions, fold_ranks
from mmlib.metrics.summary import summarise_folds
from mmlib.reporting.comparison import compared_with


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# --- reading


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_every_format_gives_the_array(folder, dtype):
    array = np.arange(12).reshape(4, 3).astype(dtype)
    np.save("a.npy", array)
    np.savez("one.npz", array)
    np.savez_compressed("two.npz", a=array, b=array + 1)
    save_file({"a": torch.from_numpy(array)}, "one.safetensors")
    save_file({"a": torch.from_numpy(array), "b:c": torch.from_numpy(array + 1)}, "two.safetensors")
    for place in (
        "a.npy",
        "one.npz",
        "two.npz:a",
        "one.safetensors",
        "two.safetensors:a",
        str(folder / "a.npy"),
    ):
        found = np.asarray(read_array(place))
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    for place in ("two.npz:b", "two.safetensors:b:c"):
        assert np.array_equal(read_array(place), array + 1)


def test_npy_is_memory_mapped_and_read_only(folder):
    np.save("a.npy", np.zeros((4, 3)))
    array = read_array("a.npy")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable


def test_bfloat16_comes_as_a_tensor(folder):
    expected = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_file({"a": expected}, "a.safetensors")
    as_ml_dtypes_saves_it = expected.view(torch.int16).numpy().view("V2")
    np.save("a.npy", as_ml_dtypes_saves_it)
    np.savez("a.npz", as_ml_dtypes_saves_it)
    for place in ("a.safetensors", "a.npy", "a.npz"):
        assert torch.equal(read_array(place), expected)


def test_a_file_may_have_a_colon_in_its_name(folder):
    np.save("x.npy:1.npy", np.arange(3))
    assert read_array("x.npy:1.npy").tolist() == [0, 1, 2]


def write_bad_files():
    with open("pickled.npy", "wb") as file:
        pickle.dump(Trap(), file)
    with open("pickled.npz", "wb") as file:
        pickle.dump(Trap(), file)
    with open("pickled.safetensors", "wb") as file:
        pickle.dump(Trap(), file)
    np.save("objects.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez("objects.npz", a=np.array([Trap()], dtype=object))
    np.save("cut.npy", np.zeros((100, 8)))
    np.savez("cut.npz", a=np.zeros((100, 8)))
    np.savez("damaged.npz", a=np.zeros((100, 8)))
    save_file({"a": torch.zeros(100, 8)}, "cut.safetensors")
    for suffix in ("npy", "npz", "safetensors"):
        os.truncate(f"cut.{suffix}", 300)
        open(f"empty.{suffix}", "wb").close()
    with open("damaged.npz", "r+b") as file:
        file.seek(1000)
        file.write(b"\xff")


@pytest.mark.parametrize(
    "place",
    [
        *(
            f"{what}.{suffix}"
            for what in ("pickled", "cut", "empty")
            for suffix in ("npy", "npz", "safetensors")
        ),
        "objects.npy",
        "objects.npz",
        "damaged.npz",
    ],
)
def test_what_holds_no_plain_array_is_refused_and_never_executed(folder, place):
    write_bad_files()
    with pytest.raises(ValueError, match=rf"^{place}: expected plain arrays.*pickled objects.*never loaded"):
        read_array(place)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("not.npy", FileNotFoundError, "expected an array file not.npy, found none"),
        ("not.npz:a", FileNotFoundError, "expected an array file not.npz, found none"),
        ("folder.npy", FileNotFoundError, "expected an array file folder.npy, found none"),
        ("a.pt", ValueError, "a.pt: expected a file that ends in .npy, .npz, .safetensors"),
        ("a.npy:a", ValueError, "a.npy:a: an .npy file holds one array without a name; leave out ':a'"),
        ("two.npz", ValueError, "two.npz: expected one array or the name of one, found a, b; name it as"),
        ("two.npz:c", ValueError, "two.npz: expected an array 'c', found a, b; name it as two.npz:NAME"),
        ("two.safetensors", ValueError, "expected one array or the name of one, found a, b"),
        ("two.safetensors:c", ValueError, "two.safetensors: expected an array 'c', found a, b"),
        ("none.npz", ValueError, "none.npz: expected one array or the name of one, found none; name it as"),
    ],
)
def test_a_place_that_is_none_is_refused(folder, place, error, said):
    np.save("a.npy", np.zeros(3))
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez("none.npz")
    save_file({"a": torch.zeros(3), "b": torch.zeros(3)}, "two.safetensors")
    (folder / "folder.npy").mkdir()
    with pytest.raises(error) as refused:
        read_array(place)
    assert said in str(refused.value)


# --- evaluating


def same_ranks(one: RetrievalRanks, other: RetrievalRanks) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize(("protocol", "function"), [("standard", retrieval_ranks), ("paired", paired_ranks)])
def test_ranks_and_summary_are_those_of_the_library(sample, protocol, function):
    embeddings = sample()
    ranks, summary = evaluate_embeddings(*embeddings, protocol=protocol)
    assert same_ranks(ranks, function(*embeddings))
    intervals = bootstrap_intervals(ranks)
    names = [
        "rsum",
        "mean_r1",
        *(f"{d}_{m}" for d in ("i2t", "t2i") for m in ("mean_rank", "mrr", "median_rank")),
    ]
    expected = {"width": 16, "intervals": {name: intervals[name] for name in names}}
    assert summary == summarise(ranks) | expected


def test_full_is_standard_by_another_name(sample):
    ranks, summary = evaluate_embeddings(*sample(), protocol="full")
    assert same_ranks(ranks, retrieval_ranks(*sample()))
    assert summary["protocol"] == "full"


def test_single_caption_keeps_the_first_of_each_image(sample):
    image_ND, text_MD, image_of_text_M = sample()
    first = [image_of_text_M.tolist().index(image) for image in range(len(image_ND))]
    expected = retrieval_ranks(image_ND, text_MD[first], np.arange(len(first)))
    ranks, summary = evaluate_embeddings(image_ND, text_MD, image_of_text_M, protocol="single_caption")
    assert first == first_captions(image_of_text_M).tolist()
    assert same_ranks(ranks, expected)
    assert (summary["protocol"], summary["i2t"]["gallery"]) == ("single_caption", 30)


def test_folds_have_a_summary_and_no_ranks():
    rng = np.random.default_rng(0)
    image_ND = rng.standard_normal((5000, 4), dtype=np.float32)
    text_MD = image_ND + rng.standard_normal((5000, 4), dtype=np.float32)
    ranks, summary = evaluate_embeddings(image_ND, text_MD, np.arange(5000), protocol="coco_1k_folds")
    folds = fold_ranks(image_ND, text_MD, np.arange(5000))
    assert ranks is None
    assert summary == summarise_folds(folds) | {"width": 4}
    text = results_text(summary, "made up")
    assert f"rsum {100 * summary['rsum']:.2f} %\n" in text
    assert "protocol coco_1k_folds · 5,000 image and 5,000 caption queries" in text
    with pytest.raises(ValueError, match="expected ranks to compare, found folds, which have none"):
        compared_with(["ranks.npz"], ranks, None)


def test_half_precision_is_scored_in_full(folder, sample):
    image_ND, text_MD, image_of_text_M = sample()
    for half in (np.float16, torch.bfloat16):
        if half is np.float16:
            image, text = image_ND.astype(half), text_MD.astype(half)
            wide = image.astype(np.float32), text.astype(np.float32)
        else:
            image, text = torch.from_numpy(image_ND).to(half), torch.from_numpy(text_MD).to(half)
            wide = image.float(), text.float()
        save_file({"i": torch.as_tensor(image), "t": torch.as_tensor(text)}, "half.safetensors")
        narrow = read_array("half.safetensors:i"), read_array("half.safetensors:t")
        ranks, _ = evaluate_embeddings(*narrow, image_of_text_M)
        assert same_ranks(ranks, retrieval_ranks(*wide, image_of_text_M))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "standart"}, "protocol: expected one of standard, paired, .*, found 'standart'"),
        (
            {"protocol": "flickr30k_1k"},
            "'flickr30k_1k': expected standard ranks of 1,000 images, found",
        ),
        ({"image_ND": np.zeros(8)}, r"image_ND: expected a matrix \(rows, width\) .* found shape \(8,\)"),
        ({"text_MD": np.zeros((2, 3, 4))}, r"text_MD: expected a matrix .* found shape \(2, 3, 4\)"),
        (
            {"image_of_text_M": np.zeros((3, 1), int)},
            r"image_of_text_M: expected 150 integers, .* found shape \(3, 1\)",
        ),
        ({"image_of_text_M": np.array(3)}, r"image_of_text_M: expected 150 integers, .* found shape \(\)"),
        (
            {"protocol": "single_caption", "image_of_text_M": np.zeros(150, int)},
            "expected a caption for every image",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(sample, change, said):
    arguments = dict(zip(("image_ND", "text_MD", "image_of_text_M"), sample())) | change
    protocol = arguments.pop("protocol", "standard")
    with pytest.raises(ValueError, match=said):
        evaluate_embeddings(*arguments.values(), protocol=protocol)


# --- the text


def test_the_text_has_hits_n_interval_and_scope(sample):
    ranks, summary = evaluate_embeddings(*sample())
    lines = results_text(summary, "made up, test split").split("\n")
    r1, rsum = summary["i2t"]["r1"], summary["intervals"]["rsum"]
    assert r1["hits"] == round(30 * recall_at_k(ranks.i2t_N, 1))
    cell = f"{100 * r1['value']:.2f} % ({100 * r1['low']:.2f}–{100 * r1['high']:.2f}) {r1['hits']}/30"
    assert lines[1].startswith(f"image → text  {cell}  ")
    assert "3.33 %" in lines[1]  # chance: five right of 150
    assert f"{summary['i2t']['median_rank']:g} of 150" in lines[1]
    assert lines[2].startswith("text → image  ")
    assert "/150" in lines[2]
    assert lines[3] == f"rsum {100 * rsum['value']:.2f} % ({100 * rsum['low']:.2f}–{100 * rsum['high']:.2f})"
    assert lines[4] == (
        "made up, test split · protocol standard · 30 image and 150 caption queries · 16 dimensions"
        " · ties count against the model"
    )
    assert len(lines) == 5
    assert lines[0].index("R@5") == lines[1].index(f"{100 * summary['i2t']['r5']['value']:.2f} %", 30)


def test_the_text_states_the_ceiling_of_paired(sample):
    _, summary = evaluate_embeddings(*sample(), protocol="paired")
    text = results_text(summary, "made up")
    assert "a perfect model reaches 20.0 % image → text R@1" in text
    assert "a perfect model reaches 0.0 % text → image R@1" in text
    assert "R@10\n" not in text
