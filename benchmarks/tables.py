"""Rows as text and as Markdown, results as JSON, and the table of README.md out of it."""

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
QUICK = "-quick"
README = FOLDER / "README.md"
BEGIN, END = "<!-- results: written by python -m benchmarks --readme -->", "<!-- end of results -->"
HEAD = ("what", "work", "ours", "the other way", "times faster", "peak memory, ours / other")


def cells(row: dict) -> tuple[str, ...]:
    """A row as the six texts of `HEAD`."""
    unit = row["unit"]
    note = f" ({row['note']})" if row.get("note") else ""
    if row.get("ours") is None:
        return row["what"], row["work"], "–", row.get("note", ""), "–", "–"
    ours = f"{_number(row['ours'])} {unit}, {row['ours_name']}"
    if row.get("peer") is None:
        return row["what"], row["work"], ours, note.strip(" ()") or "–", "–", _mib(row.get("ours_peak_mib"))
    spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f}, n={row['repetitions']})"
    memory = f"{_mib(row.get('ours_peak_mib'))} / {_mib(row.get('peer_peak_mib'))}"
    return (
        row["what"],
        row["work"],
        ours,
        f"{_number(row['peer'])} {unit}, {row['peer_name']}{note}",
        spread,
        memory,
    )


def markdown(results: dict) -> str:
    """The machine and a table for each section."""
    machine = results["machine"]
    hardware = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    parts = [
        f"{hardware}, {machine['threads']} threads, {machine['memory_gib']} GiB; Python {machine['python']},"
        f" torch {machine['torch']}; {results['date']}."
    ]
    for section, rows in results["sections"].items():
        lines = ["| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *map(cells, rows))]
        parts.append(f"**{section}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def text(section: str, rows: list[dict]) -> str:
    """A section for a terminal: one block of lines for each row."""
    lines = [f"== {section} =="]
    for row in rows:
        what, work, ours, peer, ratio, memory = cells(row)
        lines += [
            f"{what}: {work}",
            f"    ours {ours}",
            f"    other {peer}",
            f"    x {ratio}   peak {memory}",
        ]
    return "\n".join(lines)


def write_results(results: dict) -> Path:
    """Writes `results/<machine>.json`; sections not measured this time keep their rows.

    The short form has a file of its own, which is neither published nor kept by git.
    """
    path = RESULTS / f"{results['machine']['name']}{QUICK if results['quick'] else ''}.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        results = {**results, "sections": {**before["sections"], **results["sections"]}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    return path


def results_block() -> str:
    """All results of the full form as Markdown, a heading for each machine."""
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        if not path.stem.endswith(QUICK):
            parts.append(f"### {path.stem}\n\n{markdown(json.loads(path.read_text(encoding='utf-8')))}")
    return "\n\n".join(parts) or "No results yet."


def renew_readme() -> None:
    """Puts the tables of all results into README.md."""
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_results(readme: str) -> str:
    """The text of README.md with its tables replaced by those of `results/`.

    Raises:
        ValueError: the marks between which they stand are missing.
    """
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md: expected the lines {BEGIN!r} and {END!r}, found no such pair")
    before, after = readme.split(BEGIN)[0], readme.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{results_block()}\n\n{END}{after}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _mib(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} MiB"
