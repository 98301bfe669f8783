"""One rule for every table, figure, verdict and ablation: which runs may stand side by side."""

import json

import pytest
import reporting_samples as samples
from tiny_runs import TINY

from mmlib.config import AblationConfig, TrainConfig, build
from mmlib.metrics import paired_ranks, retrieval_ranks, summarise
from mmlib.reporting import ablation_checks, change_between, results_figure, results_table
from mmlib.reporting.results import changed_queries_list, changed_queries_table
from mmlib.training.ablation import ablation_record
from mmlib.training.ablation_plan import PlannedRun
from mmlib.training.runs import read_result

ONE, OTHER = samples.DATA | {"fingerprint": "1" * 16}, samples.DATA | {"fingerprint": "2" * 16}
HELD_OUT, HELD_OUT_2 = {"held_out_fingerprint": "a" * 16}, {"held_out_fingerprint": "b" * 16}
RUNS = ("abl.one.s0", "abl.two.s0")


@pytest.fixture
def places(repository):
    """Puts two evaluated runs into folders and says of every place whether it lets them stand together."""

    def compare(data_a: dict, data_b: dict, split_b: str = "test") -> dict[str, str | None]:
        for run, skill, data, split in zip(RUNS, (0.5, 0.9), (data_a, data_b), ("test", split_b)):
            folder = repository.run(run, result=False)
            sides = samples.embeddings(skill)
            ranks = retrieval_ranks(*sides)
            ranks.save(folder / "ranks.npz")
            protocols = {r.protocol: summarise(r) for r in (ranks, paired_ranks(*sides))}
            result = samples.result(run, data=data) | {"split": split, "protocols": protocols}
            (folder / "results.json").write_text(json.dumps(result))
            environment = {"data": data, "parent": None, "trainable_weights": 5}
            (folder / "environment.json").write_text(json.dumps(environment))
            history = json.dumps(samples.history()[0] | {"run": run})
            (folder / "history.jsonl").write_text(history + "\n")
            (folder / "status.json").write_text('{"state": "complete", "reason": null}')
            queries = {
                "fingerprint": data["fingerprint"],
                "split": split,
                "redistributable": True,
                "images": [f"{n}" for n in range(samples.IMAGES)],
                "captions": [f"{n}" for n in range(samples.IMAGES * samples.CAPTIONS)],
            }
            (folder / "queries.json").write_text(json.dumps(queries))
        results = [read_result(run) for run in RUNS]
        grid = build(AblationConfig, {"run": "abl", "base": "base.yaml", "arms": {}, "seeds": [0]})
        planned = [PlannedRun(run, {}, {}, build(TrainConfig, TINY | {"run": run})) for run in RUNS]

        def verdict() -> None:
            change = change_between(*RUNS)
            if change.frame is None:
                raise ValueError(*change.sentences)

        found = {}
        for place, show in {
            "table": lambda: results_table(results),
            "figure": lambda: results_figure(results),
            "verdict": verdict,
            "changed queries": lambda: changed_queries_table(*RUNS),
            "list of queries": lambda: changed_queries_list(*RUNS, "t2i"),
            "ablation": lambda: ablation_record(grid, planned, {}),
            "checks of an ablation": lambda: ablation_checks(ablation_record(grid, planned, {})),
        }.items():
            try:
                show()
                found[place] = None
            except ValueError as error:
                found[place] = str(error)
        return found

    return compare


@pytest.mark.parametrize(
    ("data_a", "data_b"),
    [
        (ONE | HELD_OUT, OTHER | HELD_OUT),  # other training sets beside the same data
        (ONE, OTHER | {"held_out_fingerprint": ONE["fingerprint"]}),  # the data alone, and more with them
        (ONE, ONE),  # results older than the field
    ],
)
def test_runs_that_hold_out_the_same_stand_together_everywhere(places, data_a, data_b):
    assert {place: said for place, said in places(data_a, data_b).items() if said} == {}


@pytest.mark.parametrize(
    ("data_b", "split_b", "reason"),
    [
        (ONE | HELD_OUT_2, "test", f"fingerprint differs ({'a' * 16} vs {'b' * 16})"),
        (ONE, "test", f"fingerprint differs ({'a' * 16} vs {'1' * 16})"),
        (ONE | HELD_OUT, "val", "split differs (test vs val)"),
        (ONE | HELD_OUT | {"name": "coco"}, "test", "data set differs (shapes vs coco)"),
    ],
)
def test_runs_that_hold_out_other_data_stand_together_nowhere(places, data_b, split_b, reason):
    said = places(ONE | HELD_OUT, data_b, split_b)
    assert {place for place, text in said.items() if reason in (text or "")} == said.keys()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (({}, {"select_by": "rsum"}), "best checkpoint of each run ·"),
        (({"select_by": "last"}, {"checkpoint": "last"}), "last epoch of each run ·"),
        (({"select_by": "last"}, {}), "best checkpoint of each run, of one the last epoch ·"),
    ],
)
def test_a_caption_says_which_weights_of_a_run_were_measured(chosen, said):
    results = [samples.result(run) | more for run, more in zip(("one", "two"), chosen)]
    assert said in results_table(results).caption
    assert said.removesuffix(" ·") in results_figure(results).texts[1].get_text().replace("\n", " ")
