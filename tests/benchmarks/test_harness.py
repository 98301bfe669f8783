"""The harness: ratios, the order of calls, memory in a process of its own, names, tables, results."""

import json
import platform

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, ranks, tables
from benchmarks.harness import Contender, alternate, compare, peak_memory, row, unavailable


def test_a_row_divides_the_seconds_of_each_repetition():
    made = row("what", "work", "pairs/s", ("a", [1.0, 2.0, 4.0], 10.0), ("b", [2.0, 8.0, 4.0], None), 80)
    assert (made["ours"], made["peer"]) == (40, 20)  # 80 pairs in the median of 2 and of 4 seconds
    assert (made["ratio"], made["ratio_low"], made["ratio_high"]) == (2, 1, 4)
    assert made["repetitions"] == 3
    assert (made["ours_peak_mib"], made["peer_peak_mib"]) == (10, None)


def test_contenders_take_turns_and_none_is_always_first():
    calls = []

    def work(name):
        return lambda: calls.append(name) or float(len(calls))

    seconds = alternate([work("a"), work("b")], repetitions=3, warm_up=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert seconds == [[3, 6, 7], [4, 5, 8]]  # what the work itself counted is taken


def counted(seconds):
    return lambda: seconds


def test_a_comparison_has_a_row_for_each_peer():
    peers = [Contender("slow", counted, {"seconds": 6.0}), Contender("fast", counted, {"seconds": 1.0})]
    rows = compare(
        "x",
        Contender("ours", counted, {"seconds": 2.0}),
        peers,
        work="w",
        memory=False,
        notes={"fast": "less"},
    )
    assert [(r["peer_name"], r["ratio"], r["note"]) for r in rows] == [("slow", 3, ""), ("fast", 0.5, "less")]


def test_memory_is_that_of_the_work_alone():
    """500 x 2,500 similarities are 4.8 MiB, their order in int64 9.5 MiB; torch itself is hundreds."""
    measured = peak_memory(Contender("argsort", ranks.argsort_whole, {"images": 500, "width": 8}))
    assert 14 < measured["peak_mib"] < 150
    assert measured["baseline_mib"] > 100


def test_a_contender_that_fails_is_named():
    with pytest.raises(RuntimeError, match=r"argsort: measuring memory failed:[\s\S]*TypeError"):
        peak_memory(Contender("argsort", ranks.argsort_whole, {"width": 8}))


def test_the_machine_is_named_by_its_hardware():
    assert (
        machine.sanitised("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz 8 cores")
        == "intel-xeon-e5-2680-v4-8-cores"
    )
    assert machine.sanitised("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    described = json.dumps(machine.describe("cpu"))
    assert platform.node() not in described or len(platform.node()) < 3


ROW = row("what", "work", "s", ("ours", [1.0, 1.5], 1234.0), ("other", [2.0, 3.3], 5.0))


def test_cells_say_value_ratio_spread_and_memory():
    assert tables.cells(ROW | {"note": "half"}) == (
        "what", "work", "1.25 s, ours", "2.65 s, other (half)", "2.10 (2.00–2.20, n=2)", "1,234 MiB / 5 MiB",
    )  # fmt: skip
    assert tables.cells(unavailable("what", "work", "one GPU"))[2:4] == ("–", "not available: one GPU")


@pytest.fixture
def results_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    tables.README.write_text(f"before\n{tables.BEGIN}\nstale table\n{tables.END}\nafter\n", encoding="utf-8")
    return tmp_path


def stored(folder) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_sections_not_measured_keep_their_rows(results_folder, monkeypatch, capsys):
    monkeypatch.setattr(command, "section_rows", lambda name, quick, device: [ROW | {"what": name}])
    assert command.main(["--only", "ranks,cold"]) == 0
    monkeypatch.setattr(command, "section_rows", lambda name, quick, device: [ROW | {"what": "anew"}])
    assert command.main(["--only", "cold"]) == 0
    sections = stored(results_folder)["sections"]
    assert (sections["ranks"][0]["what"], sections["cold"][0]["what"]) == ("ranks", "anew")
    assert "x 2.10 (2.00–2.20, n=2)" in capsys.readouterr().out
    readme = tables.README.read_text(encoding="utf-8")
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "| anew | work | 1.25 s, ours |" in readme
    assert "stale table" not in readme


def test_the_short_form_has_a_file_of_its_own_and_is_not_published(results_folder, monkeypatch):
    monkeypatch.setattr(command, "section_rows", lambda name, quick, device: [ROW])
    assert command.main(["--quick", "--only", "cold"]) == 0
    (path,) = results_folder.glob("*.json")
    assert path.stem.endswith("-quick")
    assert "No results yet" in tables.README.read_text(encoding="utf-8")


def test_a_section_that_fails_costs_only_itself(results_folder, monkeypatch, capsys):
    def rows_of(name, quick, device):
        if name == "ranks":
            raise OSError("no space")
        return [ROW]

    monkeypatch.setattr(command, "section_rows", rows_of)
    assert command.main(["--only", "ranks,cold"]) == 1
    assert list(stored(results_folder)["sections"]) == ["cold"]
    assert "failed: ranks" in capsys.readouterr().err


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "rank"])
    assert (
        "expected some of images,training,reference,ranks,cold,index,scaling, found rank"
        in capsys.readouterr().err
    )


def test_the_readme_has_the_tables_of_the_results():
    text = tables.README.read_text(encoding="utf-8")
    assert tables.with_results(text) == text, "run: python -m benchmarks --readme"


def test_a_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="expected the lines '<!-- results"):
        tables.with_results("# Benchmarks\n")
