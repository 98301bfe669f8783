"""Numbers with their scope: no figure or table shows one without data set, split, protocol and n."""

from mmlib.metrics.compare import check_comparable

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
DIRECTIONS = ("i2t", "t2i")
RECALLS = ("r1", "r5", "r10")


def scope(dataset: str, split: str, summary: dict) -> str:
    """`shapes · test split · protocol standard · 250 image and 1,250 caption queries`."""
    return (
        f"{dataset} · {SPLIT_NAMES.get(split, split)} split · protocol {summary['protocol']}"
        f" · {summary['i2t']['n']:,} image and {summary['t2i']['n']:,} caption queries"
    )


def result_scope(result: dict, protocol: str = "standard") -> str:
    """The scope of one run's `results.json` under a protocol.

    Raises:
        ValueError: the run was not evaluated under that protocol.
    """
    return scope(result["data"]["name"], result["split"], summary_of(result, protocol))


def summary_of(result: dict, protocol: str) -> dict:
    """A run's numbers under one protocol.

    Raises:
        ValueError: the run was not evaluated under that protocol.
    """
    if protocol not in result["protocols"]:
        raise ValueError(
            f"run {result['run']!r} has no result under protocol {protocol!r}, only under"
            f" {', '.join(map(repr, result['protocols']))}; evaluate it with 03_evaluate"
        )
    return result["protocols"][protocol]


def check_one_scope(results: list[dict], protocol: str) -> None:
    """Refuses to put results side by side that were measured on different things.

    Raises:
        ValueError: no results, or a run without that protocol, or two that may not be compared.
    """
    if not results:
        raise ValueError("expected the results of at least one run, found none; run 03_evaluate first")
    for result in results:
        summary_of(result, protocol)  # refuses a run without that protocol
    check_comparable(results, protocol)


def percent(fraction: float, like: float | None = None) -> str:
    """`12.3`, or `0.34` below one percent; `like` gives the number whose decimals to follow."""
    follow = fraction if like is None else like
    return f"{100 * fraction:.{2 if 0 < follow < 0.01 else 1}f}"


def p_text(p: float | None) -> str:
    """`0.032`, `< 0.001` where digits would say more than they know, nothing for None."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def recall_text(recall: dict) -> str:
    """`12.4 % (8.9–17.1)`: an R@K with its 95 % interval."""
    value = recall["value"]
    low, high = (percent(recall[bound], like=value) for bound in ("low", "high"))
    return f"{percent(value)}\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}({low}–{high})"


def phases(history: list[dict]) -> list[list[dict]]:
    """The rows of a history, one list a phase, in order.

    Raises:
        ValueError: the history is empty.
    """
    if not history:
        raise ValueError(
            "the history is empty: expected at least one finished epoch; the run stopped before its"
            " first validation, see its status.json"
        )
    return [
        [row for row in history if row["phase"] == phase] for phase in sorted({r["phase"] for r in history})
    ]


def best_row(rows: list[dict], by: str = "rsum") -> dict:
    """The epoch with the highest validation metric, the earliest of equals.

    Raises:
        ValueError: the metric is not in the validation summary.
    """
    for row in rows:
        if by not in row["val"]:
            raise ValueError(
                f"best by {by!r}: expected a metric of the validation summary ('rsum' or 'mean_r1'),"
                f" not found at epoch {row['epoch']}"
            )
    return max(rows, key=lambda row: row["val"][by])
