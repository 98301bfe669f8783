"""An executed notebook as a self-contained page, with its figures as PNG files beside it."""

import base64
import warnings
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from mmlib.reporting.foreign import POLICY, harmless_html, png_of, well_formed
from mmlib.reporting.notebook import mark_of, outputs_of, read_notebook
from mmlib.reporting.state import Page

TEMPLATES = Path(__file__).parent / "templates"

_SHOWN = ["text/html", "text/markdown", "image/png", "text/plain"]  # nothing that runs or loads anything
_PAPERMILL_MARK = "papermill-error-cell-tag"  # its red error cells; the page has its own banner
_NO_PICTURE = "[a picture that is no PNG is left out]"


def render_notebook(
    executed_ipynb: Path, experiment: str, private: bool = False, pages: tuple[Page, ...] = ()
) -> dict[str, bytes]:
    """Renders an executed notebook as one page that runs nothing and loads nothing from anywhere.

    Outputs that are marked private (`mmlib.reporting.display`) are replaced by a sentence that says
    why, unless the page itself is private.  What is foreign in the notebook is made harmless
    (`mmlib.reporting.foreign`).

    Args:
        executed_ipynb: notebook with its outputs.
        experiment: its name.
        private: render the page that stays on this machine, with private outputs.
        pages: all pages of the experiment, for navigation and state; a notebook that is not among
            them counts as complete.

    Returns:
        Contents by file name in the report's folder: the page, `<notebook>.html` or
        `<notebook>.private.html`, and its named figures, `figures/<notebook>-<name>.png` or
        `private/<notebook>-<name>.png`.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: it cannot be read or shown, or a figure's name is no name for a file.
    """
    notebook = read_notebook(executed_ipynb)
    name = executed_ipynb.stem
    page = next((p for p in pages if p.name == name), Page(name, "complete", executed=executed_ipynb))
    try:
        notebook.cells = [c for c in notebook.cells if _PAPERMILL_MARK not in c.metadata.get("tags", [])]
        _keep_pictures(notebook)
        files = _figures(notebook, name, private)
        if not private:
            _withhold(notebook)
        context = {
            "title": _take_title(notebook) or name,
            "experiment": experiment,
            "name": name,
            "state": page.state,
            "reason": page.reason,
            "private": private,
            "pages": pages,
            "css": stylesheet(),
            "policy": POLICY,
        }
        with warnings.catch_warnings(action="ignore"):  # of outputs that no page can show
            body, _ = _exporter().from_notebook_node(notebook, resources={"page": context})
    except Exception as error:  # whatever a stranger's cells make of the exporter
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ValueError(f"{executed_ipynb.name} cannot be shown ({reason}); run it again") from None
    return {f"{name}{'.private' if private else ''}.html": well_formed(body).encode(), **files}


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


def _exporter() -> HTMLExporter:
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
        config=Config({"NbConvertBase": {"display_data_priority": _SHOWN}}),
    )
    exporter.register_filter("harmless_html", harmless_html)
    return exporter


def _keep_pictures(notebook: nbformat.NotebookNode) -> None:
    """Encodes pictures anew, and leaves out what only claims to be one."""
    for output in outputs_of(notebook):
        if "image/png" in output.get("data", {}):
            png = png_of(output.data["image/png"])
            if png:
                output.data["image/png"] = base64.b64encode(png).decode()
            else:
                output.data = {"text/plain": _NO_PICTURE}


def _figures(notebook: nbformat.NotebookNode, page: str, private: bool) -> dict[str, bytes]:
    folder = "private" if private else "figures"
    figures = {}
    for output in outputs_of(notebook):
        name, is_private = mark_of(output)
        if "image/png" in output.get("data", {}) and name and is_private == private:
            figures[f"{folder}/{page}-{name}.png"] = base64.b64decode(output.data["image/png"])
    return figures


def _withhold(notebook: nbformat.NotebookNode) -> None:
    for output in outputs_of(notebook):
        name, is_private = mark_of(output)
        if is_private:
            output.data = {}
            output.withheld = name or ""


def _take_title(notebook: nbformat.NotebookNode) -> str | None:
    """The first heading of the notebook, taken out of its cell: the page shows it in its header."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("# "):
            heading, _, cell.source = cell.source.lstrip().partition("\n")
            return heading.removeprefix("# ").strip()
    return None
