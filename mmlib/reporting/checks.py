"""Checks that end a notebook: what must be true of the runs that were just shown."""

import numpy as np
import pandas as pd

from mmlib.metrics import RetrievalRanks, summarise
from mmlib.reporting.scope import summary_of
from mmlib.reporting.tables import Table
from mmlib.training.checkpoint import load_checkpoint
from mmlib.training.optimisation import learning_rate
from mmlib.training.runs import read_history, run_folder, run_state, stored_config, stored_environment


def check_run(run: str) -> Table:
    """Compares a run's folder with what its parameters promise.

    Returns:
        One row per check.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    config, history = stored_config(run), read_history(run)
    environment = stored_environment(run)
    parent = environment["parent"]
    first = 1 + (parent["epoch"] if parent else 0)
    own = [row for row in history if row["run"] == run]
    best = max(own, key=lambda row: row["val"][config.select_by])["epoch"] if own else None
    first_lr = learning_rate(config, 0, 0, own[0]["steps"]) if own else None
    checks = [
        ("state", "complete", run_state(run)[0]),
        ("epochs of this run", list(range(first, first + config.epochs)), [row["epoch"] for row in own]),
        (
            "no epoch of the lineage is missing",
            list(range(1, len(history) + 1)),
            [r["epoch"] for r in history],
        ),
        ("lr of the first step", first_lr, own[0]["lr"] if own else None),
        ("best checkpoint is of the best epoch", best, _epoch_of_best(run)),
        ("data of the parent", *_fingerprints(environment, parent)),
    ]
    return _passed(run, [check for check in checks if check[2] is not None])


def evaluation_checks(results: list[dict]) -> Table:
    """Compares evaluated results with the definitions of their protocols.

    Args:
        results: `results.json` of each run.

    Returns:
        One row per run and check.

    Raises:
        ValueError: a check failed; names it with what was expected and found.
    """
    tables = []
    for result in results:
        standard, paired = (summary_of(result, name) for name in ("standard", "paired"))
        sizes = result["data"]["splits"][result["split"]]
        ranks = RetrievalRanks.load(run_folder(result["run"]) / "ranks.npz")
        per_image = np.bincount(ranks.image_of_text_M)
        checks = [
            ("image queries are the split's images", sizes["images"], standard["i2t"]["n"]),
            ("caption queries are the split's captions", sizes["captions"], standard["t2i"]["n"]),
            ("the results are those of the kept ranks", summarise(ranks), standard),
        ]
        if len(set(per_image)) == 1:  # exact only where every image has as many captions
            hits = [part["i2t"]["r1"]["hits"] for part in (standard, paired)]
            checks.append(("paired and standard agree on image → text hits at 1", *hits))
        tables.append(_passed(result["run"], checks).frame)
    return Table(pd.concat(tables))


def _passed(run: str, checks: list[tuple]) -> Table:
    """A table of (what, expected, found), if all are equal; a ValueError otherwise."""
    failed = [
        f"{what}: expected {expected}, found {found}" for what, expected, found in checks if expected != found
    ]
    if failed:
        raise ValueError(f"run {run!r} fails its checks: {'; '.join(failed)}")
    return Table(pd.DataFrame([{"run": run, "check": what, "": "✓"} for what, _, _ in checks]))


def _epoch_of_best(run: str) -> int:
    return load_checkpoint(run_folder(run) / "best.pt")["best"]["epoch"]


def _fingerprints(environment: dict, parent: dict | None) -> tuple[str | None, str | None]:
    if parent is None:
        return None, None
    there = stored_environment(parent["run"])["data"]["fingerprint"]
    return there, environment["data"]["fingerprint"]
