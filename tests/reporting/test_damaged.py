"""Damaged run files and executed copies: a report all the same, or an error that names the file."""

import json
import shutil
from random import Random

import numpy as np
import pytest
import reporting_samples as samples
from damages import damage
from nbformat.v4 import new_output
from test_ablation import record
from test_diagnosis import dataset
from test_foreign import PNG

from mmlib import files
from mmlib.analysis.diagnosis import diagnose, queries_of
from mmlib.files import write_json
from mmlib.metrics import retrieval_ranks, summarise
from mmlib.reporting import (
    ablation_figure,
    ablation_table,
    ablation_verdicts,
    best_epochs_table,
    calibration_figure,
    gallery_figures,
    hubness_table,
    loss_curves,
    lr_curve,
    people_section,
    recall_by_group_figure,
    recall_curves,
    results_figure,
    results_table,
    similarity_figure,
    slots_section,
    tuning_table,
)
from mmlib.reporting.publish import write_index
from mmlib.reporting.report import write_report
from mmlib.training.ablation import read_ablation
from mmlib.training.runs import (
    read_arrays,
    read_diagnosis,
    read_history,
    read_queries,
    read_result,
    run_folder,
    stored_environment,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of letters that no font has
RUN = "demo-train"


@pytest.fixture
def world(repository):
    """An experiment of two runs and an ablation, everything evaluated."""
    image_ND, text_MD, map_M = samples.embeddings(0.8)
    ranks = retrieval_ranks(image_ND, text_MD, map_M)
    for run in (RUN, "demo-continue"):
        folder = repository.run(run)
        result = samples.result(run) | {"protocols": {"standard": summarise(ranks)}}
        (folder / "results.json").write_text(json.dumps(result))
        np.savez(folder / "gallery.npz", **samples.gallery())
        np.savez(folder / "slots.npz", **samples.slots())
    found = diagnose(dataset(), "test", image_ND, text_MD, ranks)
    tau = {
        "tau": 0.3,
        "low": 0.2,
        "high": 0.4,
        "variant": "c",
        "n": 9,
        "own_left_out": 4,
        "unscored": {"x": 1},
    }
    people = {"caption_numbers": "the token file", "expert": tau, "crowdflower": None, "human_aware": None}
    write_json(run_folder(RUN) / "diagnosis.json", found | {"data": samples.DATA, "people": people})
    write_json(run_folder(RUN) / "queries.json", queries_of(dataset(), "test"))
    ablation = record()
    (files.RUNS / "abl").mkdir()
    (files.RUNS / "abl" / "status.json").write_text('{"state": "complete", "reason": null}')
    write_json(run_folder("abl") / "ablation.json", ablation)
    for arm in ablation["arms"]:
        for run in arm["runs"]:
            repository.run(run["run"], run["state"])
    mark = {"image/png": {"alt": "chart"}, "mmlib": {"name": "loss", "private": False}}
    outputs = [
        new_output("display_data", data={"image/png": PNG, "text/plain": "x"}, metadata=mark),
        new_output("display_data", data={"text/html": "<p>a</p>"}, metadata={"mmlib": {"private": True}}),
        new_output("error", ename="ValueError", evalue="x", traceback=["x"]),
    ]
    repository.executed("demo", "01_train", outputs[:2])
    both = f'runs: list[str] = ["{RUN}", "demo-continue"]  # runs'
    repository.executed("demo", "03_evaluate", outputs[:1], outputs[2:], parameters=both)
    repository.executed("demo", "05_ablation", outputs[:1], parameters='run: str = "abl"  # name')
    return files.ROOT


def drawn(*figures) -> None:
    for figure in figures:
        figure.draw_without_rendering()


def use_history():
    history = read_history(RUN)
    if not history:  # cut within its first line, as by a crash
        return
    best_epochs_table(history, "shapes")
    drawn(loss_curves(history, "shapes"), recall_curves(history, "shapes"), lr_curve(history))


def use_result():
    result = read_result(RUN)
    results_table([result])
    drawn(results_figure([result]))


def use_diagnosis():
    diagnosis = read_diagnosis(RUN)
    hubness_table(diagnosis)
    people_section(diagnosis)
    drawn(*(draw(diagnosis) for draw in (recall_by_group_figure, similarity_figure, calibration_figure)))


def use_ablation():
    found = read_ablation("abl")
    if found:
        for show in (ablation_table, tuning_table, ablation_verdicts):
            repr(show(found))
        drawn(ablation_figure(found))


def use_gallery():
    drawn(*gallery_figures(read_arrays(RUN, "gallery"), samples.result()).values())


USES = {  # what notebooks make of each file
    f"{RUN}/history.jsonl": use_history,
    f"{RUN}/results.json": use_result,
    f"{RUN}/environment.json": lambda: stored_environment(RUN)["data"]["name"].upper(),
    f"{RUN}/diagnosis.json": use_diagnosis,
    f"{RUN}/queries.json": lambda: read_queries(RUN),
    f"{RUN}/gallery.npz": lambda: drawn(
        *gallery_figures(read_arrays(RUN, "gallery"), samples.result()).values()
    ),
    f"{RUN}/slots.npz": lambda: slots_section(read_arrays(RUN, "slots"), samples.result()),
    "abl/ablation.json": use_ablation,
}


def damaged_again_and_again(files: list, rounds: int, seed: int):
    """Damages one of the files, lets the caller work with it, and mends it; yields file and damage."""
    random = Random(seed)
    for _ in range(rounds):
        path = random.choice(files)
        keep = path.read_bytes()
        yield path, damage(path, random)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(keep)


def read_damaged(rounds: int, seed: int) -> int:
    damaged = [files.RUNS / name for name in USES]
    refused = 0
    for path, done in damaged_again_and_again(damaged, rounds, seed):
        try:
            USES[path.relative_to(files.RUNS).as_posix()]()
        except Exception as error:
            named = isinstance(error, ValueError | FileNotFoundError) and path.name in str(error)
            if not named:
                raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
            refused += 1
    return refused


def report_damaged(rounds: int, seed: int) -> int:
    damaged = [*files.RUNS.rglob("*.json*"), *files.REPORTS.rglob("*.ipynb")]
    damaged += [files.REPORTS / "demo" / "results.json"] * 4
    marked = 0
    for path, done in damaged_again_and_again(damaged, rounds, seed):
        try:
            write_index()
            folder = write_report("demo")
            write_index()
        except Exception as error:
            if isinstance(error, IsADirectoryError) and f"could not write {files.shown(path)}" in str(error):
                continue  # a folder in the place of the report's own file
            raise AssertionError(f"{done}: {type(error).__name__}: {error}") from error
        report = json.loads((folder / "results.json").read_text())
        assert (folder / "README.md").read_text().startswith("# demo\n")
        marked += bool(report["problems"])
    return marked


def test_what_notebooks_read_is_sound_or_refused_by_name(world):
    for use in USES.values():
        use()
    assert read_damaged(60, seed=1) > 30


def test_a_report_is_made_of_whatever_is_there(world):
    write_report("demo")
    assert json.loads((files.REPORTS / "demo" / "results.json").read_text())["problems"] == []
    assert report_damaged(8, seed=2) > 2


@pytest.mark.slow
def test_many_damages(world):
    write_report("demo")
    assert read_damaged(1500, seed=3) > 700
    assert report_damaged(300, seed=4) > 80
