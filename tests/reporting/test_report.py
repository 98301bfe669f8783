"""A report's files: whole or not at all, in its own folder, from runs that are damaged or read-only."""

import base64
import builtins
import errno
import json
import os
import re

import nbformat
import pytest
from bs4 import BeautifulSoup

from mmlib import files
from mmlib.cli import main
from mmlib.reporting.report import write_report
from mmlib.training.runs import run_folder, run_state

PNG = b"\x89PNG\r\n\x1a\n of the "
NAMES = (
    "..",
    ".",
    "../demo/..",
    "/",
    "a b",
    "demo\n",
    ".git",
    "x" * 101,
    "javascript:1",
    "demo/\x1b[2J",
)


def figure(name: str, content: str) -> dict:
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": base64.b64encode(PNG + content.encode()).decode()},
        metadata={"mmlib": {"name": name}},
    )


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_folder_of_reports_ends_with_2_and_touches_nothing(repository, capsys, name):
    for file in ("README.md", "results.json"):
        (files.ROOT / file).write_text("mine")
    repository.run("demo-train")
    repository.executed("demo", "01_train", [])
    before = contents(files.ROOT)
    assert main(["report", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: experiment: expected a name of letters, digits, '-', '_' and dots inside")
    assert "\x1b" not in said
    assert contents(files.ROOT) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_run_elsewhere_is_never_looked_for(repository, name):
    with pytest.raises(ValueError, match="run: expected a name of letters, digits"):
        run_folder(name)
    assert run_state(name)[0] == "failed"
    repository.executed("demo", "03_evaluate", [], parameters=f"runs: list[str] = [{name!r}]  # runs")
    report = json.loads((write_report("demo") / "results.json").read_text())
    assert report["notebooks"]["03_evaluate"]["state"] == "failed"
    assert report["problems"][0].startswith("03_evaluate.ipynb: run: expected a name of letters, digits")
    assert report["runs"] == {}


DAMAGES = [  # file, what stands there, what stands there now, what is said of it
    ("history.jsonl", '"lr": 0.01', '"lr": "x"', "runs/demo-train/history.jsonl, line 1, is damaged: lr: "),
    ("history.jsonl", '"train_loss": ', '"loss": ', "damaged: train_loss: expected it, found nothing; bring"),
    ("history.jsonl", '"epoch": 2', '"epoch": 1', "line 2, is damaged: expected an epoch after 1, found 1"),
    ("history.jsonl", '"seconds": 3.0', '"seconds": NaN', "history.jsonl, line 1 is damaged: expected one"),
    ("results.json", '"hits": ', '"hits": -', "results.json is damaged: protocols.standard.i2t.r1.hits: "),
    ("results.json", '"standard": {', '"other": {', "expected numbers under the protocol 'standard', found"),
    ("environment.json", '"name": "shapes"', '"name": 7', "data.name: input should be a valid string, found"),
    ("environment.json", '"parent": null', '"parent": {"run": "../x"}', "parent.run: expected a name of let"),
    (
        "config.json",
        '"rsum"',
        '"loss"',
        "select_by: input should be 'rsum', 'mean_r1' or 'last', found 'loss'",
    ),
    ("status.json", '"reason": null', '"reason": 7', "status.json is damaged: reason: input should be a"),
    ("status.json", '"complete"', '"done"', "state: input should be 'running', 'complete', "),
]


def test_a_damaged_run_is_marked_and_the_rest_is_made(repository, capsys):
    repository.run("good")
    folder = repository.run("demo-train")
    for notebook, run in (("01_train", "good"), ("02_continue", "demo-train")):
        repository.executed("demo", notebook, [], parameters=f'run: str = "{run}"  # run')
    assert main(["report", "reports/demo/"]) == 0
    for file, old, new, said in DAMAGES:
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(old, new, 1))
        assert main(["report", "demo"]) == 1
        assert said in capsys.readouterr().err
        report = json.loads((files.REPORTS / "demo" / "results.json").read_text())
        assert said in report["reason"]
        assert said in report["runs"]["demo-train"]["reason"]
        assert report["metrics"]["good"]["test"]["run"] == "good"
        good, damaged = (
            BeautifulSoup((files.REPORTS / "demo" / f"{name}.html").read_text(), "html.parser")
            for name in report["notebooks"]
        )
        assert said in damaged.find(role="alert").text
        assert good.find(role="alert") is None
        assert "cannot be used" not in (files.REPORTS / "index.html").read_text()
        (folder / file).write_text(text)


def files_of_report() -> dict[str, bytes]:
    found = contents(files.REPORTS / "demo")
    return {name: content for name, content in found.items() if not name.startswith("executed")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, None], ids=["full", "read-only", "killed"])
def test_each_file_of_a_report_is_whole_whatever_stops_it(repository, monkeypatch, number):
    """What is there after a stop at any file is the old report's or the new one's, and names the file."""

    class Killed(BaseException):
        """No one has the time to tidy up."""

    def stop_at(victim: str):
        replace = os.replace

        def stopping(source, target):
            if target == files.REPORTS / "demo" / victim:
                raise OSError(number, os.strerror(number)) if number else Killed
            replace(source, target)

        return stopping

    def lay(content: str, *names: str) -> None:
        repository.executed("demo", "01_train", [figure(name, content) for name in names])

    run = repository.run("demo-train", reason="old")
    lay("old", "loss", "gone")
    write_report("demo")
    old = files_of_report()
    (run / "status.json").write_text(json.dumps({"state": "failed", "reason": "new"}))
    (run / "history.jsonl").write_text(
        (run / "history.jsonl").read_text().replace('"value": 0.', '"value": 0.1')
    )
    lay("new", "loss", "more")
    for victim in ("01_train.html", "figures/01_train-more.png", "results.json", "README.md"):
        with monkeypatch.context() as patch:
            patch.setattr("mmlib.files.os.replace", stop_at(victim))
            with pytest.raises(OSError if number else Killed) as caught:
                write_report("demo")
        if number:
            assert f"could not write reports/demo/{victim}: {os.strerror(number)}. " in str(caught.value)
        now = files_of_report()
        assert now.keys() >= old.keys()  # nothing goes before the new report is there
        assert now["figures/01_train-loss.png"] in (PNG + b"old", PNG + b"new")
        assert now["figures/01_train-gone.png"] == PNG + b"old"
        assert json.loads(now["results.json"])["state"] in ("complete", "failed")
        assert all(name in old or content.endswith(b"new") for name, content in now.items())
    write_report("demo")
    assert files_of_report().keys() == old.keys() - {"figures/01_train-gone.png"} | {
        "figures/01_train-more.png"
    }
    assert files_of_report()["README.md"] != old["README.md"]


def test_a_killed_run_on_a_read_only_disk_is_reported_elsewhere(repository, monkeypatch):
    repository.run("demo-train", state="running")
    repository.executed("demo", "01_train", [figure("loss", "run")])

    def refuse(function, writes):
        def guarded(path, *more, **named):
            if str(path).startswith(str(files.RUNS)) and writes(*more, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *more, **named)

        return guarded

    monkeypatch.setattr(
        builtins, "open", refuse(open, lambda mode="r", *_, **__: bool(set(mode) & set("wax+")))
    )
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(os, "open", refuse(os.open, lambda given, *_, **__: bool(given & flags)))
    for name in ("mkdir", "unlink", "replace", "rename", "utime"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name), lambda *_, **__: True))
    report = json.loads((write_report("demo") / "results.json").read_text())
    assert report["state"] == "killed"
    assert "ended without a word" in report["reason"]
    assert report["metrics"]["demo-train"]["epochs"] == 6


def test_every_committed_report_is_sound():
    from mmlib.training.stored import Report, read_stored

    found = [p for p in (files.ROOT / "reports").rglob("results.json") if "executed" not in p.parts]
    assert found
    for path in found:
        page = read_stored(path, Report)
        assert re.fullmatch("complete|failed|interrupted|killed|incomplete", page["state"])


@pytest.mark.parametrize("name", ["published", "Published", "index.html"])
def test_names_that_reports_has_for_itself_are_refused(name, repository, capsys):
    repository.executed(name, "01_train", [])
    before = sorted(files.ROOT.rglob("*"))
    assert main(["report", name]) == 2
    assert f"name of the published reports or the index, found {name!r}; rename" in capsys.readouterr().err
    assert sorted(files.ROOT.rglob("*")) == before
