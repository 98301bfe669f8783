"""A continued run takes what it is from its parent, and its recipe from its own parameters."""

from typing import Any

from mmlib.config.fields import IDENTITY, PLACE, TrainConfig
from mmlib.config.reading import ParameterError, build
from mmlib.config.unread import is_read, refuse_unread


def continued(config: Any, parent: TrainConfig) -> TrainConfig:
    """The full config of a run that continues `parent`.

    Raises:
        ParameterError: data, tokenizer or architecture were asked to differ from the parent's; the
            message names both values of each.  Or a parameter was asked for that nothing in this run
            reads; what comes from the parent may be unread, since the parent has read it.
    """
    asked = {k: v for k, v in config.model_dump().items() if k in TrainConfig.model_fields and v is not None}
    conflicts = [
        f"  {name}: the parent {config.parent!r} has {getattr(parent, name)!r}, asked for {asked[name]!r}"
        for name in IDENTITY
        if name in asked and name != "data_root" and asked[name] != getattr(parent, name)
    ]
    if conflicts:
        raise ParameterError(
            "data, tokenizer and architecture come from the parent; these differ:\n"
            + "\n".join(conflicts)
            + "\nLeave them out, or train a new run with notebook 01."
        )
    resolved = build(TrainConfig, {**parent.model_dump(), **asked})
    refuse_unread(resolved, asked)
    return resolved


def differences(there: TrainConfig, here: TrainConfig) -> list[str]:
    """One line `name: there → here` for each parameter that a resumed run reads and may not change."""
    return [
        f"{name}: {getattr(there, name)!r} there, {getattr(here, name)!r} here"
        for name in TrainConfig.model_fields
        if name not in PLACE
        and getattr(there, name) != getattr(here, name)
        and (is_read(there, name) or is_read(here, name))
    ]
