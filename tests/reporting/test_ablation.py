"""Tables, verdicts, figure and checks of an ablation, and its way into pages, README and index."""

import json
import re
from dataclasses import replace

import pytest
import reporting_samples as samples

from mmlib import files
from mmlib.config import ParameterError
from mmlib.files import read_json, write_json
from mmlib.metrics import paired_ranks, retrieval_ranks, summarise, summarise_seeds
from mmlib.pipeline import check, plan, run_experiment
from mmlib.reporting import (
    ablation_checks,
    ablation_figure,
    ablation_table,
    ablation_verdicts,
    plan_table,
    tuning_table,
)
from mmlib.reporting.publish import write_index
from mmlib.reporting.report import write_report
from mmlib.training.ablation import judge_claims
from mmlib.training.runs import run_folder

REASON = "FloatingPointError: the loss became nan"
SKILL = {"strong": 1.2, "weak": 0.4}


def ranks_of(skill: float, seed: int):
    return retrieval_ranks(*samples.embeddings(skill, seed))


def run(name: str, seed: int, state: str = "complete", **more) -> dict:
    complete = state == "complete"
    return {
        "run": name, "seed": seed, "state": state, "reason": None if complete else REASON,
        "epoch": 3 if complete else None, "validation": 0.25 if complete else None,
    } | more  # fmt: skip


def statistics(ranks: list) -> dict:
    if len(ranks) > 1:
        return {"interval": "seeds and queries", "metrics": summarise_seeds(ranks, resamples=100)}
    summary, metrics = summarise(ranks[0]), {}
    for d in ("i2t", "t2i"):
        for field in ("r1", "r5", "r10"):
            metrics[f"{d}_{field}"] = summary[d][field] | {"mean": summary[d][field]["value"]}
        metrics[f"{d}_median_rank"] = {"mean": summary[d]["median_rank"], "low": None, "high": None}
    metrics["rsum"] = {"mean": summary["rsum"], "low": None, "high": None}
    for metric in metrics.values():
        metric["values"] = [metric["mean"]]
    return {"interval": "queries", "metrics": metrics}


def record(seeds=(0, 1), skill=SKILL, claims=(("strong beats weak", "strong", "weak"),)) -> dict:
    """Two arms that were trained and one that diverged; the weak one was tuned."""
    ranks = {name: {seed: ranks_of(of_arm, seed) for seed in seeds} for name, of_arm in skill.items()}
    claims = [dict(zip(("claim", "arm", "over"), claim)) for claim in claims]
    final = {"trainable_weights": 12_345, "seconds": 61.2}
    arms = [
        {
            "name": name, "differs": {"lr": 0.1} if name == "weak" else {}, "tuned": {}, "tried": [],
            "runs": [run(f"abl.{name}.s{seed}", seed, **final) for seed in seeds], "pretraining": "none",
            **statistics(list(ranks[name].values())),
        }
        for name in skill
    ]  # fmt: skip
    tried = [
        run("abl.weak.s0", 0, tuned={"dropout": 0.1}, chosen=True),
        run("abl.weak.s0.b", 0, tuned={"dropout": 0.2}, chosen=False, validation=0.2),
        run("abl.weak.s0.c", 0, "failed", tuned={"dropout": 0.3}, chosen=False),
    ]
    arms[1] |= {"tried": tried, "tuned": {"dropout": 0.1}}
    failed = [run(f"abl.gone.s{seed}", seed, "failed", **final) for seed in seeds]
    arms.append(
        {
            "name": "gone",
            "differs": {"lr": 9.0},
            "tuned": {},
            "tried": [],
            "runs": failed,
            "pretraining": None,
        }
        | {"interval": None, "metrics": {}}
    )
    return {
        "run": "abl", "base": "b.yaml", "changes": {}, "seeds": list(seeds), "select_by": "rsum",
        "scope": {
            "data": "shapes", "fingerprint": samples.DATA["fingerprint"], "split": "test",
            "protocol": "standard", "images": 60, "captions": 180,
        },
        "chance": {f"{d}_r{k}": 0.02 * k for d in ("i2t", "t2i") for k in (1, 5, 10)},
        "arms": arms, "claims": judge_claims(claims, ranks | {"gone": {}}, resamples=500),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ablation() -> dict:
    return record()


@pytest.fixture
def folders(repository, ablation):
    """The run folders that `ablation` says it was made from."""
    (files.RUNS / "abl").mkdir(parents=True)
    write_json(run_folder("abl") / "ablation.json", ablation)
    write_json(run_folder("abl") / "status.json", {"state": "complete", "reason": None})
    for arm in ablation["arms"]:
        for one in (*arm["runs"], *arm["tried"]):
            if (files.RUNS / one["run"]).exists():
                continue
            folder = repository.run(one["run"], one["state"], one["reason"], result=False)
            if one in arm["runs"] and one["state"] == "complete":
                ranks = ranks_of(SKILL[arm["name"]], one["seed"])
                paired = paired_ranks(*samples.embeddings(SKILL[arm["name"]], one["seed"]))
                protocols = {r.protocol: summarise(r) for r in (ranks, paired)}
                write_json(folder / "results.json", samples.result(one["run"]) | {"protocols": protocols})
                ranks.save(folder / "ranks.npz")
    return files.RUNS


def test_the_table_has_both_directions_of_each_arm_and_what_failed(ablation):
    table = ablation_table(ablation)
    frame = table.frame
    assert list(frame["arm"]) == ["strong", "", "weak", "", "gone", "gone"]
    assert list(frame["direction"])[:2] == ["image → text", "text → image"]
    assert list(frame["n"])[:2] == ["60", "180"]
    recall = ablation["arms"][0]["metrics"]["t2i_r5"]
    shown = [100 * recall[name] for name in ("mean", "low", "high")]
    assert frame["R@5"][1].replace("\N{NO-BREAK SPACE}", " ") == "{:.1f} % ({:.1f}–{:.1f})".format(*shown)
    assert frame["what differs"][0] == "base line"
    assert (frame["what differs"][2], frame["tuned"][2], frame["seeds"][2]) == (
        "lr 0.1",
        "dropout 0.1",
        "0, 1",
    )
    assert (frame["trained weights"][0], frame["training, s"][0], frame["pretraining"][0]) == (
        "12,345",
        "61",
        "none",
    )
    assert list(frame["direction"])[4:] == [f"failed: {REASON}"] * 2
    assert "95 % interval over seeds and queries together" in table.caption
    assert "shapes · test split · protocol standard · 60 image and 180 caption queries" in table.caption
    assert "queries alone" not in table.caption


def test_a_record_of_before_there_were_ensembles_is_shown_as_ever(ablation):
    older = ablation | {"ensembles": None}
    assert ablation_table(older).frame.equals(ablation_table(ablation).frame)
    assert len(ablation_figure(older).axes[0].get_yticks()) == len(ablation["arms"])


def test_of_one_seed_the_interval_is_said_to_be_of_queries_alone():
    table = ablation_table(record(seeds=(4,)))
    assert "95 % interval over queries alone, which says nothing of other seeds" in table.caption
    assert "seeds and queries" not in table.caption
    assert table.frame["seeds"][0] == "4"


def test_tuning_shows_what_was_tried_chosen_and_lost(ablation):
    table = tuning_table(ablation)
    assert list(table.frame["tried"]) == ["dropout 0.1", "dropout 0.2", "dropout 0.3"]
    assert list(table.frame["validation rsum"]) == ["25.0 %", "20.0 %", f"failed: {REASON}"]
    assert table.frame["chosen"][0] == "✓ (the lowest dropout tried: a better one may lie beyond)"
    assert list(table.frame["chosen"][1:]) == ["", ""]
    assert "seed 0 alone" in table.caption
    nothing = ablation | {"arms": [arm | {"tried": []} for arm in ablation["arms"]]}
    assert tuning_table(nothing).sentences == ("Nothing was tuned: all values were fixed before.",)
    assert "tuned" not in ablation_table(nothing).frame


def test_verdicts_are_sentences_with_their_numbers():
    claims = [
        ("strong wins", "strong", "weak"),
        ("weak wins", "weak", "strong"),
        ("gone wins", "gone", "weak"),
    ]
    found = record(seeds=(0, 1, 2), claims=claims)
    verdicts = ablation_verdicts(found)
    supported, contradicted, open_ = verdicts.sentences
    number = found["claims"][0]["metrics"]["mean_r1"]
    assert supported.startswith(
        f"Supported: “strong wins”: strong {100 * number['b']:.1f} % against weak {100 * number['a']:.1f} %"
    )
    assert "3 seeds, n = 60 images and 180 captions of the test split" in supported
    low, high = (f"{100 * number[name]:+.2f}" for name in ("low", "high"))
    assert f"95 % {low} to {high} over seeds and queries" in supported
    assert re.search(r"; p [=<] 0\.\d+, Holm over 2 claims\.$", supported)
    assert contradicted.startswith("Contradicted: “weak wins”; the opposite was found: weak")
    assert open_.startswith("Not judged: “gone wins”: no seed with both arms complete.")
    assert REASON in open_
    assert "permutation test by image gives p < 0.05, corrected over the 2 claims (Holm)" in verdicts.caption
    assert "<p><strong>Supported" in verdicts._repr_html_()


def test_negative_results_and_single_seeds_are_said_plainly():
    alike = record(seeds=(0,), skill={"strong": 0.8, "weak": 0.8}, claims=[("a < b", "strong", "weak")])
    (sentence,) = ablation_verdicts(alike).sentences
    assert sentence.startswith("No evidence that “a < b”: strong")
    assert "1 seed, which says nothing of others" in sentence
    assert "Difference +0.00 points, 95 % +0.00 to +0.00 over queries; p = 1.00." in sentence
    assert "a &lt; b" in ablation_verdicts(alike)._repr_html_()
    assert ablation_verdicts(alike | {"claims": []}).sentences == ("No claim was put to the test.",)


def test_the_figure_has_an_arm_a_row_with_interval_seeds_and_chance(ablation):
    figure = ablation_figure(ablation)
    first, last = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["strong", "weak", "gone"]
    assert (first.get_xlabel(), last.get_xlabel()) == ("R@1 (%)", "R@10 (%)")
    metric = ablation["arms"][1]["metrics"]["i2t_r1"]
    drawn = [line.get_xdata() for line in first.lines]
    means = [100 * arm["metrics"]["i2t_r1"]["mean"] for arm in ablation["arms"][:2]]
    assert any(list(x) == pytest.approx(means) for x in drawn)
    assert any(list(x) == pytest.approx([100 * v for v in metric["values"]]) for x in drawn)
    assert any(list(x) == pytest.approx([2.0, 2.0]) for x in drawn)  # chance
    assert [text.get_text() for text in first.texts].count("failed") == 1
    assert "for the arms strong, weak, gone" in figure.get_label()
    assert not re.search(r"\d\.\d", figure.get_label())
    assert "over seeds and queries" in figure.texts[1].get_text()


def test_the_checks_pass_and_name_what_diverged(folders, ablation):
    table = ablation_checks(ablation)
    assert set(table.frame[""]) == {"✓"}
    assert "abl.weak.s0.c" in table.caption
    assert "abl.gone.s1" in table.caption


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (
            lambda f: (f / "abl.strong.s1" / "status.json").unlink(),
            "every planned run has ended",
        ),
        (
            lambda f: write_json(f / "abl.weak.s0.b" / "results.json", samples.result("abl.weak.s0.b")),
            "no other run was evaluated on test: expected [], found ['abl.weak.s0.b']",
        ),
        (
            lambda f: ranks_of(0.1, 7).save(f / "abl.strong.s0" / "ranks.npz"),
            "the results are those of the kept ranks: expected [], found ['abl.strong.s0']",
        ),
        (
            lambda f: write_json(
                f / "abl.weak.s1" / "environment.json",
                read_json(f / "abl.weak.s1" / "environment.json")
                | {"data": samples.DATA | {"fingerprint": "f" * 16}},
            ),
            "all runs have the same data: expected [], found ['fingerprint differs (0123456789",
        ),
        (
            lambda f: (f / "abl.weak.s1" / "results.json").write_text(
                json.dumps(json.loads((f / "abl.weak.s1" / "results.json").read_text()) | {"split": "val"})
            ),
            "all final runs have the split and its queries",
        ),
    ],
)
def test_a_check_that_fails_is_named(folders, ablation, harm, expected):
    harm(folders)
    with pytest.raises(ValueError, match=re.escape(expected)):
        ablation_checks(ablation)


def test_an_arm_without_all_of_its_seeds_fails_the_checks(folders, ablation):
    short = ablation | {"arms": [arm | {"runs": arm["runs"][:1]} for arm in ablation["arms"]]}
    with pytest.raises(ValueError, match="each arm has a final run for every seed"):
        ablation_checks(short)


# --- pages, README, index


@pytest.fixture
def report(repository, folders):
    repository.executed("abl", "05_ablation", [], parameters='run: str = "abl"  # name')
    return write_report("abl")


def test_the_readme_leads_with_the_verdicts(report, ablation):
    text = (report / "README.md").read_text(encoding="utf-8")
    assert "State: **complete**." in text
    assert f"- {ablation_verdicts(ablation).sentences[0]}" in text
    assert text.count("| arm |") == 2  # results, tuning
    assert "| run |" not in text


def test_the_report_keeps_the_record_and_the_numbers_of_each_run(report, ablation):
    content = json.loads((report / "results.json").read_text())
    assert content["ablations"] == {"abl": ablation}
    assert content["metrics"]["abl.strong.s1"]["test"]["split"] == "test"
    assert "abl" not in content["runs"]


def test_the_index_shows_the_best_arm_of_an_ablation(report, ablation):
    strong = next(arm["metrics"]["i2t_r1"] for arm in ablation["arms"] if arm["name"] == "strong")
    shown = f"{100 * strong['mean']:.1f} % ({100 * strong['low']:.1f}–{100 * strong['high']:.1f})"
    row = re.search(r'<tr data-of="0">.*?</tr>', write_index().read_text(encoding="utf-8"))[0]
    cells = re.findall(r'<td data-label="(?:best run or arm|image → text R@1)">(.*?)</td>', row)
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in cells] == ["strong", shown]


def test_the_index_shows_verdicts_in_place_of_the_numbers_of_one_run(report, ablation):
    page = write_index().read_text(encoding="utf-8")
    assert ablation_verdicts(ablation).sentences[0] in page
    assert "direction</th>" not in page
    assert '<a href="abl/05_ablation.html">' in page


def test_a_run_that_is_gone_makes_the_ablation_incomplete(repository, folders):
    repository.executed("abl", "05_ablation", [], parameters='run: str = "abl"  # name')
    (folders / "abl.strong.s0" / "status.json").unlink()
    write_report("abl")
    content = json.loads((files.REPORTS / "abl" / "results.json").read_text())
    assert content["state"] == "failed"
    assert "abl.strong.s0" in content["reason"]


def test_a_damaged_record_is_no_end_of_the_report(repository, folders):
    (folders / "abl" / "ablation.json").write_text("{")
    repository.executed("abl", "05_ablation", [], parameters='run: str = "abl"  # name')
    write_report("abl")
    assert "abl" in json.loads((files.REPORTS / "abl" / "results.json").read_text())["runs"]


# --- what is asked before anything is executed


@pytest.fixture
def planned(repository):
    repository.notebook(
        "01_train",
        parameters='dataset: str = "shapes"  # set\nepochs: int = 1  # number\nlr: float = 0.1  # rate',
    )
    repository.notebook("05_ablation", parameters='run: str = "abl"  # name')
    (files.ROOT / "base.yaml").write_text("epochs: 2\nlr: 0.1\n")

    def steps(text: str):
        repository.params("abl", "05_ablation", "base: base.yaml\n" + text)
        return plan("abl", {})[1]

    return steps


def test_a_wrong_ablation_stops_before_anything_is_executed(planned):
    planned("arms: {a: {memory_slotz: 3}}\n")
    with pytest.raises(ParameterError, match="unknown parameter 'memory_slotz'; did you mean 'memory_slots'"):
        run_experiment("abl")
    assert not files.REPORTS.exists()


def test_missing_data_of_an_ablation_stop_it_too(planned):
    steps = planned("arms: {a: {}}\nchanges: {dataset: flickr8k}\n")
    with pytest.raises(FileNotFoundError, match=r"05_ablation: expected the folder data/flickr8k"):
        check(steps)
    check([replace(steps[0], parameters=steps[0].parameters | {"data_root": str(files.ROOT)})])


def test_the_plan_is_a_row_an_arm(planned):
    from mmlib.config import AblationConfig, build
    from mmlib.training import plan_grid

    (step,) = planned("arms: {a: {}, b: {dropout: 0.5}}\nseeds: [0, 1, 2]\ntune: {b: {lr: [0.1, 0.2]}}\n")
    table = plan_table(plan_grid(build(AblationConfig, step.known | step.parameters)))
    assert list(table.frame["what differs"]) == ["nothing (base line)", "dropout 0.5"]
    assert list(table.frame["tuned on validation"]) == ["–", "lr 0.1; lr 0.2"]
    assert list(table.frame["runs"]) == [3, 4]
    assert table.caption.startswith("7 training runs;")


def test_an_ablation_of_last_epochs_says_so(ablation):
    of_last = ablation | {"select_by": "last"}
    assert " · last epoch of each run · " in ablation_table(of_last).caption
    tried = tuning_table(of_last)
    assert {"validation rsum", "last epoch"} <= set(tried.frame)
    assert "alone, last epoch of each run; the highest rsum is chosen" in tried.caption
    assert "best checkpoint of each run by rsum on validation" in ablation_table(ablation).caption
