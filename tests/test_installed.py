"""The package alone, without the repository around it: trains and evaluates, and says what it lacks."""

import os
import shutil
import subprocess
import sys

import pytest

from mmlib import files

WORK = """\
import sys
from mmlib import cli, files
from mmlib.config import TrainConfig
from mmlib.training import train

assert files.__file__.startswith(sys.argv[1]), files.__file__
train(TrainConfig(run='x', epochs=1, lr=1e-3, shapes_train=64, shapes_val=16, shapes_test=16))
open("runs.yaml", "w").write("runs: [x]\\n")
assert cli.main(["evaluate", "runs.yaml"]) == 0
for command in (["run", "demo"], ["report", "demo"]):
    assert cli.main(command) == 2, command
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which `pip install` has put the package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    shutil.copytree(files.ROOT / "mmlib", source / "mmlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(files.ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--no-index", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    return target


def test_it_trains_in_an_empty_folder_and_says_that_notebooks_need_the_repository(installed, tmp_path):
    unset = ("MMLIB_ROOT", "MMLIB_RUNS", "MMLIB_CACHE", "MMLIB_REPORTS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["PYTHONPATH"] = str(installed)
    ended = subprocess.run(
        [sys.executable, "-c", WORK, str(installed)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "runs" / "x" / "results.json").is_file()
    assert (tmp_path / "data" / "cache").is_dir()
    expected = f"needs the notebooks of mmlib's repository: expected the folder {tmp_path / 'notebooks'}"
    assert ended.stderr.count(expected) == 2
    assert "MMLIB_ROOT=/path/to/mmlib" in ended.stderr


def test_runs_and_cache_go_where_they_are_told(installed, tmp_path):
    code = "from mmlib import files; print(files.RUNS, files.CACHE)"
    environment = os.environ | {"PYTHONPATH": str(installed), "MMLIB_RUNS": "a", "MMLIB_CACHE": "b"}
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert printed.split() == [str(tmp_path / "a"), str(tmp_path / "b")]
