"""Pages of strangers' notebooks and run folders: nothing in them runs, loads, or is written elsewhere."""

import base64
import contextlib
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import nbformat
import pytest
from browser import BROWSER, FLAGS, needs_browser
from bs4 import BeautifulSoup

from mmlib import files
from mmlib.output import plain_text
from mmlib.reporting.pages import POLICY, SCRIPT, TEMPLATES, harmless_html, policy_for
from mmlib.reporting.publish import write_index
from mmlib.reporting.report import overview, write_report
from mmlib.reporting.results import results_table
from mmlib.reporting.tables import Table

ACT = "document.documentElement.dataset.ran=1"
BREAK_OUT = f'"><img src=x onerror="{ACT}"><script>{ACT}</script><i a="'
HOSTILE = (
    f"<script>{ACT}</script>",
    f"<SCRIPT/x>{ACT}</SCRIPT >",
    f"<scr<script>ipt>{ACT}</script>",
    f'<img src=x onerror="{ACT}">',
    f"<svg onload={ACT}><animate onbegin={ACT} attributeName=x></svg>",
    f"<math><mtext></form><form><mglyph><style></math><img src=x onerror={ACT}>",
    f"<noscript><p title=\"</noscript><img src=x onerror={ACT}>\">",
    f'<iframe srcdoc="<script>parent.{ACT}</script>"></iframe>',
    f'<body onload="{ACT}"><details open ontoggle="{ACT}"><input autofocus onfocus="{ACT}">',
    f'<a href="javascript:{ACT}">a</a><a href=" java&#9;script&colon;{ACT}">b</a>',
    '<a href="data:text/html,<script>1</script>">a</a><a href="DA&#10;TA:text/html,x">b</a>',
    f'<meta http-equiv="refresh" content="0;url=javascript:{ACT}"><base href="http://127.0.0.1/x/">',
    '<link rel="stylesheet" href="/loaded.css"><style>@import "/loaded.css"; b { color: red }</style>',
    '<p style="background: url(/loaded.png); position: fixed; text-align: left">p</p>',
    '<img src="/loaded.png" srcset="/loaded.png 2x"><video poster="/loaded.png"></video>',
    '<img src="data:image/svg+xml;base64,PHN2Zy8+"><object data="data:text/html,x"></object>',
    f'<form action="javascript:{ACT}"><button formaction="javascript:{ACT}">b</button></form>',
    '<span class="badge complete">complete</span><p class="banner" id="x" role="alert">a finished run</p>',
    f"<!--><img src=x onerror={ACT}>--><![CDATA[<img src=x onerror={ACT}>]]>",
    f'<? a="><script>{ACT}</script>"><! a="><script>{ACT}</script>"></ a="><script>{ACT}</script>">',
    f"<svg></p><style><a id=\"</style><img src=x onerror={ACT}>\"></svg><xmp><img src=x onerror={ACT}></xmp>",
    f'<noembed><img title="</noembed><img src=x onerror={ACT}>"></noembed><textarea><svg onload={ACT}>',
    f'</textarea></pre></div></main><img alt="<x" title="><img src=x onerror={ACT}>">',
    '<p style="b\\61ckground: u\\72l(/loaded.png); color: red; content: url(/loaded.png)">p</p>',
    f'<svg><use href="data:image/svg+xml,<svg id=x onload={ACT}>#x"/></svg><math href="javascript:{ACT}">',
)  # fmt: skip
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()

INDEX_SCRIPT = (TEMPLATES / "experiments.js").read_text(encoding="utf-8")


def faults_of(page: str) -> list[str]:
    """What in a page could run, load, or pass for a part of ours."""
    soup = BeautifulSoup(page, "html.parser")
    known = "a p img td th i b div span details table strong"
    found = []
    for tag in soup.find_all("script"):
        data = tag.get("type") == "application/json" and json.loads(tag.string) is not None
        found += [] if data or tag.string in (SCRIPT, INDEX_SCRIPT) else [str(tag)]
    for tag in soup.select("svg.curve"):  # of the index: one line through numbers
        (line,) = tag.find_all(True)
        found += [] if re.fullmatch(r"[\d., ]+", line["points"]) and line.name == "polyline" else [str(tag)]
    forbidden = ["svg:not(.curve)", "iframe", "form", "link", "base", "object"]
    found += [str(tag) for tag in soup.select(", ".join(forbidden))]
    for tag in soup.find_all(known.split()):
        for name, value in tag.attrs.items():
            text = html.unescape("".join(value)).lower().replace("\n", "").replace("\t", "")
            ours = name == "id" and value in ("verdict", "count", "overview")  # of the index
            acts = name.startswith("on") or name in ("id", "srcset", "poster", "formaction", "srcdoc")
            if acts and not ours:
                found.append(f"{tag.name} {name}={value}")
            if "javascript:" in text or "data:text" in text or "svg" in text or "url(" in text:
                found.append(f"{tag.name} {name}={value}")
            if name == "src" and not text.startswith("data:image/png;base64,"):
                found.append(f"{tag.name} {name}={value}")
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_html_keeps_its_prose_and_nothing_that_acts(text):
    clean = harmless_html(f"<p>before</p>{text}<p>after</p>")
    assert faults_of(clean) == []
    assert "before" in clean
    for class_ in ("badge", "banner", "alert", "position"):
        assert class_ not in clean


def test_what_our_own_outputs_hold_stays_as_it_is(result):
    def by_style(text: str) -> str:
        return re.sub(r'style="([^"]*)"', lambda m: "style=" + re.sub(r"\s|;$", "", m[1]), text)

    table = results_table([result])
    for shown in (table, Table(table.frame, "a < b & c", ("“x” – 95 %",)), Table(caption="note")):
        text = shown._repr_html_()
        assert by_style(harmless_html(text)).replace("–\u2060", "–&#8288;") == by_style(text)
    link = '<a href="https://arxiv.org/abs/1807.03748">a</a> <a href="README.md#x">b</a>'
    assert harmless_html(link) == link
    code = '<div class="highlight"><pre><span class="kn">import</span></pre></div>'
    assert harmless_html(code) == code
    picture = f'<img src="data:image/png;base64,{PNG}" alt="a">'
    assert BeautifulSoup(harmless_html(picture), "html.parser") == BeautifulSoup(picture, "html.parser")


def test_deep_or_endless_html_takes_no_time():
    assert harmless_html("<div>" * 100_000) == "<p>[HTML that is nested too deeply is left out]</p>"
    assert harmless_html("<script>" * 100_000) == ""
    assert harmless_html("<table>" + "<tr><td>1" * 2000 + "</table>").count("<td>") == 2000


@pytest.fixture
def hostile(repository) -> str:
    """A report and an index over what strangers left, with something that acts in every place."""
    run = repository.run("demo-train", state="failed", reason=BREAK_OUT)
    places = {"environment.json": ("data", "name"), "results.json": ("pretraining",)}
    for name, place in places.items():
        content = json.loads((run / name).read_text())
        *to, last = place
        functools.reduce(dict.__getitem__, to, content)[last] = BREAK_OUT
        (run / name).write_text(json.dumps(content))
    output, alt = nbformat.v4.new_output, {"image/png": {"alt": BREAK_OUT}}
    executed = repository.executed(
        "demo", "01_train",
        [output("display_data", data={"text/html": text, "text/plain": text}) for text in HOSTILE],
        [output("display_data", data={"text/markdown": f"{text}\n\n[x](javascript:{ACT}) ![](/loaded.png)"})
         for text in (*HOSTILE, BREAK_OUT)],
        [output("display_data", data={"image/png": PNG + BREAK_OUT}, metadata=alt),
         output("display_data", data={"image/png": BREAK_OUT}),
         output("display_data", data={"image/svg+xml": f"<svg onload={ACT}></svg>", "text/plain": BREAK_OUT}),
         output("execute_result", data={"application/javascript": ACT}, execution_count=1),
         output("stream", name=BREAK_OUT, text=f"{BREAK_OUT}\x1b[31m{BREAK_OUT}\x1b[0m"),
         output("display_data", data={"text/html": "kept away"}, metadata={"mmlib": {"private": True}})],
        [output("error", ename=BREAK_OUT, evalue=BREAK_OUT, traceback=[BREAK_OUT, f"\x1b[1m{BREAK_OUT}"])],
    )  # fmt: skip
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells[0].source = f"# {BREAK_OUT}\n\n" + "\n\n".join(HOSTILE)
    notebook.cells[2].source = f"## {BREAK_OUT}\n\n![a](attachment:a.svg)"
    notebook.cells[2].attachments = {"a.svg": {"image/svg+xml": f'"><img src=x onerror="{ACT}">'}}
    raw = nbformat.v4.new_raw_cell(f"<script>{ACT}</script>", metadata={"raw_mimetype": "text/html"})
    notebook.cells.append(raw)
    notebook.metadata["language_info"] = {"name": BREAK_OUT, "pygments_lexer": "html", "mimetype": BREAK_OUT}
    nbformat.write(notebook, executed)
    for stem in ('02"><img src=x onerror=document.title=1>', f"javascript:{ACT};03"):
        shutil.copy(executed, executed.with_name(f"{stem}.ipynb"))
    folder = write_report("demo")
    report = json.loads((folder / "results.json").read_text())
    arm = {"name": BREAK_OUT, "differs": {}, "tuned": {}, "tried": [], "runs": [], "pretraining": None}
    claim = dict.fromkeys(("claim", "arm", "over"), BREAK_OUT) | {"seeds": [], "verdict": "not judged"}
    record = {
        "run": "abl", "seeds": [0], "select_by": "rsum", "scope": None, "chance": {},
        "arms": [arm | {"interval": None, "metrics": {}}],
        "claims": [claim],
    }  # fmt: skip
    more = {"evil": {"ablations": {BREAK_OUT: record}, "notebooks": {BREAK_OUT: {"page": None}}}, "evil2": {}}
    for name, changes in (more | {f"javascript:{ACT};": {}, "ev\x1bil": {}}).items():
        shutil.copytree(folder, files.REPORTS / name)
        (files.REPORTS / name / "results.json").write_text(json.dumps(report | changes))
    write_index()
    return "demo/01_train.html", "demo/01_train.private.html", "index.html"


def test_a_page_of_hostile_texts_holds_them_as_text(repository, hostile):
    for name in hostile:
        page = (files.REPORTS / name).read_text()
        soup = BeautifulSoup(page, "html.parser")
        policy = policy_for(SCRIPT, INDEX_SCRIPT) if name == "index.html" else POLICY
        assert soup.head.find_all("meta")[1]["content"] == policy
        assert soup.head.find_all("meta")[1]["http-equiv"] == "Content-Security-Policy"
        assert faults_of(page) == []
        assert BREAK_OUT in soup.text
    shared, private = ((files.REPORTS / name).read_text() for name in hostile[:2])
    assert "kept away" not in shared
    assert "kept away" in private
    assert BeautifulSoup(shared, "html.parser").find(class_="stream").text.count("<script>") == 2
    readme = (files.REPORTS / "demo" / "README.md").read_text()
    assert re.search(r"(?<!\\)[<\[]", readme.replace("- [01_train](", "")) is None
    report = json.loads((files.REPORTS / "demo" / "results.json").read_text())
    assert sum("expected a name for a notebook" in problem for problem in report["problems"]) == 2
    assert not re.search(r"href=.javascript", (files.REPORTS / "index.html").read_text())


@contextlib.contextmanager
def served(folder, asked: list):
    """Serves a folder on this machine; notes which page asked for what."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers.get("Referer", "").rpartition("/")[2], self.path))
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@needs_browser
def test_a_browser_runs_and_loads_nothing_of_it(repository, hostile, tmp_path):
    raw = f"<h1>raw</h1>{''.join((*HOSTILE, BREAK_OUT))}"
    refused = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{raw}'
    (files.REPORTS / "naked.html").write_text(raw)  # shows that the texts would act
    (files.REPORTS / "refused.html").write_text(refused)  # and that the policy alone stops them
    frames = "".join(f'<iframe src="{page}"></iframe>' for page in ("naked.html", "refused.html", *hostile))
    see = "d => d.querySelector('h1') ? d.documentElement.dataset.ran : 'no page'"
    note = f"document.title = [...document.querySelectorAll('iframe')].map(f => f.contentDocument).map({see})"
    (files.REPORTS / "watch.html").write_text(f"{frames}<script>onload = () => {note}</script>")
    asked = []
    with served(files.REPORTS, asked) as address:
        command = [
            BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'browser'}",
            "--dump-dom", f"{address}/watch.html",
        ]  # fmt: skip
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>1,,,,</title>" in dom
    assert {page for page, _ in asked if page not in ("", "watch.html")} == {"naked.html"}


def test_a_figure_that_would_lie_elsewhere_costs_its_page_alone(repository):
    repository.run("demo-train")
    repository.executed("demo", "01_train", [])
    mark = {"name": "../../../out", "private": False}
    output = nbformat.v4.new_output("display_data", data={"image/png": PNG}, metadata={"mmlib": mark})
    repository.executed("demo", "03_evaluate", [output])
    folder = write_report("demo")
    report = json.loads((folder / "results.json").read_text())
    assert report["state"] == "failed"
    assert report["problems"] == [
        "03_evaluate.ipynb cannot be shown (ValueError: figure name: expected a name of letters, digits, '-',"
        " '_' and dots inside, at most 100 bytes long, found '../../../out'); run it again"
    ]
    assert "03_evaluate (not run)" in (folder / "01_train.html").read_text()
    assert not list(files.ROOT.rglob("*out*.png"))


def test_text_for_a_readme_is_no_markup():
    text = "<b>a</b> [x](javascript:1) ![y](http://t/p.png) `c` *d* _e_ a_b ~~f~~ &lt;\n# g \x1b[31m\u202e"
    assert plain_text(text) == (
        r"\<b\>a\</b\> \[x\](javascript:1) !\[y\](http://t/p.png) \`c\` \*d\* \_e\_ a_b \~\~f\~\~ \&lt; # g"
        r" \\x1b\[31m\\u202e"
    )
    report = {"experiment": "demo", "state": "failed", "reason": text, "notebooks": {}, "metrics": {}}
    shown = overview(report | {"ablations": {}, "command": "make '`<b>\n# x\u202e'"}, []).splitlines()
    code = ["    make '`<b>", r"    # x\u202e'"]
    assert shown[4:] == ["Made by", "", *code, "", "Pages, to be opened in a browser:"]
    assert shown[2].endswith(r"\u202e).")
