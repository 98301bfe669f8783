"""Parents: where a continued run comes from, and whether it is of the same data."""

from dataclasses import dataclass

from mmlib import paths
from mmlib.data import Tokenizer, restore_tokenizer
from mmlib.files import read_json
from mmlib.training.runs import run_folder, stored_environment


@dataclass(frozen=True)
class Parent:
    """Where a continued run starts."""

    run: str
    checkpoint: str
    optimizer_state: str
    content: dict  # the loaded checkpoint

    @property
    def epoch(self) -> int:
        """The epoch at whose end the checkpoint was written."""
        return self.content["position"]["epoch"] - 1

    @property
    def lineage(self) -> dict:
        """What `environment.json` keeps of the parent."""
        return {
            "run": self.run,
            "checkpoint": self.checkpoint,
            "epoch": self.epoch,
            "optimizer_state": self.optimizer_state,
        }


def stored_tokenizer(run: str) -> Tokenizer:
    """The tokenizer that a run was trained with.

    Raises:
        FileNotFoundError, ValueError: there is none, or its file is damaged.
    """
    path = run_folder(run) / "tokenizer.json"
    state = read_json(path)
    try:
        return restore_tokenizer(state)
    except ValueError as error:
        raise ValueError(f"{paths.shown(path)}: {error}") from None
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = f"expected a tokenizer, found {type(error).__name__}: {error}"
        raise ValueError(
            f"{paths.shown(path)} is damaged: {reason:.300}; bring it back from a copy"
        ) from None


def check_same_data(run: str, name: str, fingerprint: str, there: dict | None = None) -> None:
    """Passes if a run was trained on these data, or has not begun.

    Args:
        run: its name.
        name, fingerprint: of the data that are here.
        there: name and fingerprint of the run's data; by default those in its `environment.json`.

    Raises:
        ValueError: names both data sets with their fingerprints.
    """
    if there is None:
        path = run_folder(run) / "environment.json"
        if not path.exists():
            return
        there = stored_environment(run)["data"]
    if there["fingerprint"] != fingerprint:
        raise ValueError(
            f"run {run!r} was trained on other data: {there['name']} with fingerprint {there['fingerprint']}"
            f" there, {name} with {fingerprint} here; bring those data back, or train a new run"
        )
