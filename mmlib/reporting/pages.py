"""A notebook as a page: foreign HTML is cleaned, and a policy lets no script run but ours."""

import base64
import hashlib
import json
import re
import shlex
import warnings
from collections.abc import Mapping
from functools import cache
from html import unescape
from itertools import accumulate, count
from pathlib import Path

import jinja2
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bleach.sanitizer import Cleaner
from markupsafe import Markup
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from mmlib import files
from mmlib.reporting.notebooks import Page, command_of, mark_of, parameters_of, read_notebook
from mmlib.reporting.tables import MARK

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = (TEMPLATES / "report.js").read_text(encoding="utf-8").strip()  # sorts tables; nothing needs it


def policy_for(*scripts: str) -> str:
    """The browser's own refusal of all that slips through: no script but these, nothing from elsewhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed};"
        " base-uri 'none'; form-action 'none'"
    )


POLICY = policy_for(SCRIPT)

_TAGS = frozenset({
    "a", "abbr", "b", "blockquote", "br", "caption", "cite", "code", "col", "colgroup", "dd", "del",
    "details", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
    "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span", "strong",
    "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "tt", "u", "ul", "var",
})  # fmt: skip
_ATTRIBUTES = {
    "img": {"alt", "title"},
    "abbr": {"title"},
    "td": {"colspan", "rowspan", "align", "data-label"},
    "th": {"colspan", "rowspan", "align", "scope"},
    "ol": {"start"},
}
_STYLES = frozenset(
    ["text-align", "vertical-align", "white-space", "font-weight", "font-style", "text-decoration", "color"]
)  # none of them loads anything or moves text over other text
_CLASSES = {  # of our tables and of highlighted code; others could pass for our badges and banners
    "table": re.compile("mmlib"),
    "div": re.compile("highlight"),
    "span": re.compile("[a-z][a-z0-9]{0,2}"),
}
_LINK = re.compile(r"(?:https?://|mailto:)[^\x00-\x20]*|[^:\x00-\x20]*", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_DEPTH = 300
_TOO_DEEP = "<p>[HTML that is nested too deeply is left out]</p>"
_NESTING = re.compile(r"<(/?)(?!(?:br|hr|img|col|p|li|dt|dd|t[dhr]|thead|tbody|tfoot)\b)[a-z]", re.IGNORECASE)
# Scripts and style sheets with their content, which the cleaner would show as text.
_CODE = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)


def harmless_html(text: str) -> str:
    """HTML with prose, tables, links and embedded pictures alone; no script, style sheet, form or load.

    Tables of `mmlib.reporting` and highlighted code stay as they are.
    """
    text = _CODE.sub("", text)
    return _TOO_DEEP if _is_deep(text) else _cleaner().clean(text)


def _is_deep(text: str) -> bool:
    """Whether elements are nested more than `_DEPTH` deep: the parser's time grows with the square."""
    depths = accumulate(-1 if tag[1] else 1 for tag in _NESTING.finditer(text))
    return any(depth > _DEPTH for depth in depths)


@cache
def _cleaner() -> Cleaner:
    return Cleaner(
        tags=_TAGS,
        attributes=_is_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=_STYLES, allowed_svg_properties=()),
    )


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "class":
        return tag in _CLASSES and bool(_CLASSES[tag].fullmatch(value))
    if name == "href":
        return tag == "a" and bool(_LINK.fullmatch(unescape(value)))
    if name == "src":
        return tag == "img" and bool(_PICTURE.fullmatch(value))
    return name == "style" or name in _ATTRIBUTES.get(tag, ())


_SHOWN = ["text/html", "text/markdown", "image/png", "text/plain"]  # nothing that runs or loads anything
_PAPERMILL_MARK = "papermill-error-cell-tag"  # its red error cells; the page has its own banner
_NO_PICTURE = "[a picture that is no PNG is left out]"


# Cells with these tags stand first on a page, in this order: what came out, then how it came about.
_FRONT = ("first", "second", "third")
_HEADING = re.compile(r"<h2[^>]*>(.*?)</h2>", re.DOTALL)
_CONTENTS = "<!--contents-->"  # ours alone: the cleaner leaves no comment


def render_notebook(
    executed_ipynb: Path,
    experiment: str,
    pages: tuple[Page, ...] = (),
    explorer: str | None = None,
    environments: Mapping[str, dict] | None = None,
) -> dict[str, bytes]:
    """Renders an executed notebook as a page that loads nothing, and runs nothing but our sorting of tables.

    Outputs that are marked private (`mmlib.reporting.style`) are replaced by a sentence that says
    why; if there are any, a second page shows them, which stays on this machine.  Pictures are encoded
    anew, and what is foreign in the notebook is made harmless.

    Args:
        executed_ipynb: notebook with its outputs; paths of the repository are shown from its root.
        experiment: its name.
        pages: all pages of the experiment, for navigation and state; a notebook that is not among
            them counts as complete.
        explorer: file of the explorer, for navigation; None if there is none.
        environments: `environment.json` of the runs behind the page, by name.

    Returns:
        Contents by file name in the report's folder: the pages, `<notebook>.html` and
        `<notebook>.private.html`, and the named figures, `figures/<notebook>-<name>.png` or
        `private/<notebook>-<name>.png`.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: it cannot be read or shown, or a figure's name is no name for a file.
    """
    notebook, name = read_notebook(executed_ipynb), executed_ipynb.stem
    page = next((p for p in pages if p.name == name), Page(name, "complete", executed=executed_ipynb))
    made = {}
    try:
        notebook = _from_root(notebook)
        notebook.cells = [c for c in notebook.cells if _PAPERMILL_MARK not in c.metadata.get("tags", [])]
        for cell in notebook.cells:
            if cell.get("outputs"):
                cell.outputs = _streams_joined(cell.outputs)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        private = [output for output in outputs if mark_of(output)[1]]
        for output in (output for output in outputs if "image/png" in output.get("data", {})):
            figure, png = mark_of(output)[0], _png(output.data["image/png"])
            output.data["image/png"] = base64.b64encode(png).decode()
            mark = output.metadata.get(MARK, {})
            mark["dark"] = base64.b64encode(_png(str(mark.get("dark", "")))).decode()
            if not png:
                output.data = {"text/plain": _NO_PICTURE}
            elif figure:
                made[f"{'private' if output in private else 'figures'}/{name}-{figure}.png"] = png
        shown = {"title": _take_title(notebook) or name, "experiment": experiment, "page": page}
        shown |= {"explorer": explorer, "command": _command(notebook, name)}
        shown["whole"] = command_of(experiment, pages or [page])
        shown["origins"] = _origins(environments or {})
        notebook.cells = _in_order(notebook.cells)
        if private:
            made[f"{name}.private.html"] = _exported(notebook, shown | {"pages": pages, "private": True})
        for output in private:
            output.data, output.withheld = {}, mark_of(output)[0] or ""
        if explorer and ".private." in explorer:  # this page may be passed on, that one not
            shown["explorer"] = None
        made[f"{name}.html"] = _exported(notebook, shown | {"pages": pages, "private": False})
    except Exception as error:  # whatever a stranger's cells make of the exporter
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{executed_ipynb.name} cannot be shown ({reason}); run it again") from None
    return made


def _from_root(value, key: str = ""):
    """A notebook with the paths of the repository's files as they are from its root; pictures as they are."""
    if isinstance(value, dict):
        for name in value:
            value[name] = _from_root(value[name], name)
    elif isinstance(value, list):
        value[:] = (_from_root(each, key) for each in value)
    elif isinstance(value, str) and not key.startswith(("image/", "dark")) and len(files.ROOT.parts) > 1:
        return re.sub(rf"(?<![\w.~/-]){re.escape(str(files.ROOT))}/", "", value)
    return value


def _streams_joined(outputs: list) -> list:
    """The outputs with the lines of a stream in one, which papermill leaves one by one."""
    joined = []
    for output in outputs:
        is_more = joined and output.output_type == joined[-1].output_type == "stream"
        if is_more and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _in_order(cells: list) -> list:
    """The cells as a page shows them: those that say what came out, then the others as they were run."""

    def place(cell) -> int:
        return next((n for n, tag in enumerate(_FRONT) if tag in cell.metadata.get("tags", [])), len(_FRONT))

    front = [cell for cell in cells if place(cell) < len(_FRONT)]
    if not any(cell.get("outputs") for cell in front):  # it was stopped before
        return cells
    made = nbformat.v4.new_markdown_cell("## How it was made")
    return [*sorted(front, key=place), made, *(cell for cell in cells if cell not in front)]


def _command(notebook: nbformat.NotebookNode, name: str) -> str:
    """What runs this notebook alone, with its parameters."""
    words = ["papermill", f"notebooks/{name}.ipynb", "out.ipynb"]
    for key, value in parameters_of(notebook).items():
        flat = isinstance(value, str | int | float)
        words += ["-p", key, str(value)] if flat else ["-y", json.dumps({key: value}, ensure_ascii=False)]
    return shlex.join(words)


def _origins(environments: Mapping[str, dict]) -> list[dict]:
    """Commit, data and packages of runs; those that agree in them stand together."""
    found: dict[str, dict] = {}
    for run, known in environments.items():
        data, versions = known.get("data") or {}, known.get("versions") or {}
        origin = {
            "commit": f"{known.get('commit') or '–'}{', with changes' if known.get('dirty') else ''}",
            "data": f"{data.get('name', '–')}, fingerprint {data.get('fingerprint', '–')}",
            "device": str(known.get("device", "–")),
            "packages": ", ".join(f"{package} {version}" for package, version in versions.items()),
        }
        found.setdefault(json.dumps(origin), origin | {"runs": []})["runs"].append(run)
    return list(found.values())


def _with_contents(page: str) -> str:
    """The page with a number on each heading of its second level, and links to them at its top."""
    links, number = [], count(1)

    def named(heading: re.Match) -> str:
        place = f"part-{next(number)}"
        links.append(f'<a href="#{place}">{re.sub("<[^>]*>", "", heading[1])}</a>')
        return f'<h2 id="{place}">{heading[1]}</h2>'

    page = _HEADING.sub(named, page)
    shown = f'<nav class="toc" aria-label="contents">{" ".join(links)}</nav>' if len(links) > 1 else ""
    return page.replace(_CONTENTS, shown, 1)


def _exported(notebook: nbformat.NotebookNode, shown: dict) -> bytes:
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN}}),
    )
    exporter.register_filter("harmless_html", harmless_html)
    with warnings.catch_warnings(action="ignore"):  # of outputs that no page can show
        shown = shown | {"css": _stylesheet(), "policy": POLICY, "script": SCRIPT, "contents": _CONTENTS}
        page, _ = exporter.from_notebook_node(notebook, resources={"page": shown})
    return _with_contents(page).encode("utf-8", "replace")  # JSON can hold halves of characters


def _png(text: str) -> bytes:
    """The PNG in a base64 text; nothing if it is none."""
    try:
        png = base64.b64decode(text)
    except ValueError:
        return b""
    return png if png.startswith(b"\x89PNG\r\n\x1a\n") else b""


def script_json(value: dict) -> Markup:
    """A value for a script element: no text in it can end the element."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def page_from(template: str, *scripts: str, **shown) -> str:
    """A page of a template of ours, autoescaped, with the stylesheet and the only scripts that may run.

    Args:
        template: its file, built on `page.html.j2`.
        scripts: of ours, in order.
        shown: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown |= {"css": Markup(_stylesheet()), "scripts": [Markup(script) for script in scripts]}
    page = environment.get_template(template).render(policy=policy_for(*scripts), **shown)
    page = _with_contents(page) if _CONTENTS in page else page
    return page.encode("utf-8", "replace").decode() + "\n"


def _stylesheet() -> str:
    """The CSS of all pages, code colours for light and dark included."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    ours = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{ours}"


def _take_title(notebook: nbformat.NotebookNode) -> str | None:
    """The first heading of the notebook, taken out of its cell: the page shows it in its header."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("# "):
            heading, _, cell.source = cell.source.lstrip().partition("\n")
            return heading.removeprefix("# ").strip()
    return None
