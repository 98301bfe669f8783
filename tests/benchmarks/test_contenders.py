"""The contenders do the same work: equal ranks, equal parameters and operations, steps that are steps."""

import numpy as np
import pytest
import torch

from benchmarks import cold, index, places, ranks, reference, steps, training
from benchmarks.clock import StepClock
from benchmarks.scaling import _last_line
from mmlib import files
from mmlib.config import TrainConfig, build
from mmlib.data import load_dataset

TINY = {
    **training.EQUAL, "image_size": 16, "patch_size": 8, "latent_dim": 32, "num_layers": 2, "num_heads": 2,
    "max_tokens": 8, "batch_size": 4, "precision": "fp32", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def scratch(tiny_place, tmp_path, monkeypatch):
    """Benchmarks write below `tmp_path`."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(places.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(places.atexit, "register", lambda *arguments, **settings: None)
    places.scratch.cache_clear()
    yield tmp_path
    places.scratch.cache_clear()


def result_of(make, **arguments):
    work = make(**arguments)
    assert work() is None
    return work.result


@pytest.mark.parametrize("make", [ranks.argsort_whole, ranks.argsort_rows])
def test_all_ways_find_the_same_ranks(make):
    given = {"images": 80, "width": 16}
    for mine, theirs in zip(result_of(ranks.ours, **given), result_of(make, **given)):
        np.testing.assert_array_equal(mine, theirs)


def require_peer(module: str) -> None:
    try:
        places.peer(module)
    except ModuleNotFoundError:
        pytest.skip(f"{module} is a peer that `make bench` installs, into .bench")


def test_faiss_finds_the_same_ranks_where_it_looks():
    require_peer("faiss")
    given = {"images": 80, "width": 16}
    whole, ten = result_of(ranks.faiss_flat, **given, k=None), result_of(ranks.faiss_flat, **given, k=10)
    for mine, all_of, first in zip(result_of(ranks.ours, **given), whole, ten):
        np.testing.assert_array_equal(all_of, mine)
        np.testing.assert_array_equal(first[first > 0], mine[first > 0])
        assert ((first == 0) == (mine > 10)).all()


def test_torchmetrics_finds_the_same_recall():
    require_peer("torchmetrics.retrieval")
    given = {"images": 40, "width": 16}
    for mine, theirs in zip(result_of(ranks.ours, **given), result_of(ranks.torchmetrics_hit_rate, **given)):
        assert np.mean(mine <= 10) == pytest.approx(theirs)


def test_a_peer_that_is_not_there_says_what_installs_it():
    with pytest.raises(ModuleNotFoundError, match=r"no_such_peer.*make bench installs its peers"):
        places.peer("no_such_peer")


def linear_loop(steps_there: int) -> None:
    model = torch.nn.Linear(3, 5, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps_there):
        optimizer.zero_grad()
        model(torch.ones(7, 3)).sum().backward()
        optimizer.step()


def test_the_clock_stops_a_loop_after_its_steps():
    with StepClock(skip=2, steps=3) as clock:
        linear_loop(100)
    assert clock.done == 5
    assert clock.seconds > 0
    linear_loop(1)
    assert clock.done == 5  # it hears of no later optimizer


def test_the_clock_counts_operations_of_one_step():
    with StepClock(skip=1, steps=2, count=True) as clock:
        linear_loop(10)
    assert clock.flops == 2 * (2 * 7 * 3 * 5)  # forward, and the gradient of the weight
    assert clock.parameters == 15


def test_the_clock_refuses_a_loop_that_is_too_short():
    with pytest.raises(RuntimeError, match="expected 5 steps, found 4: too little data"), StepClock(2, 3):
        linear_loop(4)


def test_the_clock_lets_errors_of_the_loop_through():
    with pytest.raises(KeyError), StepClock(2, 3):
        raise KeyError("x")


def test_our_training_and_that_of_open_clip_are_of_one_size(scratch):
    """Ours may leave out what does not reach the result; open_clip may not do less than ours."""
    (our_size, our_flops), (their_size, their_flops) = (
        training.size_of(make, TINY) for make in (steps.ours, steps.open_clip_loop)
    )
    assert our_size == pytest.approx(their_size, rel=0.1)  # two projections of many weights, at this size
    assert 0.75 * their_flops < our_flops < 1.03 * their_flops
    assert steps.ours(TINY, 2)() > 0
    assert list((scratch / "runs").iterdir())


def test_the_textbook_loop_trains_on_picture_files(scratch):
    config = steps.config_of(TINY | {"tokenizer": "word", "memory_slots": 4, "feedback_steps": 1}, 1)
    pairs = steps.PictureFiles(config, steps.write_pictures(config))
    image, tokens, length = pairs[0]
    assert (image.shape, tokens.shape) == ((3, 16, 16), (8,))
    assert 1 <= length <= 8
    model = steps.build_model(config, pairs.vocabulary)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    loader = steps.DataLoader(pairs, config.batch_size)
    assert steps.textbook_epoch(model, optimizer, loader, config, "cpu") > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_the_store_and_the_folder_have_the_same_pictures(scratch):
    values = {**cold.SMALL, "batch_size": 4, "device": "cpu", "shapes_train": 6}
    assert len(result_of(cold.decode_all, config=values)) == 6
    assert cold.open_packed(values)() is None


def test_the_index_and_the_bare_loop_embed_the_same_pictures(scratch, monkeypatch):
    small = {"image_encoder": "timm:test_efficientnet", "image_size": 32, "latent_dim": 16}
    monkeypatch.setattr(index, "RUN", index.RUN | small)
    monkeypatch.setattr(index, "COUNT", {True: 6})
    monkeypatch.setattr(index, "DISTINCT", 4)
    index.trained.cache_clear()
    index.pictures.cache_clear()
    rows = index.rows(quick=True)
    assert [row["what"] for row in rows] == [
        "index, first time",
        "index, first time",  # beside the model as timm builds it
        "index, second time",
        "search by a sentence",
    ]
    arrays = np.load(next((files.RUNS / "indexed" / "search").glob("*.npz")))
    assert len(arrays["unit_ND"]) == 24  # six in each of three repetitions and in a warm-up
    expected = result_of(index.bare, count=24, device="cpu")
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(arrays["unit_ND"], unit, atol=1e-6)


def test_the_first_epoch_of_photos_is_one_of_the_same_pairs_for_both(scratch):
    folder = cold.captioned_photos(4, 2)
    config = build(TrainConfig, cold.REAL | {"data_root": str(folder)})
    pairs = steps.PictureFiles(config, folder)
    dataset = load_dataset(config)
    assert len(pairs) == len(dataset.splits["train"].captions) == 20
    assert len(dataset.splits["val"].images) == 2
    assert pairs[0][0].shape == (3, 64, 64)


def test_the_reference_recipe_runs_at_a_tiny_size(scratch, monkeypatch):
    few = {"shapes_train": 26, "shapes_val": 4, "shapes_test": 4, "epochs": 1, "latent_dim": 16}
    monkeypatch.setattr(reference, "TINY", reference.TINY | few)
    rows = reference.rows(quick=True)
    assert [row["what"] for row in rows] == [
        "reference recipe, end to end", "reference recipe, model FLOP utilisation",
    ]  # fmt: skip
    assert all("tiny size" in row["work"] for row in rows)
    assert 0 < rows[1]["ours"] < 1
    assert "6 steps of" in rows[1]["note"]  # two epochs of 130 pairs in batches of 64


def test_the_reference_recipe_at_its_real_size_is_the_one_published(scratch):
    first, second = reference.recipe("cuda", quick=False)
    config = build(TrainConfig, first)
    assert (config.epochs, second["epochs"]) == (30, 50)
    assert (config.image_size, config.latent_dim, config.max_tokens, config.batch_size) == (224, 512, 77, 64)
    assert reference._pairs(first) == 30_000


def test_the_reason_of_a_failed_process_is_its_own_last_error():
    text = "W x\n[rank0]: ValueError: too few\n  raise ChildFailedError(\nm.ChildFailedError: \nend"
    assert _last_line(text) == "ValueError: too few"
    assert _last_line("error: no such file\nend") == "error: no such file"
