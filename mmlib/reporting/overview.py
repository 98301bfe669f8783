"""`README.md` of a report: what a code host shows of the folder, where pages cannot be opened."""

import re
from collections.abc import Sequence

import pandas as pd

from mmlib.files import printable
from mmlib.reporting.ablation import ablation_table, tuning_table
from mmlib.reporting.ablation_verdicts import ablation_verdicts
from mmlib.reporting.tables import Table, results_table

_MARKUP = re.compile(r"[\\`*\[\]<>~]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|^#")

# Figures that a reader wants first, by notebook; those that a report lacks are left out.
FIGURES = (
    "05_ablation-arms.png",
    "04_analysis-recall.png",
    "04_analysis-loss.png",
    "04_analysis-results.png",
    "04_analysis-published.png",
    "04_analysis-gallery-t2i.png",
    "04_analysis-gallery-i2t.png",
    "04_analysis-slots.png",
)


def overview(
    experiment: str,
    state: str,
    reason: str | None,
    pages: Sequence[str],
    files: Sequence[str],
    results: list[dict],
    ablations: Sequence[dict] = (),
) -> str:
    """The text of a report's `README.md`: state, results table, figures, links to the pages.

    Args:
        experiment: its name.
        state, reason: of the experiment.
        pages: names of the notebooks that have a page which can be shared.
        files: all files of the report.
        results: `results.json` of each evaluated run; none for an experiment that did not get there.
        ablations: the record of each ablation.
    """
    why = f" ({plain_text(reason)})" if reason else ""
    lines = [f"# {plain_text(experiment)}", "", f"State: **{plain_text(state)}**{why}.", ""]
    lines += [f"Made by `make report EXPERIMENT={experiment}`. Pages, to be opened in a browser:", ""]
    lines += [f"- [{plain_text(page)}]({page}.html)" for page in pages]
    if results:
        lines += ["", "## Results", *_tables(results)]
    for record in ablations:
        lines += _ablation(record)
    shown = [name for name in FIGURES if f"figures/{name}" in files]
    if shown:
        lines += ["", "## Figures", ""]
        lines += [f"![{name.split('-', 1)[1].removesuffix('.png')}](figures/{name})\n" for name in shown]
    return "\n".join(lines).rstrip() + "\n"


def plain_text(text: str) -> str:
    """Foreign text for Markdown: one line, shown as it is, neither link, image, HTML nor emphasis."""
    line = re.sub(r"\s*\n\s*", " ", printable(text.strip()))
    return _MARKUP.sub(r"\\\g<0>", line)


def _ablation(record: dict) -> list[str]:
    """Verdicts first, then the table that they rest on and what was tuned."""
    verdicts, tuned = ablation_verdicts(record), tuning_table(record)
    lines = ["", f"## {plain_text(record['run'])}", ""]
    lines += [f"- {plain_text(sentence)}" for sentence in verdicts.sentences]
    lines += ["", plain_text(verdicts.note)] if verdicts.note else []
    for table in (ablation_table(record), *([tuned] if isinstance(tuned, Table) else [])):
        lines += ["", *markdown_table(table.frame), "", plain_text(table.caption)]
    return lines


def _tables(results: list[dict]) -> list[str]:
    """One table if all runs were measured on the same thing, otherwise one for each, or why there is none."""
    try:
        table = results_table(results)
    except ValueError as error:
        if len(results) == 1:
            return ["", plain_text(str(error))]
        return [line for result in results for line in _tables([result])]
    return ["", *markdown_table(table.frame), "", plain_text(table.caption)]


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """The lines of a frame as a Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return ["| " + " | ".join(plain_text(str(v)).replace("|", "\\|") for v in row) + " |" for row in rows]
