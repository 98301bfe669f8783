"""Pages, reports and the index: self-contained, honest about state, private things left out."""

import base64
import io
import json
import re
import shlex

import nbformat
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from PIL import Image

from mmlib import files
from mmlib.reporting import loss_curves, show
from mmlib.reporting.notebooks import experiment_pages, read_notebook
from mmlib.reporting.pages import SCRIPT, render_notebook
from mmlib.reporting.publish import write_index
from mmlib.reporting.report import overview, write_report

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()
LOADS = re.compile(r"""(?:src|srcset|poster|data)\s*=\s*["']?\s*(?:https?:)?//|<link|@import|url\(""", re.I)


def figure(name: str, private: bool = False) -> dict:
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": PNG, "text/plain": f"[figure: {name} — a chart]"},
        metadata={
            "image/png": {"alt": f'{name} with "quotes" & <marks>'},
            "mmlib": {"name": name, "private": private},
        },
    )


def table(text: str) -> dict:
    return nbformat.v4.new_output("execute_result", data={"text/html": f"<p>{text}</p>"}, execution_count=1)


def failure(name: str = "ValueError", text: str = "lr <= 0") -> dict:
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=["\x1b[31mline\x1b[0m"])


def stream(text: str) -> dict:
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def report(experiment: str = "demo") -> dict:
    return json.loads((files.REPORTS / experiment / "results.json").read_text())


def test_a_page_loads_nothing_and_shows_everything(repository):
    repository.run("demo-train")
    script = nbformat.v4.new_output(
        "display_data", data={"application/javascript": "alert(1)", "text/plain": "x"}
    )
    repository.executed(
        "demo", "01_train", [figure("loss")], [table("a &lt; b")], [stream("epoch <1>")], [script]
    )
    page = (write_report("demo") / "01_train.html").read_text()
    assert not LOADS.search(page)
    assert "alert(1)" not in page
    assert "<h1>Title of 01_train</h1>" in page
    assert page.count("<summary>code of this page</summary>") == 1
    assert len(BeautifulSoup(page, "html.parser").find(class_="code").find_all("pre")) == 5
    assert re.findall(r"<script>(.*?)</script>", page, re.S) == [SCRIPT]
    assert "<p>a &lt; b</p>" in page
    assert "epoch &lt;1&gt;" in page
    assert BeautifulSoup(page, "html.parser").img["alt"] == 'loss with "quotes" & <marks>'
    assert '<span class="badge complete">complete</span>' in page
    assert 'role="alert"' not in page
    assert (files.REPORTS / "demo" / "figures" / "01_train-loss.png").read_bytes() == base64.b64decode(PNG)


def test_every_image_has_alt_text(repository):
    repository.run("demo-train")
    plain = nbformat.v4.new_output("display_data", data={"image/png": PNG, "text/plain": "<Figure>"})
    repository.executed("demo", "01_train", [figure("loss"), plain])
    page = (write_report("demo") / "01_train.html").read_text()
    images = BeautifulSoup(page, "html.parser").find_all("img")
    assert [image["alt"] for image in images] == ['loss with "quotes" & <marks>', "<Figure>"]


def test_private_figures_stay_on_the_private_page(repository):
    repository.run("demo-train")
    repository.executed("demo", "01_train", [figure("gallery", private=True)], [figure("loss")])
    folder = write_report("demo")
    shared, private = ((folder / f"01_train{kind}.html").read_text() for kind in ("", ".private"))
    assert shared.count(PNG) == 1
    assert "“gallery” is left out of this page" in shared
    assert "licence does not allow" in shared
    assert private.count(PNG) == 2
    assert "Private page." in private
    assert [p.name for p in (folder / "figures").glob("01*")] == ["01_train-loss.png"]
    assert [p.name for p in (folder / "private").iterdir()] == ["01_train-gallery.png"]
    repository.executed("demo", "01_train", [figure("loss")])
    write_report("demo")
    assert not (folder / "01_train.private.html").exists()


def test_a_page_that_may_be_passed_on_leads_to_no_private_explorer(repository):
    path = repository.executed("demo", "01_train", [figure("gallery", private=True)])
    for explorer, on_shared in (("explore.private.html", 0), ("explore.html", 1)):
        made = render_notebook(path, "demo", explorer=explorer)
        link = f'href="{explorer}"'.encode()
        assert made["01_train.html"].count(link) == on_shared
        assert made["01_train.private.html"].count(link) == 1


def test_a_failed_page_says_so_at_the_top_and_leads_on(repository):
    repository.run("demo-train")
    repository.params("demo", "02_continue")
    repository.executed("demo", "01_train", [stream("before")], [failure()])
    page = (write_report("demo") / "01_train.html").read_text()
    top = page[: page.index("<main>")]
    assert "State: failed – cell 3 of 3 (Work): ValueError: lr &lt;= 0" in top
    assert "02_continue (not run)" in top
    assert "../index.html" in top
    assert report()["state"] == "failed"


@pytest.mark.parametrize(
    ("outputs", "counted", "run", "state", "reason"),
    [
        (
            [[failure("KeyboardInterrupt", "")]],
            True,
            "complete",
            "interrupted",
            "stopped by the user in cell 2",
        ),
        ([[]], False, "complete", "killed", "ended without an error at cell 2 of 2 (Work)"),
        ([[]], True, "interrupted", "interrupted", "run demo-train is interrupted"),
        ([[]], True, "running", "killed", "run demo-train: a process of it ended without a word"),
        ([[]], True, "complete", "complete", None),
    ],
)
def test_state_is_told_from_cells_and_runs(repository, outputs, counted, run, state, reason):
    repository.run("demo-train", state=run)
    repository.executed("demo", "01_train", *outputs, counted=counted)
    (page,) = experiment_pages("demo")
    assert page.state == state
    assert (reason in page.reason) if reason else (page.reason is None)


def test_a_damaged_copy_is_marked_and_the_rest_is_rendered(repository):
    repository.run("demo-train")
    repository.executed("demo", "01_train", [])
    repository.executed("demo", "02_continue", []).write_text('{"cells": ')
    folder = write_report("demo")
    assert (folder / "01_train.html").exists()
    assert report()["state"] == "failed"
    assert "02_continue.ipynb cannot be read as a notebook" in report()["reason"]
    with pytest.raises(FileNotFoundError, match=r"expected a notebook at .*03.ipynb, found nothing"):
        render_notebook(folder / "executed" / "03.ipynb", "demo")
    with pytest.raises(ValueError, match=r"02_continue.ipynb cannot be read as a notebook .* run it again"):
        read_notebook(folder / "executed" / "02_continue.ipynb")


def test_results_json_keeps_metrics_apart_from_timings(repository):
    folder = repository.run("demo-train")
    repository.executed("demo", "01_train", [])
    write_report("demo")
    first = report()
    assert first["metrics"]["demo-train"]["test"]["split"] == "test"
    assert first["metrics"]["demo-train"]["best"][0]["run"] == "demo-train"
    assert first["timings"]["demo-train"]["seconds"] == 18.0
    assert first["provenance"]["demo-train"]["commit"] == "abc"
    slower = (folder / "history.jsonl").read_text().replace('"seconds": 3.0', '"seconds": 9.0')
    (folder / "history.jsonl").write_text(slower)
    write_report("demo")
    assert report()["metrics"] == first["metrics"]
    assert report()["timings"]["demo-train"]["seconds"] == 54.0


def test_a_report_survives_a_broken_run_folder(repository):
    folder = repository.run("demo-train", state="failed", reason="disk full")
    (folder / "history.jsonl").write_text('{"epoch": \n')
    (folder / "environment.json").unlink()
    repository.executed("demo", "01_train", [])
    write_report("demo")
    problems = " ".join(report()["runs"]["demo-train"]["problems"])
    assert "history.jsonl, line 1 is damaged" in problems
    assert "environment.json, found nothing there" in problems
    assert report()["reason"] == "01_train: run demo-train: disk full"
    write_index()


def test_nothing_to_report_is_an_error(repository):
    with pytest.raises(FileNotFoundError, match=r"nothing to report on 'nope': expected params/nope/\*.yaml"):
        write_report("nope")


def test_the_index_shows_numbers_with_scope_and_marks_what_is_broken(repository):
    repository.run("demo-train")
    repository.executed("demo", "01_train", [])
    repository.executed("demo", "04_analysis", [figure("recall")])
    repository.run("new-train", result=False)
    repository.executed("new", "01_train", [], parameters='run: str = "new-train"  # run')
    for experiment in ("demo", "new"):
        write_report(experiment)
    for name, text in (("broken", "{"), ("partial", '{"state": "complete"}')):
        (files.REPORTS / name).mkdir()
        (files.REPORTS / name / "results.json").write_text(text)
    (files.REPORTS / "empty").mkdir()
    page = write_index().read_text()
    assert not LOADS.search(page)
    cards = {m[1]: m[0] for m in re.finditer(r"<article.*?<h2>(?:<a[^>]*>)?(\w+).*?</article>", page, re.S)}
    assert sorted(cards) == ["broken", "demo", "empty", "new", "partial"]
    assert "shapes · test split · protocol standard · 60 image and 180 caption queries" in cards["demo"]
    assert '<a href="demo/04_analysis.html">' in cards["demo"]
    assert 'alt="Validation recall by epoch"' in cards["demo"]
    assert "<img" not in cards["new"]
    assert "not a test result" in cards["new"]
    assert "unreadable" in cards["broken"]
    assert "unreadable" in cards["partial"]
    assert "its report is not whole" in cards["empty"]


def test_an_index_over_nothing_says_how_to_begin(repository):
    assert "No experiment has been run yet" in write_index().read_text()


def test_show_displays_a_comparable_output_with_alt_text(history, monkeypatch):
    shown = []
    monkeypatch.setattr("mmlib.reporting.style.display", lambda data, **more: shown.append((data, more)))
    show(loss_curves(history, "shapes"), "loss", private=True)
    ((data, more),) = shown
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"].startswith("[figure: loss — Line chart of the training loss by epoch on shapes")
    assert more["raw"] is True
    mark = more["metadata"]["mmlib"]
    assert (mark["name"], mark["private"]) == ("loss", True)
    light, dark = (Image.open(io.BytesIO(png)).convert("RGB") for png in shown_pngs(data, mark))
    assert light.size == dark.size
    assert (light.getpixel((0, 0)), dark.getpixel((0, 0))) == ((255, 255, 255), (20, 24, 29))
    assert more["metadata"]["image/png"]["alt"] in data["text/plain"]


def shown_pngs(data: dict, mark: dict) -> tuple[bytes, bytes]:
    return data["image/png"], base64.b64decode(mark["dark"])


def test_what_came_out_stands_first_and_how_to_make_it_again_last(repository):
    repository.run("demo-train")
    path = repository.executed("demo", "01_train", [stream("at work")], [table("curves")], [table("numbers")])
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["papermill"] = {"parameters": {"run": "demo-train", "lr": 0.1, "arms": ["a b"]}}
    for cell, tag in zip(notebook.cells[-2:], ("second", "first")):
        cell.metadata["tags"] = [tag]
    nbformat.write(notebook, path)
    page = (write_report("demo") / "01_train.html").read_text()
    parts = ("numbers", "curves", "How it was made</h2>", "at work", "Reproduce this page</h2>")
    places = [page.index(part, page.index("<main>")) for part in parts]
    assert places == sorted(places)
    assert '<a href="#part-1">How it was made</a> <a href="#part-2">Work</a>' in page
    again = BeautifulSoup(page, "html.parser").find(class_="again").text
    arguments = """-p arms '"'"'["a b"]'"'"' -p lr 0.1 -p run demo-train"""
    assert f"make report EXPERIMENT=demo ARGS='{arguments}'\n" in again
    assert """01_train.ipynb out.ipynb -y '{"arms": ["a b"]}' -p lr 0.1 -p run demo-train""" in again
    assert "shapes, fingerprint 0123456789abcdef" in again
    assert "abc" in again


def test_parameters_given_beside_the_yaml_are_part_of_what_makes_a_report_again(repository, monkeypatch):
    folder = files.PARAMS / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "01_train.yaml").write_text("run: demo-train\nlr: 5e-3\n")
    repository.run("demo-train")
    path = repository.executed("demo", "01_train", [], [])
    same = {"run": "demo-train", "lr": 0.005, "overwrite": True}
    more = {"data_root": "my $photos/`a` 'b'", "epochs": 3}
    beside = ["-p", "data_root", more["data_root"], "-p", "epochs", "3"]
    for given, arguments in ((same, []), (same | more, [beside])):
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["papermill"] = {"parameters": given}
        nbformat.write(notebook, path)
        report = write_report("demo")
        command = json.loads((report / "results.json").read_text())["command"]
        assert f"\n    {command}\n" in (report / "README.md").read_text()
        page = BeautifulSoup((report / "01_train.html").read_text(), "html.parser")
        assert page.find(class_="again").pre.text == command
        words = shlex.split(command)
        assert words[:3] == ["make", "report", "EXPERIMENT=demo"]
        # As make hands ARGS to the shell: with each $$ as $, cut into words there.
        assert [shlex.split(word.removeprefix("ARGS=").replace("$$", "$")) for word in words[3:]] == arguments


def test_a_cell_can_be_folded_under_its_first_comment(repository):
    repository.run("demo-train")
    path = repository.executed("demo", "01_train", [table("long")], [])
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells[-2:]:
        cell.source, cell.metadata["tags"] = "# More <of> it\nwork()", ["fold"]
    nbformat.write(notebook, path)
    page = (write_report("demo") / "01_train.html").read_text()
    (fold,) = BeautifulSoup(page, "html.parser").find_all(class_="more")  # not of what showed nothing
    assert fold.summary.text == "More <of> it"
    assert "long" in fold.text


def test_show_refuses_names_that_are_no_file_names():
    with pytest.raises(ValueError, match=r"figure name: expected a name of letters, digits.*found '../x'"):
        show(Figure(), "../x")


def content(results: list[dict], **more) -> dict:
    """What `results.json` of a report says, as far as its README shows it."""
    metrics = {f"{number}": {"test": result} for number, result in enumerate(results)}
    report = {"experiment": "demo", "state": "complete", "reason": None, "notebooks": {}, "ablations": {}}
    return report | {"metrics": metrics} | more


def test_the_readme_of_a_report_shows_state_table_and_shareable_pages(result):
    files = ["04_analysis.html", "04_analysis.private.html", "figures/04_analysis-loss.png"]
    pages = {"04_analysis": {"page": "04_analysis.html"}, "05_ablation": {"page": None}}
    reason = "03_evaluate: no | space"
    text = overview(content([result], state="failed", reason=reason, notebooks=pages), files)
    assert "State: **failed** (03_evaluate: no | space)." in text
    assert "[04_analysis](04_analysis.html)" in text
    assert ".private.html" not in text
    assert "05_ablation" not in text
    assert "![Training loss by epoch](figures/04_analysis-loss.png)" in text
    part = result["protocols"]["standard"]["i2t"]["r1"]
    assert f"{part['hits']}/{result['protocols']['standard']['i2t']['n']}" in text


def test_the_readme_keeps_runs_of_different_data_in_tables_of_their_own(result):
    other = result | {"data": result["data"] | {"fingerprint": "f" * 16}}
    assert overview(content([result, other]), []).count("| run |") == 2
    text = overview(content([result | {"protocols": {}}]), [])
    assert "has no result under protocol 'standard'" in text
