"""Protocols named after a data set stand beside the standard one: on screen, in pages, README and results."""

import dataclasses
import json

import pytest
import reporting_samples as samples
from IPython.core.formatters import DisplayFormatter
from nbformat import v4

from mmlib import files
from mmlib.metrics import paired_ranks, retrieval_ranks, summarise
from mmlib.metrics.protocols import PROTOCOLS, fold_ranks
from mmlib.metrics.summary import summarise_folds
from mmlib.reporting import results_section
from mmlib.reporting.publish import renewed
from mmlib.reporting.report import write_report

FOLDS = 5
SHOWN = {
    "standard": "coco · test split · protocol standard · 60 image and 180 caption queries · best checkpoint",
    "coco_5k": "coco · test split · protocol coco_5k · 60 image and 180 caption queries · best checkpoint",
    "coco_1k_folds": "coco · test split · protocol coco_1k_folds · 60 image and 180 caption queries"
    " · mean over 5 folds · best checkpoint",
}


@pytest.fixture
def coco(monkeypatch) -> dict:
    """A result on sixty images that pass for COCO's test split."""
    for name, images in (("coco_5k", samples.IMAGES), ("coco_1k_folds", samples.IMAGES // FOLDS)):
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(PROTOCOLS[name], images=images))
    sides = samples.embeddings(0.8)
    ranks = retrieval_ranks(*sides)
    found = [summarise(ranks), summarise(paired_ranks(*sides)), summarise(ranks, protocol="coco_5k")]
    found.append(summarise_folds(fold_ranks(*sides, folds=FOLDS)))
    result = samples.result(data=samples.DATA | {"name": "coco"})
    return result | {"protocols": {summary["protocol"]: summary for summary in found}}


@pytest.fixture
def shown(monkeypatch):
    """What a notebook's cell displays, as outputs of it."""

    def outputs(results: list[dict]) -> list:
        displayed = []
        monkeypatch.setattr("mmlib.reporting.results.display", lambda *parts: displayed.extend(parts))
        results_section(results)
        bundles = [DisplayFormatter().format(part) for part in displayed]
        return [v4.new_output("display_data", bundle, metadata=marks) for bundle, marks in bundles]

    return outputs


def test_the_notebook_shows_a_table_for_each_protocol_with_its_definition(coco, shown):
    texts = [output.data.get("text/markdown", output.data["text/plain"]) for output in shown([coco])]
    assert "demo-train finds a caption of theirs first" in texts.pop(0)
    definitions, tables = texts[::2], texts[1::2]
    assert [definition.split("**")[1] for definition in definitions] == list(SHOWN)
    assert "Mean over five folds of 1,000 images" in definitions[2]
    for table, scope in zip(tables, SHOWN.values(), strict=True):
        assert scope in table
        assert "95 % intervals · hits/n" in table
    folds = coco["protocols"]["coco_1k_folds"]["i2t"]
    assert f"{100 * folds['r1']['value']:.1f}" in tables[2]
    assert "of 36" in tables[2]  # the gallery of one fold


def test_runs_without_a_protocol_of_that_name_show_the_standard_alone(coco, shown):
    older = coco | {"run": "older", "protocols": {"standard": coco["protocols"]["standard"]}}
    assert len(shown([coco, older])) == len(shown([samples.result()])) == 3


def test_pages_readme_results_and_quotations_carry_them(coco, shown, repository):
    run = repository.run("demo-train")
    (run / "results.json").write_text(json.dumps(coco))
    repository.executed("demo", "03_evaluate", shown([coco]))
    folder = write_report("demo")
    page = (folder / "03_evaluate.html").read_text()
    readme = (folder / "README.md").read_text()
    quoted = renewed("<!-- results: demo -->\n<!-- end -->\n", {"demo": files.REPORTS / "demo"})
    for scope in SHOWN.values():
        assert scope in page
        assert scope in readme
        assert scope in quoted
    kept = json.loads((folder / "results.json").read_text())["metrics"]["demo-train"]["test"]
    assert kept["protocols"] == coco["protocols"]
