"""The arms of an ablation as they were asked for, and all that can be wrong with the asking."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmlib.config import AblationConfig, TrainConfig
from mmlib.files import nearest

# Parameters of a run that the ablation has its own for.
_OWN = {
    "run": "run (the name of the ablation)", "seed": "seeds", "device": "device", "data_root": "data_root",
    "overwrite": "overwrite",
}  # fmt: skip
_MANY = 20  # names that are too many to list
_CLAIM = ("claim", "arm", "over")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class Arm:
    """One answer to the question that an ablation asks."""

    name: str
    parent: str  # its name before the grid was crossed with it
    own: dict[str, Any]
    crossed: dict[str, Any]  # parameters of the grid

    @property
    def differs(self) -> dict[str, Any]:
        """All parameters by which it differs from the base and the common changes."""
        return self.own | self.crossed


def arms_asked_for(config: AblationConfig) -> list[Arm]:
    """The named arms, or none, crossed with all combinations of the grid."""
    arms = []
    for parent, own in (config.arms or {"": {}}).items():
        for values in itertools.product(*config.grid.values()):
            crossed = dict(zip(config.grid, values))
            parts = [*([parent] if parent else []), *(f"{key}{text_of(v)}" for key, v in crossed.items())]
            arms.append(Arm("-".join(parts), parent, own, crossed))
    return arms if config.arms or config.grid else []


def _tune_parts(config: AblationConfig) -> tuple[dict[str, list], dict[str, dict[str, list]]]:
    """What is tuned for all arms, and what for single ones: a list or a mapping tells which it is."""
    shared = {name: values for name, values in config.tune.items() if isinstance(values, list)}
    return shared, {name: values for name, values in config.tune.items() if name not in shared}


def tune_lists(config: AblationConfig, arm: Arm) -> dict[str, list]:
    """The values that are tried for an arm, by parameter; none if nothing is tuned."""
    shared, own = _tune_parts(config)
    return shared | own.get(arm.parent, {}) | own.get(arm.name, {})


def wrong_request(config: AblationConfig, arms: list[Arm]) -> list[str]:
    """Everything that is wrong with an ablation before any run is put together, a line each."""
    return [
        *_wrong_names(config),
        *_wrong_lists(config),
        *_wrong_arms(config, arms),
        *_wrong_claims(config, arms),
    ]


def _wrong_names(config: AblationConfig) -> list[str]:
    shared, own = _tune_parts(config)
    places = {"changes": config.changes, "grid": config.grid, "tune": shared}
    places |= {f"arm {name!r}": differs for name, differs in config.arms.items()}
    places |= {f"tune of {name!r}": lists for name, lists in own.items()}
    wrong = []
    for place, names in places.items():
        for name in names:
            if name in _OWN:
                wrong.append(f"{place}: {name} is set by the ablation's own parameter {_OWN[name]}")
            elif name not in TrainConfig.model_fields:
                wrong.append(f"{place}: unknown parameter {name!r}{_nearest(name, TrainConfig.model_fields)}")
    return wrong


def _wrong_lists(config: AblationConfig) -> list[str]:
    shared, own = _tune_parts(config)
    wrong = [f"seeds: {seed} is there twice" for seed in repeated(config.seeds)]
    for place, lists in {
        "grid": config.grid,
        "tune": shared,
        **{f"tune of {n!r}": v for n, v in own.items()},
    }.items():
        for name, values in lists.items():
            if not values:
                wrong.append(f"{place}: expected values of {name}, found an empty list")
            wrong += [f"{place}: {name} has the value {value!r} twice" for value in repeated(values)]
    return wrong


def _wrong_arms(config: AblationConfig, arms: list[Arm]) -> list[str]:
    wrong = [] if arms else ["arms: expected one or more of them, or a grid, found neither"]
    known = [name for arm in arms for name in (arm.parent, arm.name)]
    for name in _tune_parts(config)[1]:
        if name not in known:
            wrong.append(f"tune: there is no arm {name!r}{_nearest(name, known)}")
    for name in repeated([arm.name for arm in arms]):
        wrong.append(f"grid: two arms would be called {name!r}; write them as arms with names")
    for arm in arms:
        if not re.fullmatch(_NAME, arm.name):
            wrong.append(f"arm {arm.name!r}: cannot name a folder; use letters, digits and . _ -")
        wrong += [f"arm {arm.parent!r}: {name} is in the grid too" for name in arm.own if name in arm.crossed]
        lists = tune_lists(config, arm)
        wrong += [f"arm {arm.name!r}: {name} is tuned too" for name in arm.differs if name in lists]
    return wrong


def _wrong_claims(config: AblationConfig, arms: list[Arm]) -> list[str]:
    known = [arm.name for arm in arms]
    wrong = []
    for number, claim in enumerate(config.claims, 1):
        place = f"claim {number}"
        if sorted(claim) != sorted(_CLAIM) or not all(claim.values()):
            wrong.append(f"{place}: expected claim (a sentence), arm and over (names of arms), found {claim}")
            continue
        for role in ("arm", "over"):
            if claim[role] not in known:
                wrong.append(
                    f"{place}: {role}: there is no arm {claim[role]!r}{_nearest(claim[role], known)}"
                )
        if claim["arm"] == claim["over"]:
            wrong.append(f"{place}: expected two arms to compare, found {claim['arm']!r} twice")
    return wrong


def repeated(values: Iterable) -> list:
    """The values that were there before, as often as they come again."""
    seen, repeated = [], []
    for value in values:
        (repeated if value in seen else seen).append(value)
    return repeated


def text_of(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "-".join(map(text_of, value))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value))


def _nearest(name: str, names: Iterable[str]) -> str:
    names = [known for known in dict.fromkeys(names) if known]
    listed = f"; there are: {', '.join(names)}" if len(names) <= _MANY else ""
    return nearest(name, names) or listed
