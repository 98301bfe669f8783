"""The explorer: what stands in it, what it does in a browser, and what it never does."""

import json
import re
import shlex
import shutil
from urllib.parse import quote

import numpy as np
import pytest
from browser import needs_browser, open_page, serious_faults
from tiny_runs import TINY, tiny_evaluate, tiny_train

from mmlib import files
from mmlib.analysis.diagnosis import nearest_neighbours
from mmlib.data import load_dataset
from mmlib.files import printable
from mmlib.metrics import RetrievalRanks
from mmlib.reporting.explorer import explorer_page
from mmlib.training.runs import read_arrays, read_queries

APPROXIMATE = (
    "approximate: computed in this page from weights rounded to 16 bits; the lists of the split's own"
    " captions are exact"
)
HOSTILE = "</script><img src=x onerror=alert(1)> \x1b[31m שלום \u202e 'x' & 🎈"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two evaluated runs of one data set."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("explore")
    patch.setattr(files, "RUNS", root / "runs")
    patch.setattr(files, "CACHE", root / "cache")
    for number, run in enumerate(("one", "two")):
        tiny_train(run=run, seed=number, epochs=1, shapes_test=30)
        tiny_evaluate(run)
    yield root
    patch.undo()


@pytest.fixture
def opened(place, tmp_path):
    """Opens the explorer of both runs at an address; keeps the browser until the test ends."""
    name, content = explorer_page("tiny", ["one", "two"])
    (tmp_path / name).write_bytes(content)
    with open_page(tmp_path / "profile", f"file://{tmp_path / name}") as page:
        yield page, f"file://{tmp_path / name}"
        assert page.complaints == []
        assert page.requests == []


def data_of(content: bytes) -> dict:
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', content, re.S)
    return json.loads(found[1])


def test_the_first_results_are_those_that_the_ranks_count(place):
    arrays, queries = read_arrays("one", "neighbours"), read_queries("one")
    ranks = RetrievalRanks.load(files.RUNS / "one" / "ranks.npz")
    assert arrays["t2i_top"].shape == (len(queries["captions"]), 10)
    right_MK = arrays["t2i_top"] == ranks.image_of_text_M[:, None]
    for right_K, rank, ties in zip(right_MK, ranks.t2i_M, ranks.ties_t2i_M):
        place_of = np.flatnonzero(right_K) + 1
        assert not len(place_of) or rank - ties <= place_of[0] <= rank
        assert len(place_of) or rank > 10
    assert (np.diff(arrays["i2t_similarity"], axis=1) <= 0).all()
    _, content = explorer_page("tiny", ["one", "two"])
    data = data_of(content)
    assert data["captions"] == queries["captions"]
    assert data["runs"][0]["t2i"]["top"] == arrays["t2i_top"].tolist()
    assert data["runs"][0]["t2i"]["rank"] == ranks.t2i_M.tolist()
    assert [run["name"] for run in data["runs"]] == ["one", "two"]


def test_a_split_of_many_images_and_runs_of_before_have_no_explorer(place, monkeypatch):
    assert explorer_page("tiny", []) is None
    path = files.RUNS / "one" / "neighbours.npz"
    path.rename(path.with_suffix(".away"))
    try:
        assert explorer_page("tiny", ["one"]) is None
        assert [run["name"] for run in data_of(explorer_page("tiny", ["one", "two"])[1])["runs"]] == ["two"]
    finally:
        path.with_suffix(".away").rename(path)
    monkeypatch.setattr("mmlib.analysis.diagnosis.MAX_IMAGES", 3)
    from mmlib.config import TrainConfig, build

    dataset = load_dataset(build(TrainConfig, TINY))
    assert nearest_neighbours(dataset, "test", np.eye(8, 4), np.eye(40, 4)) == {}


def test_texts_of_strangers_stay_text_and_private_data_a_private_page(place, monkeypatch):
    queries = read_queries("one")
    queries["captions"][0] = HOSTILE
    queries["images"][0] = HOSTILE
    queries["redistributable"] = False
    monkeypatch.setattr("mmlib.reporting.explorer.read_queries", lambda run: queries)
    name, content = explorer_page("tiny", ["one"])
    assert name == "explore.private.html"
    assert b"<img src=x" not in content
    assert b"\x1b" not in content
    assert "\u202e".encode() not in content
    assert data_of(content)["captions"][0].startswith("</script><img src=x")


@pytest.mark.parametrize("damage", ["short", "outside", "kind"])
def test_damaged_results_are_named(place, tmp_path, monkeypatch, damage):
    shutil.copytree(files.RUNS, tmp_path / "runs")
    monkeypatch.setattr(files, "RUNS", tmp_path / "runs")
    path = files.RUNS / "one" / "neighbours.npz"
    arrays = dict(np.load(path))
    if damage == "short":
        arrays["t2i_top"], arrays["t2i_similarity"] = arrays["t2i_top"][1:], arrays["t2i_similarity"][1:]
    elif damage == "outside":
        arrays["t2i_top"][0, 0] = 99
    else:
        arrays["i2t_top"] = arrays["i2t_top"].astype(float)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="expected the first results of 150 captions and 30 images"):
        explorer_page("tiny", ["one"])


@needs_browser
def test_a_person_searches_filters_and_compares(opened, place):
    page, address = opened
    captions = read_queries("one")["captions"]
    ranks = {run: RetrievalRanks.load(files.RUNS / run / "ranks.npz").t2i_M for run in ("one", "two")}
    assert page.text("#count") == "150 of 150 queries"
    page.press("/")
    page.type("circ")
    found = [text for text in captions if any(w.startswith("circ") for w in re.split(r"\W+", text.lower()))]
    assert page.text("#count").startswith(f"{len(found)} of 150")
    assert "circ" in page.text("#query").lower()
    page.open(f"{address}#f=hits")
    assert page.text("#count").startswith(f"{(ranks['two'] == 1).sum()} of 150")
    page.open(f"{address}#a=one&f=misses")
    assert page.text("#count").startswith(f"{(ranks['one'] > 10).sum()} of 150")
    page.open(f"{address}#a=one&f=worst")
    assert page.text("#list .rank") == f"rank {ranks['one'].max()}"
    page.open(f"{address}#a=one&b=two&q=7")
    assert page.text("#query") == captions[7]
    assert page.evaluate("[...document.querySelectorAll('#runs h2')].map(h => h.innerText)") == ["one", "two"]
    top = read_arrays("one", "neighbours")["t2i_top"][7]
    shown = "[...document.querySelectorAll('#runs section:first-child [role=img]')].map(i => i.ariaLabel)"
    assert page.evaluate(shown) == [read_queries("one")["images"][image] for image in top]
    right = page.evaluate("document.querySelectorAll('#runs section:first-child .right').length")
    assert right == (ranks["one"][7] <= 10)


@needs_browser
def test_words_of_no_caption_are_answered_in_the_page_and_called_approximate(opened):
    page, address = opened
    page.press("/")
    page.type("circ")
    assert page.text("#list .rank") == "your own text"
    assert page.evaluate("state.q") != "typed"  # while captions match, they come first
    page.type(" zeppelin")
    assert page.text("#count").startswith("0 of 150")
    assert page.text("#query") == "circ zeppelin"
    for side, runs in (("", ["two"]), ("&a=one&b=two", ["one", "two"])):
        page.open(f"{address}#s=circ%20zeppelin&q=typed{side}")
        assert page.evaluate("[...document.querySelectorAll('#runs h2')].map(h => h.innerText)") == runs
        assert page.evaluate("document.querySelectorAll('#runs .results button').length") == 10 * len(runs)
        said = page.evaluate("[...document.querySelectorAll('#runs p')].map(p => p.innerText)")
        assert said == [APPROXIMATE] * len(runs)
    assert "right" not in page.text("#runs")
    answers = "[...document.querySelectorAll('#runs section')].map(s => s.querySelector('ol').innerHTML)"
    one, two = page.evaluate(answers)
    assert one != two  # each of its own tower
    page.open(f"{address}#d=i2t&s=zeppelin")
    assert page.text("#query").startswith("nothing to show: no caption has these words")


@needs_browser
def test_keys_ask_with_words_of_ones_own_also_where_captions_match(opened):
    page, _ = opened
    page.press("/")
    page.type("red circle")
    assert page.text("#query") != "red circle"
    page.press("Enter")
    assert (page.text("#query"), page.text("#runs p")) == ("red circle", APPROXIMATE)
    assert page.evaluate("new URLSearchParams(location.hash.slice(1)).get('q')") == "typed"
    page.press("ArrowDown")
    assert page.text("#query") != "red circle"
    page.press("ArrowUp")
    assert page.text("#query") == "red circle"
    page.evaluate("document.querySelector('#runs button').click()")
    assert page.evaluate("[state.d, state.s]") == ["i2t", ""]


@needs_browser
def test_a_caption_typed_to_the_letter_has_its_exact_list(opened):
    page, address = opened
    captions = read_queries("two")["captions"]
    for number in (0, 77, 149):
        page.open(f"{address}#s={quote(captions[number])}")
        first = captions.index(captions[number])
        assert page.evaluate("[state.q, towers.size, listed.some(({ q }) => q === 'typed')]") == [
            first,
            0,
            False,
        ]
        assert "approximate" not in page.text("#runs")
        page.press("/")
        page.press("Enter")
        assert page.evaluate("state.q") == first


@needs_browser
def test_what_a_person_or_a_link_types_stays_text(opened):
    page, address = opened
    for given in (HOSTILE, "word " * 500, "\U000e0001'$(id)`\r\n\x07", "🎈" * 3000):
        page.open(f"{address}#q=typed&s={quote(given)}")
        shown = printable(given.strip())
        assert page.evaluate("document.querySelector('#query').textContent") == shown
        assert page.evaluate("document.querySelector('#list span').textContent") == shown
        assert page.evaluate("document.querySelectorAll('#runs .results button').length") == 10
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        page.resize(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.open(f"{address}#q=typed&s=%20")
    assert page.evaluate("state.q") == 0


@needs_browser
def test_a_tower_that_is_not_there_leaves_the_command_as_a_shell_takes_it(place, tmp_path, monkeypatch):
    arrays = {run: read_arrays(run, "neighbours") for run in ("one", "two")}
    heavy = arrays["two"]["tower_weights"]
    monkeypatch.setattr("mmlib.reporting.explorer.MOST_BYTES", len(heavy))  # of the last run alone
    name, content = explorer_page("tiny", ["one", "two"])
    (tmp_path / name).write_bytes(content)
    with open_page(tmp_path / "profile", f"file://{tmp_path / name}") as page:
        for given in ('it\'s $(id) "x" \\ !', "--html", "a\x1b[31m"):
            page.open(f"file://{tmp_path / name}#a=one&b=two&q=typed&s={quote(given)}")
            assert page.text("#runs section:last-child p") == APPROXIMATE
            assert "POSIX shell" in page.text("#runs section:first-child p")
            words = shlex.split(page.text("#runs section:first-child code"))
            assert words[:5] == ["python", "-m", "mmlib", "search", "one"]
            assert words[5:] == ["--"] * given.startswith("-") + [printable(given)]
        assert page.complaints == []


@needs_browser
def test_keys_go_through_the_list_and_the_address_names_the_query(opened):
    page, _ = opened
    first = page.evaluate("document.querySelector('#list [aria-current=true]').dataset.q")
    page.press("ArrowDown")
    page.press("ArrowDown")
    third = page.evaluate("document.querySelector('#list [aria-current=true]').dataset.q")
    assert third == page.evaluate("document.querySelectorAll('#list button')[2].dataset.q") != first
    assert page.evaluate("new URLSearchParams(location.hash.slice(1)).get('q')") == third
    page.press("ArrowUp")
    page.evaluate("document.querySelector('#runs button').click()")
    assert page.evaluate("document.getElementById('direction').value") == "i2t"
    assert page.evaluate("document.querySelectorAll('#runs .results button').length") == 10


@needs_browser
def test_it_fits_a_phone_and_has_names_for_all_its_parts(opened):
    page, address = opened
    for place in ("#q=3", "#d=i2t&q=3", "#d=i2t&a=one&b=two&q=3"):
        page.open(address + place)
        page.evaluate("data.images = data.images.map(name => name + '_d3e9c21170'.repeat(9)); read()")
        for width in (400, 1280):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    named = "e.innerText || e.labels?.length || e.querySelector('[aria-label]')"
    parts = "[...document.querySelectorAll('button, select, input')]"
    assert page.evaluate(f"{parts}.filter(e => !({named})).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_either_scheme(opened, scheme):
    page, address = opened
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for place in ("#q=3", "#d=i2t&a=one&b=two&q=3", "#a=one&b=two&s=zeppelin"):
        page.open(address + place)
        assert serious_faults(page) == []


@needs_browser
def test_its_policy_stops_other_scripts(place, tmp_path):
    name, content = explorer_page("tiny", ["one"])
    act = b"document.title = 'ran'"
    foreign = b'<script>%s</script><img src=x onerror="%s"></main>' % (act, act)
    bad = content.replace(b"</main>", foreign)
    (tmp_path / name).write_bytes(bad)
    with open_page(tmp_path / "profile", f"file://{tmp_path / name}") as page:
        assert page.evaluate("document.title") == "Explore tiny"
        assert page.text("#count") == "150 of 150 queries"
        assert len(page.complaints) >= 2
