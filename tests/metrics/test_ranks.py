"""Ranks against a loop one can check by eye, under ties, in odd shapes, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.metrics import RetrievalRanks, paired_ranks, recall_at_k, retrieval_ranks


def brute_force(image_ND, text_MD, positive_NM):
    """Ranks by counting, ties against; scores of equal rows made equal by exact arithmetic on integers."""
    image_ND, text_MD = np.asarray(image_ND, np.float64), np.asarray(text_MD, np.float64)

    def rank(query, gallery, positive):
        score = [query @ item / np.linalg.norm(query) / np.linalg.norm(item) for item in gallery]
        best = max(s for s, p in zip(score, positive) if p)
        return 1 + sum(s >= best - 1e-12 for s, p in zip(score, positive) if not p)

    i2t = [rank(image, text_MD, positive_NM[n]) for n, image in enumerate(image_ND)]
    t2i = [rank(text, image_ND, positive_NM[:, m]) for m, text in enumerate(text_MD)]
    return np.array(i2t), np.array(t2i)


def assert_same(one: RetrievalRanks, other: RetrievalRanks):
    for name, value in vars(other).items():
        np.testing.assert_array_equal(getattr(one, name), value)


def standard_positives(image_of_text_M):
    image_of_text_M = np.asarray(image_of_text_M)
    return np.arange(image_of_text_M.max() + 1)[:, None] == image_of_text_M[None]


def test_ranks_equal_a_brute_force_loop(sample):
    image, text, image_of_text = sample()
    ranks = retrieval_ranks(image, text, image_of_text)
    i2t, t2i = brute_force(image, text, standard_positives(image_of_text))
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    np.testing.assert_array_equal(ranks.t2i_M, t2i)
    assert ranks.i2t_N.dtype == ranks.t2i_M.dtype == np.int64
    assert (ranks.gallery_i2t, ranks.gallery_t2i) == (150, 30)
    assert not ranks.ties_i2t_N.any()
    assert not ranks.ties_t2i_M.any()


def test_the_worked_example_of_the_docstring():
    image = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    text = torch.tensor([[3.0, 4.0], [1.0, 2.0], [1.0, 3.0], [3.0, 4.0]])
    ranks = retrieval_ranks(image, text, [0, 0, 1, 1])
    assert (ranks.i2t_N.tolist(), ranks.ties_i2t_N.tolist()) == ([2, 1], [1, 0])
    assert (ranks.t2i_M.tolist(), ranks.ties_t2i_M.tolist()) == ([2, 2, 1, 1], [0, 0, 0, 0])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_any_number_of_captions(data):
    images = data.draw(st.integers(1, 8))
    captions = data.draw(st.lists(st.integers(1, 4), min_size=images, max_size=images))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    image_of_text = rng.permutation(np.repeat(np.arange(images), captions))
    # Signed unit axes: all cosines are exactly -1, 0 or 1, so ties abound and are exact.
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    image, text = axes[rng.integers(0, 6, images)], axes[rng.integers(0, 6, len(image_of_text))]
    ranks = retrieval_ranks(image, text, image_of_text)
    i2t, t2i = brute_force(image, text, standard_positives(image_of_text))
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    np.testing.assert_array_equal(ranks.t2i_M, t2i)


@pytest.mark.parametrize("rows", [1, 7, 1024])
@pytest.mark.parametrize("images", [2, 3, 7, 8, 17, 33, 65, 130])
def test_equal_rows_tie_exactly_at_every_position(monkeypatch, images, rows):
    """A plain product gives equal columns different bits at the matrix's edge (seen at 7 columns)."""
    monkeypatch.setattr("mmlib.metrics.ranks.ROWS", rows)
    rng = np.random.default_rng(images)
    row = rng.standard_normal(512).astype(np.float32)
    image, text = np.tile(row, (images, 1)), rng.standard_normal((images, 512)).astype(np.float32)
    ranks = retrieval_ranks(image, text, np.arange(images))
    assert (ranks.t2i_M == images).all()
    assert (ranks.ties_t2i_M == images - 1).all()
    ranks = retrieval_ranks(text, image, np.arange(images))
    assert (ranks.i2t_N == images).all()
    assert (ranks.best_case("i2t") == 1).all()


def test_pairs_of_equal_captions_scattered_over_the_gallery(sample):
    image, text, image_of_text = sample(images=41, width=64, captions=1)
    order = np.argsort(image_of_text)
    text, image_of_text = text[order], image_of_text[order]
    for first, second in ((0, 40), (3, 31), (19, 20)):
        text[second] = text[first]
    ranks = retrieval_ranks(image, text, image_of_text)
    assert np.flatnonzero(ranks.ties_i2t_N).tolist() == [0, 3, 19, 20, 31, 40]
    assert ranks.ties_i2t_N.max() == 1


def test_a_collapsed_model_gets_the_worst_rank():
    image, text = np.ones((20, 8), np.float32), np.ones((100, 8), np.float32)
    ranks = retrieval_ranks(image, text, np.repeat(np.arange(20), 5))
    assert (ranks.i2t_N == 96).all()  # 95 captions of other images are as good
    assert (ranks.t2i_M == 20).all()
    assert recall_at_k(ranks.i2t_N, 10) == 0
    assert ranks.ties_i2t_N.all()
    assert ranks.ties_t2i_M.all()


def test_equal_captions_of_one_image_are_no_tie():
    image, text = np.eye(2), np.array([[1.0, 0], [1, 0], [0, 1]])
    ranks = retrieval_ranks(image, text, [0, 0, 1])
    assert ranks.i2t_N.tolist() == [1, 1]
    assert not ranks.ties_i2t_N.any()


def test_negative_zero_equals_zero():
    rng = np.random.default_rng(0)
    row = rng.standard_normal(512) * (np.arange(512) % 4 > 0)
    image = np.tile(row, (7, 1))
    image[:, ::4] *= rng.choice([-1.0, 1.0], (7, 128))
    assert len({row.tobytes() for row in image}) == 7
    ranks = retrieval_ranks(image, rng.standard_normal((7, 512)), np.arange(7))
    assert ranks.ties_t2i_M.tolist() == [6] * 7


def test_a_single_image_ranks_first():
    ranks = retrieval_ranks(np.ones((1, 4)), np.random.default_rng(0).standard_normal((5, 4)), [0] * 5)
    assert ranks.i2t_N.tolist() == [1]
    assert ranks.t2i_M.tolist() == [1] * 5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_only_directions_count(sample, scale):
    image, text, image_of_text = sample()
    expected = retrieval_ranks(image, text, image_of_text)
    ranks = retrieval_ranks(image * np.float32(scale), text, image_of_text)
    np.testing.assert_array_equal(ranks.t2i_M, expected.t2i_M)


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda a: torch.from_numpy(a).double().requires_grad_(),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.float64)[::1],
        lambda a: np.broadcast_to(a, a.shape),  # read-only, as a memory map is
    ],
)
def test_tensors_and_arrays_give_the_same_ranks(sample, convert):
    image, text, image_of_text = sample()
    expected = retrieval_ranks(image, text, image_of_text)
    ranks = retrieval_ranks(convert(image), convert(text), torch.from_numpy(image_of_text))
    np.testing.assert_array_equal(ranks.i2t_N, expected.i2t_N)
    np.testing.assert_array_equal(ranks.t2i_M, expected.t2i_M)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_float32(sample, dtype):
    image, text, image_of_text = (torch.from_numpy(x) for x in sample())
    image, text = image.to(dtype), text.to(dtype)
    expected = retrieval_ranks(image.float(), text.float(), image_of_text)
    with torch.autocast("cpu", torch.bfloat16):
        ranks = retrieval_ranks(image, text, image_of_text)
    np.testing.assert_array_equal(ranks.i2t_N, expected.i2t_N)
    np.testing.assert_array_equal(ranks.t2i_M, expected.t2i_M)


def test_a_trainers_matrix_precision_is_neither_used_nor_changed(sample):
    image, text, image_of_text = sample(images=60, width=256, noise=4)
    expected = retrieval_ranks(image, text, image_of_text)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        ranks = retrieval_ranks(image, text, image_of_text)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(ranks.t2i_M, expected.t2i_M)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_ranks_even_where_tf32_is_allowed(sample):
    image, text, image_of_text = sample()
    text[7] = text[149]
    expected = retrieval_ranks(image, text, image_of_text)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        ranks = retrieval_ranks(*(torch.from_numpy(x).cuda() for x in (image, text, image_of_text)))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    np.testing.assert_array_equal(ranks.i2t_N, expected.i2t_N)
    np.testing.assert_array_equal(ranks.t2i_M, expected.t2i_M)
    np.testing.assert_array_equal(ranks.ties_i2t_N, expected.ties_i2t_N)


@pytest.mark.parametrize(("rows", "columns"), [(1, 40), (7, 1), (1024, 149)])
def test_scores_made_in_parts_of_any_size_give_the_same_ranks(sample, monkeypatch, rows, columns):
    image, text, image_of_text = sample()
    text[3] = text[140]
    expected = {f: f(image, text, image_of_text) for f in (retrieval_ranks, paired_ranks)}
    monkeypatch.setattr("mmlib.metrics.ranks.ROWS", rows)
    monkeypatch.setattr("mmlib.metrics.ranks.COLUMNS", columns)
    for function, whole in expected.items():
        assert_same(function(image, text, image_of_text), whole)


def tie_rich(kind: str, seed: int):
    """Embeddings of which many have exactly the same cosine with a query."""
    rng = np.random.default_rng(seed)
    images, width = rng.integers(2, 30), rng.choice([2, 3, 4, 8, 64])
    image_of_text = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 5)))

    def rows(number):
        few = np.random.default_rng(seed + 1).standard_normal((6, width))[rng.integers(0, 6, number)]
        return {
            "copies": few,
            "multiples": few * 2.0 ** rng.integers(-3, 4, (number, 1)),
            "signs": rng.choice([-1.0, 1.0], (number, width)),
            "whole numbers": rng.integers(-2, 3, (number, width)) + 3 * np.eye(width)[0],
        }[kind].astype(np.float32)

    return rows(images), rows(len(image_of_text)), image_of_text


@pytest.mark.parametrize("kind", ["copies", "multiples", "signs", "whole numbers"])
def test_exact_ties_are_those_of_a_brute_force_loop(kind):
    tied = 0
    for seed in range(25):
        image, text, image_of_text = tie_rich(kind, seed)
        ranks = retrieval_ranks(image, text, image_of_text)
        i2t, t2i = brute_force(image, text, standard_positives(image_of_text))
        np.testing.assert_array_equal(ranks.i2t_N, i2t)
        np.testing.assert_array_equal(ranks.t2i_M, t2i)
        tied += ranks.ties_i2t_N.sum()
    assert tied > 100


@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8"])
def test_arrays_on_the_disk_are_read_as_they_are_needed(sample, tmp_path, dtype):
    image, text, image_of_text = sample()
    image, text = image.astype(dtype), text.astype(dtype)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "text.npy", text)
    found = retrieval_ranks(
        np.load(tmp_path / "image.npy", mmap_mode="r"), np.load(tmp_path / "text.npy", mmap_mode="r"),
        image_of_text,
    )  # fmt: skip
    assert_same(found, retrieval_ranks(image, text, image_of_text))


def test_memory_is_a_small_part_of_the_matrix_of_scores():
    """2,000 x 10,000 scores are 160 MB in float64."""
    code = """
import resource, numpy as np, torch
from mmlib.metrics import ranks
torch.set_num_threads(1)
ranks.ROWS, ranks.COLUMNS = 256, 512
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image_ND = np.random.default_rng(0).standard_normal((2_000, 4), dtype=np.float32)
ranks.retrieval_ranks(image_ND[:20], image_ND[:20], np.arange(20))  # what is loaded at the first use
before = peak()
found = ranks.retrieval_ranks(image_ND, np.repeat(image_ND, 5, 0), np.repeat(np.arange(2_000), 5))
print(int(found.t2i_M.max()), (peak() - before) * 1024)
"""
    worst, grown = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert worst == 1
    assert grown < 0.1 * 2_000 * 10_000 * 8


def test_paired_equals_a_brute_force_loop_over_repeated_rows(sample):
    image, text, image_of_text = sample(images=8, captions=3)
    ranks = paired_ranks(image, text, image_of_text)
    i2t, t2i = brute_force(image[image_of_text], text, np.eye(24, dtype=bool))
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    np.testing.assert_array_equal(ranks.t2i_M, t2i)
    assert (ranks.gallery_i2t, ranks.gallery_t2i, ranks.protocol) == (24, 24, "paired")
    assert (ranks.ties_t2i_M >= 2).all()


@pytest.mark.parametrize("noise", [0.5, 2.0, 8.0])
def test_paired_converts_exactly_to_standard(sample, noise):
    """The reference's one-to-one figures and the field's: REFERENCE §3.1."""
    image, text, image_of_text = sample(seed=3, images=80, noise=noise)
    standard, paired = (f(image, text, image_of_text) for f in (retrieval_ranks, paired_ranks))
    assert recall_at_k(standard.i2t_N, 1) == pytest.approx(5 * recall_at_k(paired.i2t_N, 1), abs=1e-15)
    assert recall_at_k(standard.t2i_M, 1) == recall_at_k(paired.t2i_M, 5)
    np.testing.assert_array_equal(paired.t2i_M, 5 * standard.t2i_M)
    np.testing.assert_array_equal(paired.best_case("t2i"), 5 * (standard.t2i_M - 1) + 1)


def test_ranks_survive_a_round_trip(sample, tmp_path):
    image, text, image_of_text = sample()
    for ranks in (retrieval_ranks(image, text, image_of_text), paired_ranks(image, text, image_of_text)):
        ranks.save(tmp_path / "ranks.npz")
        again = RetrievalRanks.load(tmp_path / "ranks.npz")
        assert vars(ranks).keys() == vars(again).keys()
        for name, value in vars(ranks).items():
            np.testing.assert_array_equal(getattr(again, name), value)
    assert os.listdir(tmp_path) == ["ranks.npz"]


def test_a_failed_save_keeps_the_file_that_was_there(sample, tmp_path, monkeypatch):
    ranks = retrieval_ranks(*sample())
    ranks.save(tmp_path / "ranks.npz")
    before = (tmp_path / "ranks.npz").read_bytes()

    def disk_full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        ranks.save(tmp_path / "ranks.npz")
    assert os.listdir(tmp_path) == ["ranks.npz"]
    assert (tmp_path / "ranks.npz").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_broken_ranks_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "ranks.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"ranks\.npz: expected a ranks file.*evaluate the run again"):
        RetrievalRanks.load(tmp_path / "ranks.npz")
    with pytest.raises(FileNotFoundError):
        RetrievalRanks.load(tmp_path / "none.npz")


def test_another_npz_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", embeddings=np.ones(3))
    with pytest.raises(ValueError, match="expected a ranks file"):
        RetrievalRanks.load(tmp_path / "other.npz")


def nan_row():
    image = np.ones((30, 16))
    image[[2, 4], 3] = np.nan, np.inf
    return image


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_ND": nan_row()},
            r"image_ND: .*found 2 of 30 rows NaN, .* \(first: \[2, 4\]\)",
        ),
        ({"text_MD": np.zeros((150, 16))}, r"text_MD: .*found 150 of 150 rows NaN, .*leave empty items out"),
        ({"text_MD": np.ones((150, 8))}, r"one embedding width, found 16 and 8; take both"),
        ({"text_MD": np.ones((150, 16), int)}, r"text_MD: expected a floating-point dtype, found int64"),
        ({"text_MD": torch.ones(150, 16).bool()}, r"floating-point dtype, found torch\.bool"),
        ({"image_ND": np.ones(16)}, r"image_ND: expected a matrix .*found shape \(16,\)"),
        ({"image_ND": np.ones((0, 16))}, r"at least one row and column, found shape \(0, 16\)"),
        ({"image_of_text_M": np.zeros(9, int)}, r"expected 150 integers.*found shape \(9,\)"),
        ({"image_of_text_M": np.zeros(150)}, r"expected 150 integers.*of float64"),
        ({"image_of_text_M": np.full(150, 30)}, r"indices in 0\.\.29, found 30\.\.30"),
        ({"image_of_text_M": np.full(150, -1)}, r"indices in 0\.\.29, found -1\.\.-1"),
        (
            {"image_of_text_M": np.full(150, 2)},
            r"found 29 of 30 images without one \(first: \[0, 1, 3, 4, 5\]\)",
        ),
    ],
)
@pytest.mark.parametrize("function", [retrieval_ranks, paired_ranks])
def test_bad_input_is_refused(sample, function, changes, message):
    image, text, image_of_text = sample()
    arguments = {"image_ND": image, "text_MD": text, "image_of_text_M": image_of_text} | changes
    with pytest.raises(ValueError, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "both"}, r"protocol: expected one of \('standard', 'paired'\), found 'both'"),
        ({"image_of_text_M": np.array([0, 1])}, r"image_of_text_M: expected 3 integers"),
        ({"ties_i2t_N": np.zeros(3, int)}, r"i2t: expected 2 ranks and ties .* found 2 and 3"),
        ({"i2t_N": np.array([0, 1])}, r"i2t: expected ranks in 1\.\.3 .* found ranks 0\.\.1"),
        ({"gallery_t2i": 1}, r"t2i: expected ranks in 1\.\.1 .* found ranks 1\.\.2"),
    ],
)
def test_inconsistent_ranks_are_refused(changes, message):
    arguments = {
        "i2t_N": np.array([1, 3]),
        "t2i_M": np.array([1, 2, 1]),
        "ties_i2t_N": np.zeros(2, int),
        "ties_t2i_M": np.zeros(3, int),
        "image_of_text_M": np.array([0, 0, 1]),
        "gallery_i2t": 3,
        "gallery_t2i": 2,
    }
    RetrievalRanks(**arguments)
    with pytest.raises(ValueError, match=message):
        RetrievalRanks(**(arguments | changes))
