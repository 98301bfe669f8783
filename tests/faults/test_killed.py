"""SIGKILL at chosen moments: nothing is lost but time, and the run says that it was killed."""

import signal

import pytest
from forked import MOMENTS, kill_at
from tiny_runs import ADAMW_ONE, SGD_ALL, assert_same, left_behind, tiny_train

from mmlib import files
from mmlib.training import run_state

RECIPE = {moment: (SGD_ALL, ADAMW_ONE)[number % 2] for number, moment in enumerate(MOMENTS)}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, tiny_cache):
    """What each recipe leaves behind if nobody kills it, by its optimizer."""
    import torch

    torch.set_num_threads(1)
    whole = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CACHE", tiny_cache)
        for recipe in (SGD_ALL, ADAMW_ONE):
            patch.setattr(files, "RUNS", tmp_path_factory.mktemp("never-stopped"))
            tiny_train(**recipe)
            whole[recipe["optimizer"]] = left_behind("tiny")
    return whole


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(moment, never_stopped, tiny_place, tiny_cache):
    recipe = RECIPE[moment]
    assert kill_at(moment, tiny_place, tiny_cache, recipe) == -signal.SIGKILL

    folder = tiny_place / "tiny"
    if moment == "before the parameters":
        assert not (folder / "config.json").exists()
    else:
        state, reason = run_state("tiny")
        assert state == "killed"
        assert "ended without a word" in reason
    if moment == "inside a checkpoint write":
        assert list(folder.glob("last.pt.*.part")), "the writer was not killed inside its work"

    tiny_train(**recipe)
    assert_same(never_stopped[recipe["optimizer"]], left_behind("tiny"))
    assert run_state("tiny") == ("complete", None)
    assert not list(folder.glob("*.part")), "what the killed writer left was not cleared away"
