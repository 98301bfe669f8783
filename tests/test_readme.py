"""README and docs agree with what they speak of: numbers, commands, examples, links, dependencies.

Numbers are those of the published reports, which no command changes that README tells a visitor to run.
"""

import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from tiny_runs import TINY

from mmlib import files
from mmlib.cli import main
from mmlib.config import CONFIG_OF_NOTEBOOK, TrainConfig, build
from mmlib.pipeline import plan
from mmlib.reporting.notebooks import cell_parameters, read_notebook
from mmlib.reporting.publish import QUOTED, QUOTING, renewed
from mmlib.search import Indexed
from mmlib.training import train

README = (files.ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((files.ROOT / "docs").glob("*.md"))}
DOCS["README.md"] = README
DOCS |= {
    name: (files.ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")
}
TEXT = "\n".join(DOCS.values())
YAML = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.M | re.S)


def commands() -> list[str]:
    """What README and docs tell a person to type, each once, continued lines joined."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
    blocks = [block for language, block in fenced if language in ("", "sh")]
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S))
    found = [re.search(r"(?:^|/)(?:python|torchrun|mmlib|papermill|make|srun) \S.*", line) for line in lines]
    return list(dict.fromkeys(re.split(r"\s+#", match[0])[0].strip() for match in found if match))


def of_mmlib(command: str) -> list[str] | None:
    """The arguments of `python -m mmlib`, also under torchrun and of a bare `mmlib evaluate`."""
    words = shlex.split(command)
    return words[words.index("mmlib") + 1 :] if "mmlib" in words else None


def test_quoted_numbers_are_those_of_the_published_reports():
    for page in QUOTING:
        text = (files.ROOT / page).read_text(encoding="utf-8")
        quoted = [found[3] for found in QUOTED.finditer(text)]
        assert len(quoted) == len(set(quoted)) == text.count("<!-- end -->")
        assert renewed(text, {}, page) == text
    assert set(quoted) == {path.name for path in files.PUBLISHED.iterdir() if path.is_dir()}


def test_readme_is_two_screens():
    assert len(README.encode()) < 9_000


def test_the_commands_that_stand_in_readme_and_docs_are_found():
    found = commands()
    assert "python -m mmlib train params/demo/01_train.yaml -p lr 0.002" in found
    assert "make report EXPERIMENT=<experiment>" in found
    assert sum(command.startswith(("torchrun", "srun")) for command in found) >= 3
    assert len(found) >= 15


class Reached:
    """A `Retriever` that only notes."""

    def __init__(self, note):
        self.note, self.images = note, 0

    def index(self, folder):
        self.note(folder)
        return Indexed(0, 0, 0)

    def search(self, text, image, top):
        return self.note(text, image, top)[:0]


@pytest.mark.parametrize("command", [c for c in commands() if of_mmlib(c)])
def test_commands_of_mmlib_reach_their_work(command, tmp_path, monkeypatch):
    """Read by the real parser and built to the config; what would take long is noted instead of done."""
    reached = []

    def note(*given, **named):
        reached.append(given)
        return {"shards": {}} if len(given) == 2 else []

    embedded = np.eye(3), np.eye(3), np.arange(3), {}
    for work in ("training.train", "training.continue_training", "training.evaluate"):
        monkeypatch.setattr(f"mmlib.{work}", note)
    for work in ("data.shards.write_shards", "pipeline.run_experiment"):
        monkeypatch.setattr(f"mmlib.{work}", note)
    monkeypatch.setattr("mmlib.reporting.comparison.comparison_table", note)
    split = SimpleNamespace(images=range(3))
    data = SimpleNamespace(name="data", identity={}, split=lambda name: split)
    monkeypatch.setattr("mmlib.data.load_dataset", lambda config: note(config) or data)
    monkeypatch.setattr("mmlib.training.embed.ZeroShot.embed", lambda *given: note(*given) or embedded)
    monkeypatch.setattr("mmlib.search.Retriever.load", lambda run: Reached(note))
    monkeypatch.setattr("mmlib.reporting.explorer.write_search_page", note)
    monkeypatch.setattr("mmlib.export.export_onnx", lambda run, out: note(run) or out)
    monkeypatch.setattr("mmlib.pipeline.render_again", lambda name: note(name) or tmp_path)
    monkeypatch.setattr("mmlib.metrics.embeddings.results_text", lambda *given: note(*given) and "")
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text('{"problems": []}')  # of the report that is rendered again
    np.save("img.npy", np.eye(3))
    np.save("txt.npy", np.eye(3))
    np.save("map.npy", np.arange(3))
    example = "params/demo/01_train.yaml"
    arguments = [example if word == "<file>" else word for word in of_mmlib(command) if word != "…"]
    if arguments == ["evaluate"]:
        arguments = ["evaluate", "params/demo/03_evaluate.yaml"]  # the command by name alone
    assert main(arguments) == 0
    assert reached


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_targets_and_experiments_exist(command):
    _, target, *settings = shlex.split(command)
    makefile = (files.ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.*## ", makefile, re.M)
    given = dict(setting.split("=", 1) for setting in settings)
    if given.get("EXPERIMENT", "<").startswith("<"):
        return  # the default, or a placeholder
    words = shlex.split(given.get("ARGS", ""))
    overrides = dict(zip(words[1::3], words[2::3]))
    assert plan(given["EXPERIMENT"], overrides)[0] == given["EXPERIMENT"]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("papermill ")])
def test_papermill_commands_name_notebooks_and_parameters(command):
    _, notebook, _, *words = shlex.split(command)
    given = {name: yaml.safe_load(value) for name, value in zip(words[1::3], words[2::3])}
    path = files.ROOT / notebook
    build(CONFIG_OF_NOTEBOOK[path.stem], cell_parameters(path, read_notebook(path)) | given)


@pytest.mark.parametrize("given", re.findall(r"`(-p [^`\n]+)`", TEXT))
def test_parameters_that_stand_alone_are_those_of_a_training(given):
    words = shlex.split(given)
    names = [word for word in words[1::3] if word != "name"]  # "-p name value" says how it is done
    assert set(names) <= TrainConfig.model_fields.keys()


@pytest.mark.usefixtures("tiny_place")
@pytest.mark.parametrize("text", YAML)
def test_examples_of_parameter_files_run(text, tmp_path, monkeypatch):
    """As they stand, with what has no default; sizes are tiny, and addresses on the network left out."""
    example = yaml.safe_load(text)
    sizes = {n: v for n, v in TINY.items() if not n.startswith(("shapes_", "captions_")) and n not in example}
    local = {n: [w for w in v if "://" not in w] if isinstance(v, list) else v for n, v in example.items()}
    build(TrainConfig, sizes | example)
    few = [word for split in ("train", "val", "test") for word in ("-p", f"shapes_{split}", "24")]
    source = str(files.PARAMS / "demo" / "01_train.yaml")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert main(["shard", source, *few, "--out", str(tmp_path / "data" / "shards")]) == 0
    history = train(build(TrainConfig, sizes | local | {"epochs": 1, "batch_size": 24}), print)
    assert history[-1]["val"]["i2t"]["n"] == 24


def test_links_lead_somewhere():
    for name, text in DOCS.items():
        folder = files.ROOT if (files.ROOT / name).exists() else files.ROOT / "docs"
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / link).exists(), (name, link)


def test_the_citation_speaks_of_this_project():
    citation = yaml.safe_load((files.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert all(citation[key] for key in ("message", "title", "authors"))  # what the format asks for
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {key: citation[key] for key in ("version", "license")} == {
        key: project[key] for key in ("version", "license")
    }
    assert f"\n## {project['version']}" in DOCS["CHANGELOG.md"]


def test_every_dependency_is_explained():
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    table = DOCS["install.md"].split("## Dependencies")[1]
    for requirement in (*project["dependencies"], *extras["dev"], *extras["bench"]):
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"\b{name}\b", table), name


def test_the_architecture_names_every_module_and_no_other_file():
    text = DOCS["architecture.md"]
    tree = re.search(r"```\n(.*?)```", text, re.S)[1]
    room, named = "mmlib/", []
    for line in tree.splitlines():
        room = f"mmlib/{line.split()[0]}".replace("mmlib/mmlib/", "mmlib/") if line[0] != " " else room
        named += [room + line.split()[0]] if line[0] == " " else []
    modules = [str(p.relative_to(files.ROOT)) for p in sorted((files.ROOT / "mmlib").rglob("*.py"))]
    alone = ("__init__.py", "__main__.py")
    assert sorted(named) == [m for m in modules if not m.endswith(alone)]
    for path in re.findall(r"`((?:mmlib|tests)/[\w/.]+)`", text):
        assert (files.ROOT / path).is_file(), path
