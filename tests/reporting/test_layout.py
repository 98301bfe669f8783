"""Every kind of page in a real browser: no fault that keeps people out, both schemes, a phone, sorting."""

import re
import shutil

import numpy as np
import pytest
from browser import needs_browser, open_page, serious_faults
from tiny_runs import tiny_evaluate, tiny_train

from mmlib import files
from mmlib.cli import main
from mmlib.reporting.explorer import write_search_page
from mmlib.reporting.pages import render_notebook
from mmlib.reporting.publish import write_index
from mmlib.search import Hit

STORED = ("01_train", "02_continue", "03_evaluate", "04_analysis", "05_ablation")
COMPARED = ("compare", "evaluate")
PAGES = (*STORED, *COMPARED, "explore", "search", "index")
PUBLISHED, NOTEBOOKS = files.PUBLISHED, files.NOTEBOOKS
REPR = re.compile(r"\bNone\b|\bTrue\b|\bFalse\b|[{\[(,:] ?'|': |\{\}|<[\w.]+ object at|\bdtype=")
DARK = "const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g); return +r + +g + +b"
# The brightness of every figure's corner, as it is shown.
CORNERS = """(async () => Promise.all([...document.querySelectorAll("figure img")].map(async (img) => {
  img.closest("details")?.setAttribute("open", "");
  await img.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  canvas.getContext("2d").drawImage(img, 0, 0);
  return [...canvas.getContext("2d").getImageData(0, 0, 1, 1).data].slice(0, 3).reduce((a, b) => a + b);
})))()"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of each kind, of what lies in the repository: no training."""
    root = tmp_path_factory.mktemp("pages")
    origin = {
        "commit": "abc",
        "data": {"name": "shapes", "fingerprint": "0" * 16},
        "versions": {"numpy": "2"},
    }
    for name in STORED:
        made = render_notebook(NOTEBOOKS / f"{name}.ipynb", "demo", environments={"quick-train": origin})
        (root / f"{name}.html").write_bytes(made[f"{name}.html"])
    shutil.copy(PUBLISHED / "demo" / "explore.html", root)
    hits = [Hit(PUBLISHED / "demo" / "figures" / "01_train-loss.png", 0.5)]
    write_search_page(root / "search.html", "demo-train", 1, hits, text="a <b>dog</b> שלום")
    shutil.copytree(PUBLISHED, root / "reports")
    shutil.copy(write_index(root / "reports"), root / "index.html")
    _compared(root)
    return root


def _compared(root) -> None:
    """The pages of `compare` and of `evaluate` with embeddings, over two runs of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RUNS", root / "runs")
        patch.setattr(files, "CACHE", root / "cache")
        for seed, run in enumerate(("one", "two")):
            tiny_train(run=run, seed=seed, epochs=2)
            tiny_evaluate(run)
        assert main(["compare", "one", "two", "--html", str(root / "compare.html")]) == 0
        vector = np.random.default_rng(0).standard_normal((2, 8, 4))
        for name, array in {"i": vector[0], "t": np.repeat(vector[1], 5, 0), "m": np.arange(40) // 5}.items():
            np.save(root / f"{name}.npy", array)
        words = ["--images", "i.npy", "--texts", "t.npy", "--image-of-text", "m.npy"]
        words = [str(root / word) if word.endswith(".npy") else word for word in words]
        words += ["--compare", "one", "two", "--html", str(root / "evaluate.html")]
        assert main(["evaluate", *words]) == 0


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    with open_page(tmp_path_factory.mktemp("profile"), f"file://{folder / 'search.html'}") as page:
        yield page


@pytest.fixture(params=PAGES)
def page(request, browser, folder):
    browser.complaints.clear()
    browser.requests.clear()
    browser.resize(1280)
    browser.prefer("light")
    browser.open(f"file://{folder / request.param}.html")
    browser.name = request.param
    yield browser
    assert browser.complaints == []
    assert browser.requests == []


@needs_browser
def test_nothing_keeps_a_person_out(page):
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        assert serious_faults(page) == []


@needs_browser
def test_a_phone_scrolls_no_page_sideways(page):
    for width in (400, 1280):
        page.resize(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_dark_is_dark_with_its_figures(page):
    assert page.evaluate(f"(() => {{ {DARK} }})()") == 3 * 255
    page.prefer("dark")
    assert page.evaluate(f"(() => {{ {DARK} }})()") < 120
    if page.name in (*STORED, "compare"):
        page.open(page.evaluate("location.href"))
        corners = page.evaluate(CORNERS)
        assert len(corners) == page.evaluate("document.querySelectorAll('figure').length") > 0
        assert max(corners) < 120
        page.prefer("light")
        page.open(page.evaluate("location.href"))
        assert min(page.evaluate(CORNERS)) > 600


@needs_browser
def test_pages_speak_in_words(page):
    if page.name in (*STORED, *COMPARED):
        page.evaluate("document.querySelectorAll('.code, pre').forEach(e => e.remove())")
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert REPR.findall(page.evaluate("document.body.innerText")) == []


@needs_browser
def test_what_came_out_stands_on_the_first_screen_and_the_page_is_short(page):
    if page.name in STORED:
        top = page.evaluate("document.querySelector('figure').getBoundingClientRect().top")
        assert top < 900 or page.name == "04_analysis"  # which begins with its verdict
        assert page.text("main strong") != ""
        first = page.evaluate("document.querySelector('main strong').getBoundingClientRect().top")
        assert first < 300
        assert page.evaluate("document.documentElement.scrollHeight") <= 7000


@needs_browser
def test_contents_lead_to_headings(page):
    if page.name in (*STORED, *COMPARED):
        links = page.evaluate("[...document.querySelectorAll('.toc a')].map(a => a.hash)")
        assert len(links) > 2
        assert page.evaluate("[...document.querySelectorAll('h2')].map(h => '#' + h.id)") == links


@needs_browser
def test_a_click_on_a_heading_sorts_its_table(browser, folder):
    browser.open(f"file://{folder / '01_train.html'}")
    column = "[...document.querySelectorAll('table.mmlib')].find(t => t.innerText.startsWith('part'))"
    values = f"[...{column}.tBodies[0].rows].map(r => +r.cells[2].innerText.replaceAll(',', ''))"
    click = f"{column}.querySelector('th:nth-child(3) button').click()"
    before = browser.evaluate(values)
    browser.evaluate(click)
    assert browser.evaluate(values) == sorted(before) != before
    browser.evaluate(click)
    assert browser.evaluate(values) == sorted(before, reverse=True)


@needs_browser
@pytest.mark.parametrize("name", COMPARED)
def test_every_table_of_a_comparison_can_be_sorted(browser, folder, name):
    browser.open(f"file://{folder / name}.html")
    tables = "[...document.querySelectorAll('table')].filter(t => t.tBodies[0].rows.length > 1)"
    assert browser.evaluate(f"{tables}.length") > 1
    assert browser.evaluate(f"{tables}.every(t => t.querySelectorAll('th button').length > 2)")
    table = f"{tables}.find(t => /points|change/.test(t.tHead.innerText))"
    first = f"[...{table}.tBodies[0].rows].map(r => r.cells[0].innerText)"
    before = browser.evaluate(first)
    assert before[-1] == "rsum"
    for _ in range(2):
        browser.evaluate(f"{table}.querySelector('th button').click()")
    after = browser.evaluate(first)
    assert after[0] == "rsum"
    assert sorted(after) == sorted(before)


@needs_browser
def test_a_printed_comparison_has_its_tables_whole(browser, folder):
    browser.open(f"file://{folder / 'compare.html'}")
    browser.send("Emulation.setEmulatedMedia", media="print")
    shown = "getComputedStyle(document.querySelector('{}')).{}"
    assert browser.evaluate(shown.format(".toc", "display")) == "none"
    assert browser.evaluate(shown.format(".scroll", "overflow")) == "visible"
    browser.send("Emulation.setEmulatedMedia", media="")


@needs_browser
def test_only_figures_that_are_wide_say_so(browser, folder):
    browser.resize(400)
    hint = "getComputedStyle(document.querySelector('main figure'), '::before').display"
    for name, shown in (("01_train", "block"), ("search", "none")):
        browser.open(f"file://{folder / name}.html")
        assert browser.evaluate(hint) == shown


@needs_browser
def test_a_phone_cuts_off_no_number(browser, folder):
    browser.open(f"file://{folder / '04_analysis.html'}")
    browser.resize(400)
    cells = "[...document.querySelectorAll('table.mmlib td')].filter(e => e.offsetParent)"
    right = browser.evaluate(f"Math.max(...{cells}.map(e => e.getBoundingClientRect().right))")
    assert 0 < right <= 400
    label = f"getComputedStyle({cells}.find(e => e.dataset.label.startsWith('p, Holm')), '::before').content"
    assert browser.evaluate(label) == '"p, Holm"'
