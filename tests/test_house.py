"""The house rules that a machine can check: imports, notebooks, parameter files, what is committed."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mmlib import files
from mmlib.config import CONFIG_OF_NOTEBOOK, TrainConfig, build, read_values, read_yaml
from mmlib.pipeline import plan
from mmlib.reporting.notebooks import cell_parameters, read_notebook

NOTEBOOKS = sorted(files.NOTEBOOKS.glob("*.ipynb"))
WITH_PARAMETERS = [path for path in NOTEBOOKS if path.stem in CONFIG_OF_NOTEBOOK]
EXPERIMENTS = sorted(path.name for path in files.PARAMS.iterdir() if path.is_dir())
# Each room may import those of its own line and the lines above; metrics needs the first line alone.
ORDER = (
    {"arrays", "files", "output"},
    {"config"},
    {"metrics"},
    {"data"},
    {"model"},
    {"analysis"},
    {"training"},
    {"search"},
    {"export"},
    {"reporting"},
    {"pipeline"},
    {"commands", "cli", "__main__"},
)
MODULES = {
    ".".join(part for part in path.relative_to(files.ROOT).with_suffix("").parts if part != "__init__"): path
    for path in sorted((files.ROOT / "mmlib").rglob("*.py"))
}


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@cache
def imported_modules(name: str, at_import: bool = False) -> set[str]:
    """The modules of mmlib that one imports: anywhere, or as it is itself imported."""
    tree, later, found = ast.parse(MODULES[name].read_text(encoding="utf-8")), set(), set()
    for node in ast.walk(tree):
        of_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or of_types:
            later |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if at_import and node in later:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {full if full in MODULES else node.module for full in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def room_of(module: str) -> str | None:
    return module.split(".")[1] if "." in module else None


def test_imports_go_one_way():
    level = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
    wrong = []
    for name in MODULES:
        room = room_of(name)
        assert room is None or room in level, f"{name}: a new room needs its place in ORDER"
        allowed = {None, *(other for other in level if room and level[other] <= level[room])}
        if room == "metrics":
            allowed = {None, "metrics", *ORDER[0]}
        found = sorted(other for other in imported_modules(name) if room_of(other) not in allowed)
        wrong += [f"{name} imports {other}" for other in found]
    assert wrong == []


def test_no_module_imports_itself_through_others():
    graph = {name: imported_modules(name, at_import=True) - {"mmlib"} for name in MODULES}
    TopologicalSorter(graph).prepare()  # a CycleError names the modules of the circle


def test_importing_the_package_loads_no_torch():
    code = "import sys, mmlib, mmlib.config, mmlib.metrics; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_kernel_that_trains_loads_nothing_slow_beside_torch():
    """The first cell of notebook 01, and the training itself, without what they use later or never."""
    slow = ["cv2", "faiss", "lightning_fabric", "open_clip", "scipy", "seaborn", "timm", "torch._dynamo"]
    slow += ["torchmetrics", "torchvision", "transformers", "webdataset", "papermill", "nbconvert"]
    imports = "".join(code_cells(files.NOTEBOOKS / "01_train.ipynb")[1]["source"]).split("\n\n")[0]
    code = f"{imports}\nimport sys, mmlib.training.start\nprint(*(n for n in {slow} if n in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin(path):
    for cell in code_cells(path):
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 12
        tree = ast.parse(source)  # fails on a magic or a shell command
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For)) for node in ast.walk(tree))
        assert "sys.path" not in source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_executed_in_order_without_what_is_volatile(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = code_cells(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert "execution" not in cell["metadata"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"


def test_every_notebook_but_the_first_has_parameters_and_a_config():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["00_start", *CONFIG_OF_NOTEBOOK]


def test_the_first_notebook_names_the_others_and_stores_what_a_fresh_clone_shows():
    text = (files.NOTEBOOKS / "00_start.ipynb").read_text(encoding="utf-8")
    assert all(f"({name}.ipynb)" in text for name in CONFIG_OF_NOTEBOOK)
    (cell,) = code_cells(files.NOTEBOOKS / "00_start.ipynb")
    (output,) = cell["outputs"]
    assert "There is no report yet." in "".join(output["data"]["text/markdown"])
    assert cell["metadata"]["tags"] == ["nbval-ignore-output"]  # a clone that is used has one


@pytest.mark.parametrize("path", WITH_PARAMETERS, ids=lambda p: p.stem)
def test_parameters_stand_in_the_second_cell_with_their_meaning(path):
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][1]
    assert cell["metadata"]["tags"] == ["parameters"]
    for line in "".join(cell["source"]).splitlines():
        assert "  # " in line, line


def defaults(config_class) -> dict:
    return {name: f.default for name, f in config_class.model_fields.items() if not f.is_required()}


# The cell of 05 is an ablation to look at; every other parameter with a default repeats it.
SHOWN_IN_THE_CELL = {"05_ablation": {"changes", "arms", "seeds", "claims"}}


@pytest.mark.parametrize("path", WITH_PARAMETERS, ids=lambda p: p.stem)
def test_a_cell_repeats_the_defaults_of_its_config(path):
    config_class, cell = CONFIG_OF_NOTEBOOK[path.stem], cell_parameters(path, read_notebook(path))
    known = defaults(config_class)
    shown = SHOWN_IN_THE_CELL.get(path.stem, set())
    assert {n: v for n, v in cell.items() if n in known and n not in shown and v != known[n]} == {}
    assert cell.items() <= build(config_class, cell).model_dump().items()


def test_the_quick_run_is_what_notebook_01_trains():
    path = files.NOTEBOOKS / "01_train.ipynb"
    quick, cell = read_yaml("params/quick/01_train.yaml"), cell_parameters(path, read_notebook(path))
    assert build(TrainConfig, quick) == build(TrainConfig, cell)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_parameter_files_give_only_what_differs_from_the_config(experiment):
    for path in (files.PARAMS / experiment).glob("*.yaml"):
        config_class = CONFIG_OF_NOTEBOOK[path.stem]
        known, given = defaults(config_class), read_values(config_class, read_yaml(path))
        shown = SHOWN_IN_THE_CELL.get(path.stem, set())
        assert [n for n, v in given.items() if n in known and v == known[n] and n not in shown] == [], path
        assert shown <= given.keys(), path  # else papermill would take the cell's


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_built_from_its_files(experiment):
    name, steps = plan(experiment, {})
    assert name == experiment
    for step in steps:
        build(CONFIG_OF_NOTEBOOK[step.name], step.known | step.parameters)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_parameter_files_open_with_the_command_that_runs_them(experiment):
    for path in (files.PARAMS / experiment).glob("*.yaml"):
        head = path.read_text(encoding="utf-8").split("\n\n")[0]
        comments = "\n".join(line for line in head.splitlines() if line.startswith("#"))
        assert "papermill notebooks/" in comments or "make report" in comments, path
        assert read_yaml(path)


def test_nothing_of_flickr8k_is_committed():
    try:
        tracked = subprocess.check_output(["git", "ls-files"], cwd=files.ROOT, text=True).splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert tracked
    for file in tracked:
        assert not file.endswith((".jpg", ".jpeg", ".private.html")), file
        assert "/private/" not in file, file
        assert "gallery" not in Path(file).name or "flickr" not in file, file
        assert Path(file).name not in {"Flickr8k.token.txt", "captions.txt", "dataset_flickr8k.json"}, file
