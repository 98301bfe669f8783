"""The README agrees with what it speaks of: numbers, targets, experiments, dependencies."""

import json
import re
import tomllib

import pytest

from mmlib import paths
from mmlib.reporting import ablation_table, ablation_verdicts, results_table
from mmlib.reporting.overview import markdown_table

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
PUBLISHED = re.findall(r"<!-- results: ([\w-]+) -->", README)
ABLATIONS = re.findall(r"<!-- ablation: ([\w-]+) -->", README)


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_results_are_those_of_the_committed_report(experiment):
    report = json.loads((paths.REPORTS / experiment / "results.json").read_text(encoding="utf-8"))
    results = [metrics["test"] for metrics in report["metrics"].values()]
    for line in markdown_table(results_table(results).frame):
        assert line in README


@pytest.mark.parametrize("experiment", ABLATIONS)
def test_verdicts_and_tables_of_ablations_are_those_of_the_committed_report(experiment):
    report = json.loads((paths.REPORTS / experiment / "results.json").read_text(encoding="utf-8"))
    for record in report["ablations"].values():
        assert all(sentence in README for sentence in ablation_verdicts(record).sentences)
        assert all(line in README for line in markdown_table(ablation_table(record).frame))


def test_results_are_shown_at_all():
    assert "demo" in PUBLISHED


def test_make_targets_and_experiments_exist():
    makefile = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for experiment in set(re.findall(r"EXPERIMENT=([\w-]+)", README)):
        assert (paths.PARAMS / experiment).is_dir(), experiment


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (paths.ROOT / link).exists(), link


def test_every_dependency_is_explained():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + project["optional-dependencies"]["dev"]
    table = README[README.index("## Dependencies") :]
    for requirement in named:
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"\b{name}\b", table), name
