"""What a run goes on from: its last checkpoint, and whether the rest of its folder fits to it."""

from pathlib import Path

from mmlib import paths
from mmlib.config import TrainConfig
from mmlib.training.checkpoint import load_checkpoint
from mmlib.training.runs import parse_history, run_folder

_ANEW = "bring it back from a copy, or train again with overwrite=True"


def last_checkpoint(config: TrainConfig) -> tuple[Path, dict] | None:
    """Path and content of the checkpoint that a run goes on from; None if it starts.

    That is `last.pt`.  Where it is gone, `best.pt` is as good: it was written at the end of an epoch, and
    the epochs behind it are trained again.

    Raises:
        FileNotFoundError: a file of the run is missing without which its folder would end wrong.
        ValueError: a damaged file.
    """
    folder = run_folder(config.run)
    last, best = folder / "last.pt", folder / "best.pt"
    if config.overwrite:
        return None
    if not (folder / "config.json").exists():
        if last.exists():
            raise FileNotFoundError(
                f"expected {paths.shown(folder / 'config.json')} beside last.pt, found nothing there (it was"
                f" deleted, or an overwriting was cut short); {_ANEW}"
            )
        return None
    if not last.exists():
        return _from_best(best)
    try:
        content = load_checkpoint(last)
    except ValueError as error:
        hint = "; delete last.pt, and the run goes on from best.pt" if best.exists() else ""
        raise ValueError(f"{error}{hint}") from None
    _check_folder(last, content)
    return last, content


def _from_best(path: Path) -> tuple[Path, dict] | None:
    if not path.exists():
        return None
    content = load_checkpoint(path)
    _check_folder(path, content)
    return path, content


def check_history(path: Path, content: dict) -> None:
    """Passes if the history beside the checkpoint at `path` has all epochs before it.

    Raises:
        FileNotFoundError: names those that it lacks.
        ValueError: it is damaged.
    """
    if lacking := _lacking(path.parent.name, content):
        raise FileNotFoundError(
            f"expected the epochs 1 to {content['position']['epoch'] - 1} in"
            f" {paths.shown(path.with_name('history.jsonl'))}, as {path.name} goes on behind them, found no"
            f" {', '.join(map(str, lacking))}; {_ANEW}"
        )


def _check_folder(path: Path, content: dict) -> None:
    """Passes if what was written before the checkpoint at `path` is there."""
    folder = path.parent
    check_history(path, content)
    best = content["best"]["epoch"]
    missing = [n for n in ("best.pt", "model.safetensors") if best and not (folder / n).exists()]
    if missing:
        raise FileNotFoundError(
            f"expected {paths.shown(folder / missing[0])}, the weights of epoch {best}, the best one so far,"
            f" found nothing there; {_ANEW}"
        )


def _lacking(run: str, content: dict) -> list[int]:
    """The epochs before a checkpoint that the history does not have."""
    path = run_folder(run) / "history.jsonl"
    there = {row["epoch"] for row in parse_history(path)[0]} if path.is_file() else set()
    return [epoch for epoch in range(1, content["position"]["epoch"]) if epoch not in there]
