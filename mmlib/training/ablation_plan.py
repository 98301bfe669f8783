"""What an ablation will train: its arms, every run with its parameters, all checked before one is started.

An *arm* is one answer to the question that is asked (a tokenizer, an optimizer); it is trained under
every seed.  What is tuned for an arm is chosen on validation with the first seed.
"""

import collections
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from mmlib.config import AblationConfig, ParameterError, TrainConfig, build, read_yaml, unread
from mmlib.files import nearest

# What decides which images and captions a run is measured on: no arm may have its own.
_MEASURED_ON = (
    "dataset", "shapes_seed", "shapes_train", "shapes_val", "shapes_test", "val_shards", "test_shards"
)  # fmt: skip
# Parameters of a run that the ablation has its own for.
_OWN = {
    "run": "run (the name of the ablation)", "seed": "seeds", "device": "device", "data_root": "data_root",
    "overwrite": "overwrite",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One answer to the question that an ablation asks."""

    name: str
    differs: dict[str, Any]  # the parameters by which it differs from the base and the common changes
    lists: dict[str, list]  # the values that are tried for it, by parameter


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
    shared = read_yaml(config.base)
    arms = _arms(config)
    names = [arm.name for arm in arms]
    wrong = [*_wrong_values(config), *_wrong_arms(config, arms), *_wrong_ensembles(config, names)]
    wrong += _wrong_claims(config, [*names, *config.ensembles])
    if "parent" in shared:
        wrong.append(f"base: expected a run that starts from random weights, {config.base} continues another")
    wrong += _unread_in_base(shared)
    shared |= config.changes
    if config.image_weights is not None:
        shared["image_weights"] = config.image_weights
    planned = []
    for arm in arms if not wrong else ():
        planned += _runs_of(config, arm, shared, wrong)
    if not wrong:
        wrong += [*_wrong_together(planned), *_unread_in_all(config, planned)]
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
    """The runs that an arm's tuned values are chosen from: those of the first seed; none if none is tuned."""
    return [run for run in arm if run.tuned and run.config.seed == arm[0].config.seed]


def _arms(config: AblationConfig) -> list[Arm]:
    """The named arms, or none, crossed with all combinations of the grid."""
    shared, own_lists = _tune_parts(config)
    arms = []
    for parent, own in (config.arms or {"": {}}).items():
        for values in itertools.product(*config.grid.values()):
            crossed = dict(zip(config.grid, values))
            parts = [*([parent] if parent else []), *(f"{key}{text_of(v)}" for key, v in crossed.items())]
            name = "-".join(parts)
            lists = shared | own_lists.get(parent, {}) | own_lists.get(name, {})
            arms.append(Arm(name, own | crossed, lists))
    return arms if config.arms or config.grid else []


def _tune_parts(config: AblationConfig) -> tuple[dict[str, list], dict[str, dict[str, list]]]:
    """What is tuned for all arms, and what for single ones: a list or a mapping tells which it is."""
    shared = {name: values for name, values in config.tune.items() if isinstance(values, list)}
    return shared, {name: values for name, values in config.tune.items() if name not in shared}


def _runs_of(config: AblationConfig, arm: Arm, shared: dict[str, Any], wrong: list[str]) -> list[PlannedRun]:
    """The runs of one arm; what cannot be built is added to `wrong`."""
    planned = []
    for seed, values in itertools.product(config.seeds, itertools.product(*arm.lists.values())):
        tuned = dict(zip(arm.lists, values))
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
        wrong += [f"arm {arm.name!r}: {ignored[name]}" for name in arm.differs | tuned if name in ignored]
        planned.append(PlannedRun(arm.name, arm.differs, tuned, built))
    return planned


def _unread_in_base(base: dict[str, Any]) -> list[str]:
    """What the base's file sets and its run does not read."""
    try:
        ignored = unread(build(TrainConfig, {"run": "base"} | base))
    except ParameterError:  # it needs the changes to be a run; an arm says what is wrong
        return []
    return [f"base: {ignored[name]}" for name in base if name in ignored]


def _unread_in_all(config: AblationConfig, planned: list[PlannedRun]) -> list[str]:
    """What all arms are given and none reads."""
    ignored = [unread(run.config) for run in planned]
    given = dict.fromkeys(config.changes, "changes: ")
    given |= {name: "" for name in ("data_root", "image_weights") if getattr(config, name) is not None}
    return [
        f"{place}{ignored[0][name]}" for name, place in given.items() if all(name in each for each in ignored)
    ]


def _wrong_together(planned: list[PlannedRun]) -> list[str]:
    """What is wrong although each run alone could be trained."""
    names = collections.Counter(run.name for run in planned)
    twice = [name for name, count in names.items() if count > 1]
    wrong = [f"two runs would be called {name!r}: a seed, arm or value is there twice" for name in twice]
    first = planned[0]
    seen: dict[str, str] = {}
    for name, runs in arms_of(planned).items():
        for key in _MEASURED_ON:
            here, there = getattr(runs[0].config, key), getattr(first.config, key)
            if here != there:
                wrong.append(
                    f"arm {name!r}: {key} is {here!r} and {there!r} in {first.arm!r}; arms are compared on"
                    " the same images and captions"
                )
        alike = json.dumps([run.config.model_dump(mode="json") | {"run": None} for run in runs])
        if alike in seen:
            wrong.append(f"arm {name!r} equals arm {seen[alike]!r}: all of their parameters are the same")
        seen.setdefault(alike, name)
    return wrong


def _wrong_values(config: AblationConfig) -> list[str]:
    shared, own = _tune_parts(config)
    values = {"changes": config.changes, **{f"arm {name!r}": part for name, part in config.arms.items()}}
    lists = {"grid": config.grid, "tune": shared, **{f"tune of {n!r}": part for n, part in own.items()}}
    wrong = []
    for place, part in (values | lists).items():
        for name, value in part.items():
            if name in _OWN:
                wrong.append(f"{place}: {name} is set by the ablation's own parameter {_OWN[name]}")
            elif name not in TrainConfig.model_fields:
                wrong.append(f"{place}: unknown parameter {name!r}{nearest(name, TrainConfig.model_fields)}")
            if place in lists and not value:
                wrong.append(f"{place}: expected values of {name}, found an empty list")
    return wrong


def _wrong_arms(config: AblationConfig, arms: list[Arm]) -> list[str]:
    wrong = [] if arms else ["arms: expected one or more of them, or a grid, found neither"]
    known = dict.fromkeys([*config.arms, *(arm.name for arm in arms)])
    for name in _tune_parts(config)[1]:
        if name not in known:
            wrong.append(f"tune: there is no arm {name!r}; there are: {', '.join(known)}")
    for name, own in config.arms.items():
        wrong += [f"arm {name!r}: {key} is in the grid too" for key in own if key in config.grid]
    for arm in arms:
        wrong += [f"arm {arm.name!r}: {key} is tuned too" for key in arm.differs if key in arm.lists]
    return wrong


def _wrong_ensembles(config: AblationConfig, arms: list[str]) -> list[str]:
    wrong = []
    for name, joined in config.ensembles.items():
        if name in arms:
            wrong.append(f"ensemble {name!r}: there is an arm of this name; choose another")
        if len(set(joined)) < 2 or len(set(joined)) < len(joined):
            wrong.append(f"ensemble {name!r}: expected two or more different arms, found {joined}")
        for each in joined:
            if each not in arms:
                wrong.append(f"ensemble {name!r}: there is no arm {each!r}; there are: {', '.join(arms)}")
    return wrong


def _wrong_claims(config: AblationConfig, known: list[str]) -> list[str]:
    wrong = []
    for number, claim in enumerate(config.claims, 1):
        if claim.keys() != {"claim", "arm", "over"} or not all(claim.values()):
            wrong.append(
                f"claim {number}: expected claim (a sentence), arm and over (names of arms), found {claim}"
            )
            continue
        for role in ("arm", "over"):
            if (name := claim[role]) not in known:
                wrong.append(
                    f"claim {number}: {role}: there is no arm {name!r}; there are: {', '.join(known)}"
                )
        if claim["arm"] == claim["over"]:
            wrong.append(f"claim {number}: expected two arms to compare, found {claim['arm']!r} twice")
    return wrong


def text_of(value: Any) -> str:
    """A value as a part of a name."""
    text = value if isinstance(value, str) else json.dumps(value).strip('[]"')
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
