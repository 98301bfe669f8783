"""Publishing: complete reports alone, nothing private, whole or not at all, and README renewed with them."""

import base64
import errno
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from random import Random

import nbformat
import pytest
from browser import needs_browser, open_page
from damages import damage
from faults.events import watched
from PIL import Image
from reporting_samples import result

from mmlib import files
from mmlib.cli import main
from mmlib.files import InUse, locked
from mmlib.reporting.publish import QUOTING, newest_report, publish, write_index
from mmlib.reporting.report import write_report


def figure(name: str, private: bool = False) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "png")
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": f"[figure: {name}]"}
    marks = {"image/png": {"alt": name}, "mmlib": {"name": name, "private": private}}
    return nbformat.v4.new_output("display_data", data=data, metadata=marks)


@pytest.fixture
def report(repository):
    """A complete local report, with a shareable and a private figure, and a README that quotes it."""
    repository.run("demo-train")
    figures = [figure("loss"), figure("photos", private=True)]
    repository.executed("demo", "03_evaluate", figures)
    (files.ROOT / "docs").mkdir()
    for page in QUOTING:
        (files.ROOT / page).write_text("Ours:\n\n<!-- results: demo -->\nold\n<!-- end -->\n\nMore.\n")
    return write_report("demo")


def files_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_complete_report_is_published_without_what_is_private(report, capsys):
    assert (report / "03_evaluate.private.html").is_file()
    assert (report / "private" / "03_evaluate-photos.png").is_file()
    assert main(["publish", "demo"]) == 0
    assert "published: reports/published/demo" in capsys.readouterr().out
    published = ["03_evaluate.html", "README.md", "figures/03_evaluate-loss.png"]
    assert files_below(files.PUBLISHED / "demo") == [*published, "results.json"]
    for file in published:
        assert (files.PUBLISHED / "demo" / file).read_bytes() == (report / file).read_bytes()
    readme = (files.ROOT / "README.md").read_text(encoding="utf-8")
    assert (files.ROOT / "docs" / "results.md").read_text(encoding="utf-8") == readme
    hits = json.loads((report / "results.json").read_text())["metrics"]["demo-train"]["test"]["protocols"]
    hits = hits["standard"]["i2t"]["r1"]["hits"]
    assert readme.startswith("Ours:\n\n<!-- results: demo -->\n| run | direction |")
    assert f"{hits}/60" in readme
    assert readme.endswith("60 image and 180 caption queries · best checkpoint of each run"
                           " · 95 % intervals · hits/n\n<!-- end -->\n\nMore.\n")  # fmt: skip


def test_links_lead_somewhere_in_the_local_and_in_the_published_reports(report):
    publish("demo")
    local, published = write_index(), files.PUBLISHED / "index.html"
    assert 'href="published/index.html"' in local.read_text()
    assert "published reports" not in published.read_text()
    assert re.findall(r"<h2>.*?>(\w+)</a>", local.read_text()) == ["demo"]
    for folder in (files.REPORTS, files.PUBLISHED):
        for page in (folder / "index.html", *(folder / "demo").glob("*.html"), folder / "demo" / "README.md"):
            text = page.read_text(encoding="utf-8")
            links = re.findall(r'href="([^"#:]+)"|\]\(([^)#:]+)\)', text)
            assert links, page
            for link in links:
                assert (page.parent / "".join(link)).is_file(), (page, link)


def test_what_is_missing_or_incomplete_is_refused_and_what_stands_is_kept(report, repository):
    publish("demo")
    (files.PUBLISHED / "demo" / "README.md").write_text("stands")
    readme = (files.ROOT / "README.md").read_text()
    run_it = "make report EXPERIMENT="
    with pytest.raises(FileNotFoundError, match=rf"'nope': expected reports/nope/results.json.*{run_it}nope"):
        publish("nope")
    assert not (files.REPORTS / "nope").exists()
    with pytest.raises(ValueError, match=r"expected a name of letters.*found '../demo'"):
        publish("../demo")
    (report / "03_evaluate.html").rename(report / "away.html")
    with pytest.raises(FileNotFoundError, match=r"'demo': expected reports/demo/03_evaluate.html, found no"):
        publish("demo")
    (report / "away.html").rename(report / "03_evaluate.html")
    repository.params("demo", "04_analysis")
    write_report("demo")
    with pytest.raises(ValueError, match=rf"reports/demo to be 'incomplete' \(04_analysis has.*{run_it}demo"):
        publish("demo")
    (report / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"reports/demo/results.json is damaged"):
        publish("demo")
    assert (files.PUBLISHED / "demo" / "README.md").read_text() == "stands"
    assert (files.ROOT / "README.md").read_text() == readme


def test_a_picture_that_the_report_did_not_make_is_not_published(report):
    (report / "figures" / "holiday.png").write_bytes(b"private")
    publish("demo")
    there = sorted(path.name for path in (files.PUBLISHED / "demo" / "figures").iterdir())
    assert there == ["03_evaluate-loss.png"]


def test_a_comment_without_its_end_costs_no_text(report):
    text = "<!-- results: demo -->\nold\n\nProse.\n\n<!-- results: demo -->\nold\n<!-- end -->\n"
    (files.ROOT / "README.md").write_text(text)
    expected = r"README.md: expected <!-- end --> after <!-- results: demo -->, found none before the next"
    with pytest.raises(ValueError, match=expected):
        publish("demo")
    assert (files.ROOT / "README.md").read_text() == text
    assert not (files.PUBLISHED / "demo").exists()


def test_a_readme_that_quotes_what_a_report_lacks_is_not_touched(report):
    text = "<!-- ablation: demo -->\nold\n<!-- end -->\n"
    (files.ROOT / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README.md quotes the ablation of 'demo', which reports/demo"):
        publish("demo")
    assert (files.ROOT / "README.md").read_text() == text
    assert not (files.PUBLISHED / "demo").exists()


def test_an_experiment_at_work_is_neither_published_nor_rendered(report, capsys):
    with locked(report, "experiment 'demo'"):
        who = rf"experiment 'demo' is being written by another process \(process {os.getpid()} on "
        with pytest.raises(InUse, match=who):
            publish("demo")
        before = (report / "results.json").stat().st_mtime_ns
        assert main(["report", "demo"]) == 1
        assert f"process {os.getpid()} on" in capsys.readouterr().err
        assert (report / "results.json").stat().st_mtime_ns == before
    assert main(["report", "demo"]) == 0


def ignored(*files: str) -> set[str]:
    found = subprocess.run(
        ["git", "check-ignore", "--no-index", *files], cwd=ROOT, text=True, capture_output=True
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    return set(found.stdout.split())


ROOT = files.ROOT  # of the real repository, whose .gitignore is asked about


def test_git_ignores_local_reports_and_what_is_private():
    local = {
        "reports/index.html",
        "reports/demo/01_train.html",
        "reports/demo/.lock",
        "reports/mine/README.md",
    }
    never = {f"reports/published/{name}" for name in ("demo/private/a.png", "demo/01.private.html", ".lock")}
    never |= {"reports/published/demo/executed/01_train.ipynb", ".bench/faiss", "runs/a/last.pt"}
    published = {
        f"reports/published/{name}" for name in ("index.html", "demo/01_train.html", "new/README.md")
    }
    assert ignored(*local, *never, *published) == local | never


def test_a_report_that_names_or_links_what_lies_elsewhere_publishes_nothing_of_it(report):
    secret = files.ROOT / "secret.png"
    secret.write_bytes(b"secret")
    publish("demo")
    before = files_below(files.PUBLISHED)
    (report / "figures" / "03_evaluate-x.png").symlink_to(secret)
    with pytest.raises(FileNotFoundError, match=r"03_evaluate-x\.png, found one that lies elsewhere"):
        publish("demo")
    (report / "figures" / "03_evaluate-x.png").unlink()
    (report / "figures").rename(files.ROOT / "pictures")
    (report / "figures").symlink_to(files.ROOT / "pictures")
    with pytest.raises(FileNotFoundError, match="found one that lies elsewhere"):
        publish("demo")
    with pytest.raises(OSError, match=r"could not write .*demo/figures: .*A symbolic link lies in its place"):
        write_report("demo")
    assert files_below(files.PUBLISHED) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("notebooks", {"../x": {"page": None}}),
        ("notebooks", {"a": "complete"}), ("notebooks", []), ("metrics", {"a": {}}), ("metrics", None),
        ("ablations", {"a": {"arms": []}}), ("state", ["complete"]), ("reason", {}),
    ],
)  # fmt: skip
def test_a_damaged_report_is_refused_by_name_before_anything_is_changed(field, value, report):
    results = report / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=r"results\.json|only a complete report|notebook: expected a name"):
        publish("demo")
    assert not (files.PUBLISHED / "demo").exists()
    assert "old" in (files.ROOT / "README.md").read_text()


def test_what_is_published_is_on_the_disk_before_it_takes_its_place(report, monkeypatch):
    flushed, rename = set(), Path.rename
    fsync = os.fsync

    def synced(descriptor):
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def renamed(path, target):
        if path.name == ".new":
            assert {found.stat().st_ino for found in (path, *path.rglob("*"))} <= flushed
            flushed.add("all")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    publish("demo")
    assert "all" in flushed


@pytest.mark.parametrize("name", ["README.md", "03_evaluate-loss.png", "results.json"])
def test_a_disk_that_is_full_is_told_with_the_file_and_the_old_report_stands(name, report, monkeypatch):
    publish("demo")
    before = {file: (files.PUBLISHED / file).read_bytes() for file in files_below(files.PUBLISHED)}

    def happens(number: int, kind: str, file: str) -> None:
        if (kind, file) == ("write", name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    message = rf"could not write .*demo/.*{name}: Input/output error"
    with watched([files.PUBLISHED], happens), pytest.raises(OSError, match=message):
        publish("demo")
    assert {file: (files.PUBLISHED / file).read_bytes() for file in files_below(files.PUBLISHED)} == before


def test_the_newest_report_is_shown_with_links_from_the_notebooks(report):
    publish("demo")
    old = files.REPORTS / "old"
    old.mkdir()
    (old / "results.json").write_text("{")
    os.utime(old / "results.json", (0, 0))
    text = newest_report().data
    assert text.startswith("# demo\n\nState: **complete**.")
    assert "| demo-train | image → text |" in text
    (link,) = re.findall(r"\[03_evaluate\]\((.*)\)", text)
    assert (files.NOTEBOOKS / link).resolve() == report / "03_evaluate.html"
    os.utime(report / "results.json", (0, 0))
    os.utime(old / "results.json", (1, 1))
    assert re.match("The newest report cannot be read: .*results.json is damaged", newest_report().data)


def test_without_a_report_it_is_said_how_to_make_one(repository):
    assert "There is no report yet. `make report` makes one" in newest_report().data


def pairs_and_rows(index: Path) -> tuple[dict[str, str], list[str]]:
    """What an index says of each pair of runs, and the last cell of each experiment."""
    text = index.read_text(encoding="utf-8")
    pairs = re.search(r'<script type="application/json" id="verdicts">(.*?)</script>', text)
    rows = re.findall(r'<tr data-of="\d+">.*?<td data-label="validation by epoch">(.*?)</td></tr>', text)
    return json.loads(pairs[1]) if pairs else {}, rows


def test_what_the_index_says_of_two_runs_passes_for_no_verdict(tmp_path):
    shutil.copytree(ROOT / "reports" / "published" / "demo", tmp_path / "demo")
    pairs, _ = pairs_and_rows(write_index(tmp_path))
    (said,) = pairs.values()
    assert said.startswith("demo: demo-continue against demo: demo-train, by their intervals alone: ")
    assert not re.search("better|worse|evidence", said)
    metrics = json.loads((tmp_path / "demo" / "results.json").read_text())["metrics"]
    tests = [metrics[run]["test"]["protocols"]["standard"] for run in ("demo-train", "demo-continue")]
    for direction, name in (("i2t", "image → text"), ("t2i", "text → image")):
        before, after = (test[direction]["r1"]["value"] for test in tests)
        points = re.escape(f"({100 * (after - before):+.2f} points, 95 % ")
        assert re.search(rf"{name} R@1 [\w: -]+ {points}", said)
    page = (tmp_path / "index.html").read_text()
    assert "A first look, no verdict" in page
    assert "<code>python -m mmlib compare</code> decides" in page


def test_the_index_says_why_there_is_no_curve(report):
    folder = files.PUBLISHED / "demo"
    publish("demo")
    written = json.loads((folder / "results.json").read_text())
    for curve, said in (
        (None, "not recorded: an older report"), ([], "no epoch yet"), ([0.5], "one epoch"),
        ([0.0, 0.5], '<svg class="curve"'),
    ):  # fmt: skip
        written["metrics"]["demo-train"]["curve"] = curve
        (folder / "results.json").write_text(json.dumps(written))
        assert pairs_and_rows(write_index(files.PUBLISHED))[1][0].startswith(said)
    del written["metrics"]["demo-train"]["curve"]
    (folder / "results.json").write_text(json.dumps(written))
    assert pairs_and_rows(write_index(files.PUBLISHED))[1] == ["not recorded: an older report"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("curve", "x"), ("curve", [None]), ("curve", ["0.1", 2]), ("curve", [1e9]), ("curve", {"a": 1}),
        ("provenance", []), ("provenance", {"a": None}), ("provenance", {"a": {"started": 7}}),
        ("metrics", []), ("metrics", {"a": None}), ("test", {}), ("test", [1]), ("protocols", {}),
        ("protocols", {"standard": {}}),
    ],
)  # fmt: skip
def test_the_index_names_a_report_whose_numbers_are_damaged(field, value, report):
    shutil.copytree(report, files.REPORTS / "whole")
    content = json.loads((report / "results.json").read_text())
    run = content["metrics"]["demo-train"]
    (run["test"] if field == "protocols" else run if field in run else content)[field] = value
    (report / "results.json").write_text(json.dumps(content))
    text = write_index().read_text(encoding="utf-8")
    assert re.search(rf"reports/demo/results\.json is damaged: .*{field.rstrip('s')}", text)
    assert len(re.findall(r'<tr data-of="', text)) == 2


def test_no_damage_keeps_the_index_from_being_written(report):
    shutil.copytree(report, files.REPORTS / "whole")
    whole = (report / "results.json").read_bytes()
    contents = [b"", b"[]", b"null", b"7", whole[: len(whole) // 2], whole[:-2]]
    for seed in range(60):
        (report / "results.json").write_bytes(whole)
        damage(report / "results.json", Random(seed))
        contents.append(
            (report / "results.json").read_bytes() if (report / "results.json").is_file() else None
        )
        if (report / "results.json").is_dir():
            (report / "results.json").rmdir()
    for content in contents:
        (report / "results.json").unlink(missing_ok=True)
        if content is not None:
            (report / "results.json").write_bytes(content)
        text = write_index().read_text(encoding="utf-8")
        assert len(re.findall(r'<tr data-of="', text)) == 2
        assert '<span class="badge complete">complete</span>' in text
        if content in contents[:6]:
            assert "reports/demo/results.json" in text


@needs_browser
def test_the_index_is_filtered_sorted_and_compares_two_runs(repository, tmp_path):
    for name, skill in (("weak", 0.2), ("strong", 3.0)):
        folder = repository.run(name)
        (folder / "results.json").write_text(json.dumps(result(name, skill)))
        repository.executed(name, "03_evaluate", [], parameters=f'run: str = "{name}"  # run')
        write_report(name)
    index = write_index()
    assert "<script" in index.read_text(encoding="utf-8")
    with open_page(tmp_path / "profile", f"file://{index}") as page:
        names = "[...document.querySelectorAll('#overview tbody tr:not([hidden]) td:first-child')]"
        names += ".map(cell => cell.innerText)"
        assert sorted(page.evaluate(names)) == ["strong", "weak"]
        page.evaluate("document.querySelector('#overview th button').click()")
        assert page.evaluate(names) == ["strong", "weak"]
        page.evaluate("document.querySelector('#overview th button').click()")
        assert page.evaluate(names) == ["weak", "strong"]
        pick = "for (const [id, run] of [['first', 'weak'], ['second', 'strong']]) {"
        pick += "const s = document.getElementById(id);"
        pick += "s.value = [...s.options].find(o => o.text.startsWith(run)).value;"
        page.evaluate(f"{{{pick} s.dispatchEvent(new Event('change')); }}}}")
        assert "strong: strong is higher (" in page.text("#verdict")
        for width in (400, 1280):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("document.getElementById('filter').focus()")
        page.type("weak")
        assert page.evaluate(names) == ["weak"]
        assert page.text("#count") == "1 of 2"
        assert page.evaluate("document.querySelectorAll('.card:not([hidden])').length") == 1
        assert page.complaints == []
        assert page.requests == []


def with_text(repository, text: str) -> Path:
    """A complete local report with a text on its page."""
    repository.run("demo-train")
    stream = nbformat.v4.new_output("stream", name="stdout", text=text)
    data = {"text/html": f"<p>{text}</p>", "text/plain": text}
    repository.executed("demo", "03_evaluate", [stream, nbformat.v4.new_output("display_data", data=data)])
    return write_report("demo")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("data_root {outside}/photos", "{outside}/photos"),
        ("data_root = '{outside}/photos'", "{outside}/photos"),
        ("hf:{outside}/bert", "{outside}/bert"),
        ("file://{outside}/x", "{outside}/x"),
        ("/home/nobody-here/photos", "/home/nobody-here/photos"),
        ("/Users/nobody-here/photos", "/Users/nobody-here/photos"),
    ],
)
def test_a_page_with_a_path_of_the_machine_is_not_published(
    repository, tmp_path_factory, text, named, capsys
):
    outside = tmp_path_factory.mktemp("elsewhere")
    named = named.format(outside=outside)
    with_text(repository, text.format(outside=outside))
    assert main(["publish", "demo"]) == 1
    said = capsys.readouterr().err
    assert (
        "reports/demo/03_evaluate.html: expected no path of this machine on what is passed on, found" in said
    )
    assert f"found {named};" in said
    assert f"link it below the repository (ln -s {named} data/), give its path from there, data/" in said
    assert not (files.PUBLISHED / "demo").exists()


@pytest.mark.parametrize(
    "text",
    ["https://example.org/home/x", "and/or, 1 / 2", "data/home/x", "../tmp/x", "/nothing-here/x", "~/x"],
)
def test_what_is_no_path_of_the_machine_is_published(repository, text):
    with_text(repository, text)
    publish("demo")
    assert (files.PUBLISHED / "demo" / "03_evaluate.html").is_file()


def test_a_path_inside_the_repository_is_shown_from_its_root(repository):
    report = with_text(repository, f"data_root {files.ROOT}/data/photos, and {files.ROOT}-other")
    page = (report / "03_evaluate.html").read_text()
    assert page.count("data_root data/photos, and ") == 2
    assert f"{files.ROOT}/" not in page
    with pytest.raises(ValueError, match=f"found {files.ROOT}-other; link it below"):
        publish("demo")


def test_a_report_that_was_rendered_with_paths_of_the_repository_is_rendered_again(report):
    page = report / "03_evaluate.html"
    page.write_text(page.read_text() + f"<p>{files.ROOT}/data</p>")
    with pytest.raises(ValueError, match="render it again: python -m mmlib report demo"):
        publish("demo")
