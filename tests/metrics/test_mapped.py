"""A gallery on the disk: the ranks of one in memory, to the last one, in a fraction of the memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmlib.metrics import both_ways, mapped, retrieval_ranks
from mmlib.metrics.embeddings import evaluate_embeddings, read_array

FIELDS = ("i2t_N", "t2i_M", "ties_i2t_N", "ties_t2i_M", "image_of_text_M", "gallery_i2t", "gallery_t2i")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Maps of any size are read in blocks, of a few hundred rows."""
    monkeypatch.setattr(mapped, "MAPPED_BYTES", 0)
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(both_ways, "TILE_SCORES", 2**14)


def on_disk(folder, name, array):
    np.save(folder / f"{name}.npy", array)
    found = read_array(str(folder / f"{name}.npy"))
    assert isinstance(found, np.memmap)
    return found


def assert_same(one, other):
    for field in FIELDS:
        assert np.array_equal(getattr(one, field), getattr(other, field)), field


@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    images=st.integers(1, 150),
    extra=st.integers(0, 400),
    width=st.sampled_from([1, 2, 3, 16, 64]),
    levels=st.sampled_from([None, 1, 3]),
    chunk=st.sampled_from([1, 7, 1024]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float16", "float64"]),
)
def test_ranks_and_ties_are_those_of_arrays(tmp_path, images, extra, width, levels, chunk, seed, dtype):
    """Also where many rows are equal (few levels), in one block or far apart."""
    rng = np.random.default_rng(seed)
    image_of_text_M = rng.permutation(np.append(np.arange(images), rng.integers(0, images, 2 * images)))
    image_of_text_M = rng.permutation(images + extra)[image_of_text_M]
    image_ND = rng.standard_normal((images + extra, width))
    if levels:
        image_ND = rng.integers(1, levels + 1, image_ND.shape).astype(float)
    text_MD = image_ND[image_of_text_M] + rng.standard_normal((3 * images, width)) * (levels is None)
    image_ND, text_MD = image_ND.astype(dtype), text_MD.astype(dtype)
    options = {"chunk": chunk, "distractors": True}
    expected = retrieval_ranks(image_ND, text_MD, image_of_text_M, **options)
    image_file, text_file = on_disk(tmp_path, "image", image_ND), on_disk(tmp_path, "text", text_MD)
    assert_same(retrieval_ranks(image_file, text_MD, image_of_text_M, **options), expected)
    assert_same(retrieval_ranks(image_ND, text_file, image_of_text_M, **options), expected)
    assert_same(retrieval_ranks(image_file, text_file, image_of_text_M, **options), expected)


def test_near_ties_are_decided_as_in_memory(tmp_path):
    """Items an ulp or two apart: another order of additions would move some."""
    rng = np.random.default_rng(0)
    text_MD = rng.standard_normal((40, 64)).astype(np.float32)
    near = np.repeat(text_MD, 60, axis=0) + rng.standard_normal((2400, 64)) * 0.5
    image_ND = np.concatenate([near[::60], near + rng.standard_normal((2400, 64)) * 1e-7]).astype(np.float32)
    image_ND = image_ND[rng.permutation(len(image_ND))]
    image_of_text_M = np.arange(40)
    expected = retrieval_ranks(image_ND, text_MD, image_of_text_M, distractors=True)
    found = retrieval_ranks(on_disk(tmp_path, "image", image_ND), text_MD, image_of_text_M, distractors=True)
    assert_same(found, expected)


def test_distractors_stand_in_the_gallery_and_are_no_queries():
    image_ND = np.eye(5)
    text_MD = np.array([[0, 0, 0, 1, 2], [0, 1, 0, 0, 0.5], [0, 2, 0, 0, 1.0]])
    ranks = retrieval_ranks(image_ND, text_MD, [3, 1, 1], distractors=True)
    assert ranks.image_of_text_M.tolist() == [1, 0, 0]
    assert (ranks.i2t_N.tolist(), ranks.t2i_M.tolist()) == ([1, 1], [2, 1, 1])
    assert (ranks.gallery_i2t, ranks.gallery_t2i, ranks.images) == (3, 5, 2)
    with pytest.raises(ValueError, match="found 3 of 5 images without one"):
        retrieval_ranks(image_ND, text_MD, [3, 1, 1])


def test_embeddings_of_a_large_gallery_are_evaluated(tmp_path):
    rng = np.random.default_rng(0)
    image_ND = rng.standard_normal((2_000, 8)).astype(np.float32)
    text_MD, image_of_text_M = image_ND[:50], np.arange(50)
    image_file = on_disk(tmp_path, "image", image_ND)
    ranks, summary = evaluate_embeddings(image_file, text_MD, image_of_text_M, distractors=True)
    assert (summary["t2i"]["gallery"], summary["i2t"]["n"], summary["t2i"]["r1"]["hits"]) == (2_000, 50, 50)
    assert ranks.images == 50
    with pytest.raises(ValueError, match="distractors: expected protocol 'standard', found 'paired'"):
        evaluate_embeddings(image_file, text_MD, image_of_text_M, protocol="paired", distractors=True)


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "found 1 of 700 rows NaN or infinite"), (0, "found 1 of 700 rows all zero")]
)
def test_bad_rows_are_refused_by_their_number(tmp_path, value, said):
    image_ND = np.ones((700, 16), dtype=np.float32)
    image_ND[600] = value
    image_file = on_disk(tmp_path, "image", image_ND)
    with pytest.raises(ValueError, match=rf"image_ND: expected finite.*{said} \(first: \[600\]\)"):
        retrieval_ranks(image_file, image_ND[:700], np.arange(700))
    whole = on_disk(tmp_path, "whole", np.ones((700, 16), dtype=np.int64))
    with pytest.raises(ValueError, match="image_ND: expected a floating-point dtype, found int64"):
        retrieval_ranks(whole, image_ND, np.arange(700))


GROWTH = """
import sys, threading, numpy as np, torch
from mmlib.metrics import retrieval_ranks
from mmlib.metrics.embeddings import read_array
torch.set_num_threads(1)
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
image_ND, text_MD, map_M = {inputs}
retrieval_ranks(text_MD[:20], text_MD[:20], np.arange(20))  # what is loaded at the first use
most, done = anonymous(), threading.Event()
before = most
def watch():
    global most
    while not done.wait(0.002):
        most = max(most, anonymous())
thread = threading.Thread(target=watch)
thread.start()
ranks = retrieval_ranks(image_ND, text_MD, map_M, distractors=True)
done.set()
thread.join()
print(most - before, int(ranks.t2i_M.max()))
"""


def growth(inputs: str) -> tuple[int, int]:
    """Bytes that ranking took at most, in a process of its own, and the worst rank of a caption."""
    ran = subprocess.run(
        [sys.executable, "-c", GROWTH.replace("{inputs}", inputs)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(mapped.__file__).parents[2],
    )
    assert ran.returncode == 0, ran.stderr
    return tuple(map(int, ran.stdout.split()))


reads_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it"
)


@reads_proc
def test_memory_does_not_grow_with_the_width_of_a_gallery(tmp_path):
    """Ranking 200 MB of embeddings takes less than one copy of them; in memory it takes three."""
    rng = np.random.default_rng(0)
    rows, width = 50_000, 1_024
    file = np.lib.format.open_memmap(tmp_path / "i.npy", "w+", dtype=np.float32, shape=(rows, width))
    for start in range(0, rows, 10_000):
        file[start : start + 10_000] = rng.standard_normal((10_000, width), dtype=np.float32)
    file.flush()
    path = str(tmp_path / "i.npy")
    grown, worst = growth(f"read_array({path!r}), np.array(read_array({path!r})[:20]), np.arange(20)")
    assert worst == 1
    assert grown < 0.75 * rows * width * 4


@reads_proc
def test_memory_is_a_small_part_of_the_matrix_of_scores():
    """8,000 x 40,000 scores are 1.3 GB.  Buffers made anew for each block once left holes of gigabytes."""
    made = "(lambda i: (i, np.repeat(i, 5, 0), np.repeat(np.arange(8_000), 5)))"
    grown, worst = growth(f"{made}(np.random.default_rng(0).standard_normal((8_000, 16), dtype=np.float32))")
    assert worst == 1
    assert grown < 0.1 * 8_000 * 40_000 * 4
