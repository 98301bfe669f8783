"""A repository in a temporary folder: parameters, notebooks and runs that no training made."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import reporting_samples as samples
from nbformat import v4

from mmlib import files


class Repository:
    """Writes parts of a repository under the monkeypatched paths."""

    def run(self, name: str, state: str = "complete", reason: str | None = None, result: bool = True) -> Path:
        folder = files.RUNS / name
        folder.mkdir(parents=True)
        history = samples.history()
        rows = [row for row in history if row["run"] == "demo-train"] if name == "demo-train" else history
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        contents = {
            "config.json": {"run": name, "select_by": "rsum"},
            "environment.json": samples.ENVIRONMENT,
            "status.json": {"state": state, "reason": reason, "epoch": 6, "epochs": 6},
        }
        if result:
            contents["results.json"] = samples.result(name)
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content))
        return folder

    def notebook(self, name: str, *sources: str, parameters: str = 'run: str = "demo-train"  # run') -> Path:
        cells = [
            v4.new_markdown_cell(f"# Title of {name}\n\nWhat it does."),
            v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            v4.new_markdown_cell("## Work"),
            *[v4.new_code_cell(source) for source in sources],
        ]
        notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": PYTHON})
        files.NOTEBOOKS.mkdir(exist_ok=True)
        nbformat.write(notebook, files.NOTEBOOKS / f"{name}.ipynb")
        return files.NOTEBOOKS / f"{name}.ipynb"

    def executed(self, experiment: str, name: str, *outputs: list, counted: bool = True, **more) -> Path:
        """An executed copy with one code cell for each list of outputs."""
        source = self.notebook(name, *(f"work({n})" for n in range(len(outputs))), **more)
        notebook = nbformat.read(source, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for number, (cell, made) in enumerate(zip(code, [[], *outputs], strict=True), 1):
            cell.outputs = [v4.output_from_msg(m) if "msg_type" in m else m for m in made]
            cell.execution_count = number if counted or number == 1 else None
        path = files.REPORTS / experiment / "executed" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        return path

    def params(self, experiment: str, name: str, text: str = "") -> Path:
        folder = files.PARAMS / experiment
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
        return folder


KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PYTHON = {"name": "python"}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Repository:
    root = tmp_path.resolve()
    monkeypatch.setattr(files, "ROOT", root)
    for name in ("PARAMS", "NOTEBOOKS", "RUNS", "REPORTS"):
        monkeypatch.setattr(files, name, root / name.lower())
    monkeypatch.setattr(files, "PUBLISHED", root / "reports" / "published")
    monkeypatch.setenv("MMLIB_ROOT", str(root))
    return Repository()


@pytest.fixture(scope="session")
def history() -> list[dict]:
    return samples.history()


@pytest.fixture(scope="session")
def result() -> dict:
    return samples.result()


@pytest.fixture(scope="session")
def gallery() -> dict[str, np.ndarray]:
    return samples.gallery()
