"""torchrun itself, two processes on a CPU: it trains, ends with the truth when one dies, and goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_runs import TINY, assert_same, left_behind, tiny_train
from together import PATIENCE, run_together, settle

from mmlib import files
from mmlib.training import read_history, run_state

MORTAL = Path(__file__).with_name("mortal.py")
CHANGES = {"epochs": 4, "batch_size": 64, "optimizer": "sgd", "lr": 0.05}


@pytest.fixture
def torchrun(tmp_path, tiny_place, tiny_cache):
    """Runs `mmlib train` with the tiny parameters in two processes of torchrun."""
    params = tmp_path / "01_train.yaml"
    params.write_text(yaml.safe_dump(TINY | CHANGES))
    environment = os.environ | {
        "MMLIB_RUNS": str(tiny_place), "MMLIB_CACHE": str(tiny_cache), "OMP_NUM_THREADS": "1"
    }  # fmt: skip

    def run(*program: str, **changes) -> subprocess.CompletedProcess:
        overrides = [part for name, value in changes.items() for part in ("-p", name, str(value))]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, *(program or ("-m", "mmlib")), "train", str(params), *overrides]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    return run


def train_here(runs, cache):
    settle(runs, cache)
    tiny_train(**CHANGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_cache):
    """What two processes leave behind that nobody kills."""
    runs = tmp_path_factory.mktemp("together")
    assert run_together(train_here, 2, runs, tiny_cache) == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RUNS", runs)
        return left_behind("tiny")


@pytest.mark.parametrize("rank", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(rank, torchrun, whole, tiny_place):
    done = torchrun(str(MORTAL), rank, "4")
    assert done.returncode != 0
    assert run_state("tiny")[0] == "killed", done.stderr
    assert read_history("tiny")[0]["epoch"] == 1

    done = torchrun()
    assert done.returncode == 0, done.stderr
    assert "run 'tiny' goes on in epoch" in done.stdout
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("epoch 4/4")]
    assert lines.count(f"complete: {tiny_place / 'tiny'}") == 1
    assert len(lines) == len(set(lines))  # each thing is said once
    assert run_state("tiny") == ("complete", None)
    assert_same(whole, left_behind("tiny"))


def test_wrong_input_ends_with_an_error_that_torchrun_passes_on(torchrun, tiny_place):
    done = torchrun(batch_size=0)
    assert done.returncode != 0
    assert "batch_size: input should be greater than or equal to 2, found 0" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not tiny_place.exists()
