"""What an ablation will train: every run with its parameters, all of them checked before one is started.

An *arm* is one answer to the question that is asked (a tokenizer, an optimizer); it is trained under
every seed.  What is tuned for an arm is chosen on validation with the first seed.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmlib import paths
from mmlib.config import AblationConfig, ParameterError, TrainConfig, build, unread
from mmlib.params import notebook_defaults, read_yaml
from mmlib.training.grid_arms import Arm, arms_asked_for, repeated, text_of, tune_lists, wrong_request

# What decides which images and captions a run is measured on: no arm may have its own.
_MEASURED_ON = (
    "dataset", "shapes_seed", "shapes_train", "shapes_val", "shapes_test", "val_shards", "test_shards"
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One training run of an ablation.

    Attributes:
        arm: its name.
        differs: the parameters by which the arm differs from the base and the common changes.
        tuned: the values of tuned parameters that this run tries, none if nothing is tuned.
        config: all of its parameters; the name of the run and its seed among them.
    """

    arm: str
    differs: dict[str, Any]
    tuned: dict[str, Any]
    config: TrainConfig

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.config.run


def plan_grid(config: AblationConfig) -> list[PlannedRun]:
    """Every run that an ablation may train, arm by arm, seed by seed, value by value.

    Of an arm that is tuned, the first seed is trained with all values and the other seeds with the
    chosen ones alone.

    Raises:
        FileNotFoundError: no file `base`.
        ParameterError: names everything that is wrong: parameters that do not exist (with the nearest
            that does), values that make a run impossible (with the arm), arms that equal each other
            or are measured on other data, claims on arms that are not there.
    """
    base = read_yaml(config.base)
    shared = notebook_defaults(paths.NOTEBOOKS / "01_train.ipynb") | base
    arms = arms_asked_for(config)
    wrong = wrong_request(config, arms)
    if "parent" in shared:
        wrong.append(f"base: expected a run that starts from random weights, {config.base} continues another")
    base_run = shared | {"run": "base"}
    shared |= config.changes
    if config.image_weights is not None:
        shared["image_weights"] = config.image_weights
    planned = []
    if not wrong:
        for arm in arms:
            planned += _runs_of(config, arm, shared, wrong)
    if not wrong:
        wrong += [*_wrong_together(planned), *_wrong_shared(config, base, base_run, planned)]
    if wrong:
        lines = "\n".join(f"  {line}" for line in dict.fromkeys(wrong))
        raise ParameterError(f"ablation {config.run!r} cannot be run as it is asked for:\n{lines}")
    return planned


def arms_of(planned: list[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """The planned runs by arm, the base line first."""
    arms: dict[str, list[PlannedRun]] = {}
    for run in planned:
        arms.setdefault(run.arm, []).append(run)
    return arms


def candidates(arm: list[PlannedRun]) -> list[PlannedRun]:
    """The runs of one arm that its tuned values are chosen from: those of the first seed."""
    return [run for run in arm if run.config.seed == arm[0].config.seed]


def _runs_of(config: AblationConfig, arm: Arm, shared: dict[str, Any], wrong: list[str]) -> list[PlannedRun]:
    """The runs of one arm; what cannot be built is added to `wrong`."""
    lists = tune_lists(config, arm)
    planned = []
    for seed, values in itertools.product(config.seeds, itertools.product(*lists.values())):
        tuned = dict(zip(lists, values))
        suffix = "".join(f".{name}{text_of(value)}" for name, value in tuned.items())
        place = {"run": f"{config.run}.{arm.name}.s{seed}{suffix}", "seed": seed, "device": config.device}
        place |= {"overwrite": False} | ({"data_root": config.data_root} if config.data_root else {})
        try:
            built = build(TrainConfig, shared | arm.differs | tuned | place)
        except ParameterError as error:
            tried = "".join(f", {name} {value!r}" for name, value in tuned.items())
            wrong += [f"arm {arm.name!r}{tried}: {line.strip()}" for line in str(error).splitlines()[1:]]
            continue
        ignored = unread(built)
        wrong += [
            f"arm {arm.name!r}: {ignored[name]}" for name in {**arm.differs, **tuned} if name in ignored
        ]
        planned.append(PlannedRun(arm.name, _as_built(built, arm.differs), _as_built(built, tuned), built))
    return planned


def _as_built(config: TrainConfig, names: Iterable[str]) -> dict[str, Any]:
    """Parameters as the run has them: a number that came as text is a number here."""
    return {name: getattr(config, name) for name in names}


def _wrong_shared(
    config: AblationConfig, base: dict[str, Any], base_run: dict[str, Any], planned: list[PlannedRun]
) -> list[str]:
    """What all arms are given and none reads; the base's own values may be read by the base run alone."""
    in_all = [unread(run.config) for run in planned]
    ignored = {name: words for name, words in in_all[0].items() if all(name in each for each in in_all)}
    try:
        ignored_in_base = unread(build(TrainConfig, base_run))
    except ParameterError:  # it needs the changes to be a run
        ignored_in_base = {}
    given = dict.fromkeys(config.changes, "changes")
    given |= {name: name for name in ("data_root", "image_weights") if getattr(config, name) is not None}
    given = {name: "base" for name in base if name in ignored_in_base} | given
    return [
        ignored[name] if place == name else f"{place}: {ignored[name]}"
        for name, place in given.items()
        if name in ignored
    ]


def _wrong_together(planned: list[PlannedRun]) -> list[str]:
    """What is wrong although each run alone could be trained."""
    wrong = [f"two runs would be called {name!r}" for name in repeated([run.name for run in planned])]
    arms = arms_of(planned)
    first = planned[0].config
    seen: dict[str, str] = {}
    for name, runs in arms.items():
        for key in _MEASURED_ON:
            here, there = getattr(runs[0].config, key), getattr(first, key)
            if here != there:
                wrong.append(
                    f"arm {name!r}: {key} is {here!r} and {there!r} in {planned[0].arm!r}; arms are compared"
                    " on the same images and captions"
                )
        alike = json.dumps([run.config.model_dump(mode="json") | {"run": None} for run in runs])
        if alike in seen:
            wrong.append(f"arm {name!r} equals arm {seen[alike]!r}: all of their parameters are the same")
        seen.setdefault(alike, name)
    return wrong
