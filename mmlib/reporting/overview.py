"""`README.md` of a report: what a code host shows of the folder, where pages cannot be opened."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mmlib.reporting.ablation import ablation_table, tuning_table
from mmlib.reporting.ablation_verdicts import ablation_verdicts
from mmlib.reporting.tables import Table, results_table

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


def write_overview(
    folder: Path,
    experiment: str,
    state: str,
    reason: str | None,
    results: list[dict],
    ablations: Sequence[dict] = (),
) -> None:
    """Writes `README.md` into a report's folder: state, results table, figures, links to the pages.

    Args:
        folder: of the report; its pages and figures are there already.
        experiment: its name.
        state, reason: of the experiment.
        results: `results.json` of each evaluated run; none for an experiment that did not get there.
        ablations: the record of each ablation.
    """
    lines = [f"# {experiment}", "", f"State: **{state}**" + (f" ({reason})" if reason else "") + ".", ""]
    lines += [f"Made by `make report EXPERIMENT={experiment}`. Pages, to be opened in a browser:", ""]
    lines += [f"- [{page.stem}]({page.name})" for page in _pages(folder)]
    if results:
        lines += ["", "## Results", *_tables(results)]
    for record in ablations:
        lines += _ablation(record)
    shown = [name for name in FIGURES if (folder / "figures" / name).exists()]
    if shown:
        lines += ["", "## Figures", ""]
        lines += [f"![{name.split('-', 1)[1].removesuffix('.png')}](figures/{name})\n" for name in shown]
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _ablation(record: dict) -> list[str]:
    """Verdicts first, then the table that they rest on and what was tuned."""
    verdicts, tuned = ablation_verdicts(record), tuning_table(record)
    lines = ["", f"## {record['run']}", "", *(f"- {sentence}" for sentence in verdicts.sentences)]
    lines += ["", verdicts.note] if verdicts.note else []
    for table in (ablation_table(record), *([tuned] if isinstance(tuned, Table) else [])):
        lines += ["", *markdown_table(table.frame), "", table.caption]
    return lines


def _tables(results: list[dict]) -> list[str]:
    """One table if all runs were measured on the same thing, otherwise one for each, or why there is none."""
    try:
        table = results_table(results)
    except ValueError as error:
        if len(results) == 1:
            return ["", str(error)]
        return [line for result in results for line in _tables([result])]
    return ["", *markdown_table(table.frame), "", table.caption]


def _pages(folder: Path) -> list[Path]:
    return [page for page in sorted(folder.glob("*.html")) if not page.name.endswith(".private.html")]


def markdown_table(frame: pd.DataFrame) -> list[str]:
    """The lines of a frame as a Markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
