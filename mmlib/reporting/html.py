"""An executed notebook as a self-contained page, with its figures as PNG files beside it."""

import base64
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from mmlib.files import write_text_atomic
from mmlib.reporting.notebook import mark_of, outputs_of, read_notebook
from mmlib.reporting.state import Page

TEMPLATES = Path(__file__).parent / "templates"

_SHOWN = ["text/html", "text/markdown", "image/png", "text/plain"]  # nothing that runs or loads anything
_PAPERMILL_MARK = "papermill-error-cell-tag"  # its red error cells; the page has its own banner


def render_notebook(
    executed_ipynb: Path, out_html: Path, private: bool = False, pages: tuple[Page, ...] = ()
) -> None:
    """Renders an executed notebook as one page that loads nothing from anywhere.

    Outputs that are marked private (`mmlib.reporting.display`) are replaced by a sentence that says
    why, unless the page itself is private.  Figures are written beside the page too:
    `figures/<notebook>-<name>.png`, those of a private page `private/<notebook>-<name>.png`.

    Args:
        executed_ipynb: notebook with its outputs.
        out_html: the page; its folder's name is the experiment's.
        private: render the page that stays on this machine, with private outputs.
        pages: all pages of the experiment, for navigation and state; a notebook that is not among
            them counts as complete.

    Raises:
        FileNotFoundError, ValueError: as `read_notebook`.
    """
    notebook = read_notebook(executed_ipynb)
    name = executed_ipynb.stem
    page = next((p for p in pages if p.name == name), Page(name, "complete", executed=executed_ipynb))
    notebook.cells = [c for c in notebook.cells if _PAPERMILL_MARK not in c.metadata.get("tags", [])]
    _write_figures(notebook, out_html.parent, name, private)
    if not private:
        _withhold(notebook)
    title = _take_title(notebook) or name
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN}}),
    )
    context = {
        "title": title,
        "experiment": out_html.parent.name,
        "name": name,
        "state": page.state,
        "reason": page.reason,
        "private": private,
        "pages": pages,
        "css": stylesheet(),
    }
    body, _ = exporter.from_notebook_node(notebook, resources={"page": context})
    write_text_atomic(out_html, body)


def stylesheet() -> str:
    """The CSS of all pages, code colours for light and dark included."""
    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    plain = ".highlight, .highlight .err { background: var(--wash); border: 0; }"
    return "\n".join(
        [
            light,
            "@media (prefers-color-scheme: dark) {",
            dark,
            "}",
            (TEMPLATES / "report.css").read_text(encoding="utf-8"),
            plain,
        ]
    )


def _write_figures(notebook: nbformat.NotebookNode, folder: Path, name: str, private: bool) -> None:
    target = folder / ("private" if private else "figures")
    for stale in target.glob(f"{name}-*.png"):
        stale.unlink()
    for output in outputs_of(notebook):
        mark = mark_of(output)
        if (
            "image/png" in output.get("data", {})
            and mark.get("name")
            and mark.get("private", False) == private
        ):
            target.mkdir(parents=True, exist_ok=True)
            png = base64.b64decode(output.data["image/png"])
            (target / f"{name}-{mark['name']}.png").write_bytes(png)


def _withhold(notebook: nbformat.NotebookNode) -> None:
    for output in outputs_of(notebook):
        if mark_of(output).get("private"):
            output.data = {}
            output.withheld = mark_of(output).get("name", "")


def _take_title(notebook: nbformat.NotebookNode) -> str | None:
    """The first heading of the notebook, taken out of its cell: the page shows it in its header."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("# "):
            heading, _, cell.source = cell.source.lstrip().partition("\n")
            return heading.removeprefix("# ").strip()
    return None
