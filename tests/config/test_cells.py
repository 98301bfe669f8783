"""The parameters of a notebook are what its parameters cell and papermill's injected one assign."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from mmlib import files
from mmlib.config import (
    CONFIG_OF_NOTEBOOK,
    AnalysisConfig,
    ParameterError,
    TrainConfig,
    from_notebook,
)
from mmlib.config.reading import cell_parameters
from mmlib.reporting import notebooks

CELL = 'run: str = "a"  # name\nepochs: int = 3\nlr: float = 0.1\n'
CONFIG = "from mmlib.config import TrainConfig, from_notebook\nconfig = from_notebook(TrainConfig)\n"
VALUES = {"run": "a", "epochs": 3, "lr": 0.1}


def parameters(*executed, config_class=TrainConfig):
    return cell_parameters(["", *executed], config_class)


@pytest.mark.parametrize(
    ("executed", "expected"),
    [
        ([CELL], VALUES),
        (["flip = True\nlr = 9.0", CELL, "flip = True", "lr = 9.0", "flip: bool"], VALUES),
        ([CELL, CONFIG, CELL, CONFIG], VALUES),
        ([CELL + "flip: bool = True\n", CONFIG, CELL], VALUES),
        ([CELL, "# Parameters\nlr = 0.5\nflip = True\n"], VALUES | {"lr": 0.5, "flip": True}),
        ([CELL, "# Parameters\nflip = True\n", CELL, "# Parameters\nlr = 0.5\n"], VALUES | {"lr": 0.5}),
        ([CELL, "# Parameters\nlr = 0.5\n", CELL], VALUES),
        (["import math\n" + CELL + "lr = math.sqrt(4) * 1e-3"], VALUES | {"lr": 0.002}),
        ([CELL.replace("lr: float", "lr")], VALUES),
        ([CELL, "this is no Python", "def f(x: int = 3): y: int = 2", "class A:\n    z: int = 1"], VALUES),
        (["run = 'b'\nepochs = 2\nlr = 0.1", CELL], VALUES),
        ([CELL + "sedd = 3\n"], VALUES | {"sedd": 3}),
        ([CELL, "hits: list = []\nx: int = 3"], VALUES),  # types of names that are no parameters
        (["run = 'b'\nepochs = 2", CELL, "run, lr = 'b', 1"], VALUES),
        ([CELL, "run = 'b'\nepochs = 2\nlr = 0.3"], {"run": "b", "epochs": 2, "lr": 0.3}),  # without types
    ],
)
def test_what_the_parameters_cells_assign_counts_and_nothing_else(executed, expected):
    assert parameters(*executed) == expected


@pytest.mark.parametrize(
    ("executed", "config_class", "expected"),
    [
        ([], AnalysisConfig, "expected a parameters cell with lines `runs: type = value`"),
        (["flip = True"], TrainConfig, "expected a parameters cell with lines"),
        ([CELL + "seed: int = base\n"], TrainConfig, "from other cells: NameError: name 'base'"),
        ([CELL + "seed: int = 1 // 0\n"], TrainConfig, "must stand by itself"),
    ],
)  # fmt: skip
def test_what_may_not_be_the_parameters_is_an_error(executed, config_class, expected):
    with pytest.raises(ParameterError) as caught:
        parameters(*executed, config_class=config_class)
    assert expected in str(caught.value)


def test_outside_a_notebook_another_way_is_named(monkeypatch):
    monkeypatch.setattr("sys.modules", {})
    with pytest.raises(ParameterError, match=r"use ask\(TrainConfig, \{name: value\}\)"):
        from_notebook(TrainConfig)


@pytest.fixture(scope="module")
def kernel():
    """A kernel; called with the source of a cell it returns what the cell prints, or its error."""
    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3", allow_errors=True)

    def execute(source):
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
        return "".join(o.get("text", "") or f"{o.ename}: {o.evalue}" for o in cell.outputs)

    with client.setup_kernel():
        yield execute


def test_a_kernel_builds_the_config_from_its_cells(kernel, tmp_path):
    show = CONFIG + "print(config.run, config.epochs, config.lr, config.flip)\n"

    def run(*cells):
        for cell in cells:
            said = kernel(cell)
        return said

    assert run(show).startswith("ParameterError: expected a parameters cell with lines `")
    assert run(CELL, show) == "a 3 0.1 False\n"
    assert run(CELL, show) == "a 3 0.1 False\n"  # Run All again
    assert run("flip = True", "lr = 5.0", show) == "a 3 0.1 False\n"  # a scratch cell
    assert run(CELL + "flip: bool = True\n", show) == "a 3 0.1 True\n"
    assert run(CELL, show) == "a 3 0.1 False\n"  # the line was removed again
    assert run("# Parameters\nlr = '1e-2'\nflip = 'on'\n", show) == "a 3 0.01 True\n"  # as papermill does
    assert run(show) == "a 3 0.01 True\n"
    assert run(CELL.replace("0.1", "1e-3 * 2"), show) == "a 3 0.002 False\n"
    wrong = run(CELL.replace("lr", "learning_rate"), show)
    assert "learning_rate = 0.1: unknown parameter; did you mean 'lr'?" in wrong
    assert "lr: missing" in wrong
    file = tmp_path / "other.py"
    file.write_text(CELL.replace('"a"', '"other"') + show)
    assert "this cell has a %run" in run(CELL, f"%run {file}")  # which would have got the run 'a'
    assert run("%%capture\n" + CELL.replace("0.1", "0.3"), show) == "a 3 0.3 False\n"
    assert run("%matplotlib inline\n" + CELL, "%%capture --no-stdout\n" + show) == "a 3 0.1 False\n"
    assert "data_root is read by dataset 'folder', 'flickr8k'" in run(CELL + 'data_root: str = "x"\n', show)


@pytest.mark.parametrize("name", CONFIG_OF_NOTEBOOK)
def test_the_notebooks_of_this_repository_can_be_run_twice_in_one_kernel(kernel, name):
    path = files.NOTEBOOKS / f"{name}.ipynb"
    _, cell, config = ("".join(c["source"]) for c in json.loads(path.read_text())["cells"][:3])
    lines = [line for line in config.splitlines() if "import" not in line or "mmlib.config" in line]
    source = "\n".join(line for line in lines if "parameter_table" not in line)
    values = notebooks.cell_parameters(path, notebooks.read_notebook(path))
    values = {name: value for name, value in values.items() if value is not None}
    for _ in range(2):
        assert kernel(cell) == ""
        assert kernel(f"{source}\nprint(config.model_dump().items() >= {values}.items())") == "True\n"


def test_a_kernel_that_keeps_no_history_gives_what_was_written_with_a_type(tmp_path):
    """As `pytest --nbval` executes: the cells of a notebook, once each."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        parameters = 'run: str = "a"\nepochs: int = 2\nlr: float = 0.5\nscratch = 3'
        use = (
            "from mmlib.config import TrainConfig, from_notebook\n"
            f"open({str(tmp_path / 'found')!r}, 'w').write(repr(from_notebook(TrainConfig).lr))"
        )
        for source in (parameters, use):
            reply = client.execute_interactive(source, store_history=False, timeout=120)
            assert reply["content"]["status"] == "ok"
        assert (tmp_path / "found").read_text() == "0.5"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
