"""What a person asks for: parameters that a run reads, at the command line or in a notebook's cell.

A parameter that is set and that nothing in a run reads is an error, not ignored (`ask`).  A stored config is
not asked about.  A value counts as set where it differs from the field's default.  What a run has from its
parent, or an arm of an ablation from its base, may go unread there: the parent and the base have read it.

A notebook's parameters are what its parameters cell assigns, and papermill's injected one; no other variable
of the kernel counts.  Both cells are found in what the kernel has executed, by their form, and are evaluated
anew, by themselves: a line that was removed and a value that was changed elsewhere have no effect.
"""

import ast
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from mmlib import files
from mmlib.config.parameters import DATASETS, IDENTITY, PLACE, TrainConfig, is_pretrained
from mmlib.config.reading import ParameterError, build, read_yaml, required, shown

INJECTED = "# Parameters\n"  # how papermill's cell begins

PHOTOS = tuple(name for name in DATASETS if name not in ("shapes", "shards"))
ABOVE_0, ABOVE_1, BELOW_1 = "above 0", "above 1", "below 1"
PRETRAINED, NOT_VIT, TUNED = "<library>:<name>", "other than 'vit'", "other than 'none'"

_TESTS: dict[str, Callable[[Any], bool]] = {
    ABOVE_0: lambda value: value > 0,
    ABOVE_1: lambda value: value > 1,
    BELOW_1: lambda value: value < 1,
    PRETRAINED: is_pretrained,
    NOT_VIT: lambda value: value != "vit",
    TUNED: lambda value: value != "none",
}

# parameter → what must hold for it to be read: of each mapping at least one line, values or a test.
# A parameter that is not here is read by every run.
Needs = tuple[dict[str, tuple | str], ...]

_FROZEN_ONCE = {"image_tune": TUNED, "cache_features": (False,), "dataset": ("shards",)}
_AUGMENTATION = {"crop_area": BELOW_1, "flip": (True,), "colour": ABOVE_0, "randaugment": ABOVE_0}
_IN_TRANSFORMERS = {"image_encoder": ("vit",), "text_encoder": ("transformer",)}
_SHAPES: Needs = ({"dataset": ("shapes",)},)
_FOLDER: Needs = ({"dataset": ("folder",)},)
_SHARDS: Needs = ({"dataset": ("shards",)},)
_PHOTOS: Needs = ({"dataset": PHOTOS},)
_NOT_DRAWN: Needs = ({"dataset": (*PHOTOS, "shards")},)
_MEMORY: Needs = ({"memory_slots": ABOVE_0},)
_AUGMENTED: Needs = ({**_FROZEN_ONCE, "feature_views": ABOVE_1},)

READ_BY: dict[str, Needs] = {
    "data_root": _PHOTOS,
    "also_train_on": _PHOTOS,
    "data_name": _FOLDER,
    "private": _FOLDER,
    "val_fraction": _FOLDER,
    "test_fraction": _FOLDER,
    "split_seed": _FOLDER,
    "train_shards": _SHARDS,
    "val_shards": _SHARDS,
    "test_shards": _SHARDS,
    "shapes_seed": _SHAPES,
    "shapes_train": _SHAPES,
    "shapes_val": _SHAPES,
    "shapes_test": _SHAPES,
    "resize": _NOT_DRAWN,
    "leaks": _NOT_DRAWN,
    "min_word_count": ({"tokenizer": ("word",)},),
    "bpe_vocabulary": ({"tokenizer": ("bpe",)},),
    "image_weights": ({"image_encoder": PRETRAINED},),
    "text_weights": ({"text_encoder": PRETRAINED},),
    "image_pooling": ({"image_encoder": NOT_VIT},),
    "patch_size": ({"image_encoder": ("vit",)},),
    "num_layers": (_IN_TRANSFORMERS,),
    "num_heads": ({**_IN_TRANSFORMERS, "image_pooling": ("attention",), "memory_slots": ABOVE_0},),
    "mlp_ratio": ({"image_encoder": ("vit",), "text_encoder": ("transformer", "words")},),
    "feedback_steps": _MEMORY,
    "memory_write": _MEMORY,
    "padding_mask": ({"text_encoder": ("transformer",)},),
    "temperature": ({"loss": ("infonce", "sigmoid")},),
    "learn_temperature": ({"loss": ("infonce", "sigmoid")},),
    "label_smoothing": ({"loss": ("infonce",)},),
    "sigmoid_bias": ({"loss": ("sigmoid",)},),
    "margin": ({"loss": ("triplet",)},),
    "hardest_after_epochs": ({"loss": ("triplet",)},),
    "crop_area": _AUGMENTED,
    "flip": _AUGMENTED,
    "colour": _AUGMENTED,
    "randaugment": _AUGMENTED,
    "image_lr_scale": ({"image_encoder": PRETRAINED}, {"image_tune": TUNED}),
    "text_lr_scale": ({"text_encoder": PRETRAINED}, {"text_tune": TUNED}),
    "layer_decay": (  # of an encoder that is both pretrained and tuned
        {"image_encoder": PRETRAINED, "text_encoder": PRETRAINED},
        {"image_encoder": PRETRAINED, "text_tune": TUNED},
        {"image_tune": TUNED, "text_encoder": PRETRAINED},
        {"image_tune": TUNED, "text_tune": TUNED},
    ),
    "cache_features": (
        {"dataset": ("shapes", *PHOTOS)},
        {"image_tune": ("none",), "text_tune": ("none",)},
    ),
    "feature_views": (
        {"dataset": ("shapes", *PHOTOS)},
        {"image_tune": ("none",)},
        {"cache_features": (True,)},
        _AUGMENTATION,
    ),
    "momentum": ({"optimizer": ("sgd", "rmsprop")},),
    "schedule_unit": ({"schedule": ("cosine",)},),
    "final_lr_fraction": ({"schedule": ("cosine",)},),
    "checkpoint_seconds": ({"checkpoint_steps": (0,)},),
}


def ask(config_class: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
    """`parameters` as the checked config of a run that a person asks for.

    Raises:
        ParameterError: as `build`; or a parameter is set that nothing in this run reads.
    """
    config = build(config_class, parameters)
    refuse_unread(config, config_class.model_fields)
    return config


def refuse_unread(config: BaseModel, names: Iterable[str]) -> None:
    """Passes if each of these parameters is read by this run, or has its default.

    Raises:
        ParameterError: names all that are not, with what would read them.
    """
    found = unread(config)
    if lines := [f"  {found[name]}" for name in names if name in found]:
        raise ParameterError(
            "\n".join([f"{len(lines)} parameter(s) that nothing in this run reads:", *lines])
            + "\nLeave them out, or choose what reads them."
        )


def unread(config: BaseModel) -> dict[str, str]:
    """The parameters that differ from their default and that nothing reads, each with a sentence."""
    fields = type(config).model_fields
    return {
        name: f"{name} is read by {_words(readers)}; this run has {_found(config, readers)}"
        for name, needs in READ_BY.items()
        if name in fields and getattr(config, name) != fields[name].default
        for readers in [_missing(config, needs)]
        if readers
    }


def is_read(config: TrainConfig, name: str) -> bool:
    """Whether a run with this config reads the parameter, whatever its value."""
    return _missing(config, READ_BY.get(name, ())) is None


def _missing(config: BaseModel, needs: Needs) -> dict[str, tuple | str] | None:
    """The first of the needs that does not hold; None where all do, or another config decides it.

    That is so where a config lacks a reader, or leaves it to the parent, by None.
    """
    for readers in needs:
        known = all(getattr(config, name, None) is not None for name in readers)
        if known and not any(_holds(getattr(config, name), values) for name, values in readers.items()):
            return readers
    return None


def _holds(value: Any, values: tuple | str) -> bool:
    return _TESTS[values](value) if isinstance(values, str) else value in values


def _words(readers: Mapping[str, tuple | str]) -> str:
    return " or ".join(
        f"{name} {values if isinstance(values, str) else ', '.join(map(repr, values))}"
        for name, values in readers.items()
    )


def _found(config: BaseModel, readers: Mapping[str, tuple | str]) -> str:
    return ", ".join(f"{name} {shown(getattr(config, name))}" for name in readers)


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


def from_notebook(config_class: type[BaseModel]) -> Any:
    """The config of the notebook that calls this, from its parameters cell.

    That is the last cell executed before this one with a line `name: type = value` of one of its
    parameters.  Of papermill's injected cells the last one after it counts too.

    Raises:
        ParameterError: as `ask`; or there is no such cell, or it does not stand by itself; or this is
            called from a file by `%run`.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if kernel is None:
        raise ParameterError(
            "from_notebook reads the parameters cell of a notebook, and this is none: use"
            f" ask({config_class.__name__}, {{name: value}})"
        )
    *executed, calling = kernel.history_manager.input_hist_parsed
    if not executed and not calling:  # `pytest --nbval` has the kernel keep no history: each cell runs once
        return ask(config_class, _annotated(kernel.user_ns))
    if _RUN in calling:
        raise ParameterError(
            "this cell has a %run, and whose parameters cell is meant cannot be told: give %run a cell of its"
            " own; open a notebook that builds a config, or execute it with papermill"
        )
    return ask(config_class, cell_parameters(executed, config_class))


def _annotated(namespace: dict[str, Any]) -> dict[str, Any]:
    """The variables that a line `name: type = value` made."""
    return {name: namespace[name] for name in namespace.get("__annotations__", {}) if name in namespace}


def cell_parameters(executed: Sequence[str], config_class: type[BaseModel]) -> dict[str, Any]:
    """The names and values that the parameters cells among executed cells assign.

    Args:
        executed: sources of the cells in the order in which they were run.
        config_class: whose parameters they are.

    Raises:
        ParameterError: no cell has a line `name: type = value`; or a later one assigns all that the config
            needs without types, or under a cell magic, so that it may be the parameters cell; or one of
            them fails by itself.
    """
    needed = required(config_class)
    example = ", ".join(f"`{name}: type = value`" for name in config_class.model_fields if name in needed)
    place, unclear = None, None
    for number, source in enumerate(executed):
        body = _under_magic(source)
        typed, names = _assigned(source if body is None else body)
        is_typed = bool(typed & config_class.model_fields.keys())
        if is_typed and body is None:
            place, unclear = number, None
        elif is_typed or (needed <= names and not source.startswith(INJECTED)):
            unclear = (_NO_TYPES if body is None else _UNDER_MAGIC).format(number=number, example=example)
    if unclear:
        raise ParameterError(unclear)
    if place is None:
        raise ParameterError(
            f"expected a parameters cell with lines {example}, found none among the executed cells; run it"
        )
    injected = [source for source in executed[place + 1 :] if source.startswith(INJECTED)]
    return _values([executed[place], *injected[-1:]])


_NO_TYPES = (
    "cell [{number}] assigns what a parameters cell does, without types; if it is the parameters cell, write"
    " {example}; if not, run the parameters cell again"
)


_UNDER_MAGIC = (
    "cell [{number}] has parameters under a cell magic (%%…), which does with them what it likes; if it is"
    " the parameters cell, take the magic out; if not, run the parameters cell again"
)
_RUN = "get_ipython().run_line_magic('run',"  # what IPython makes of %run


def _under_magic(source: str) -> str | None:
    """What stands under a cell magic, as `%%time`; None if the cell has none."""
    if not source.startswith("get_ipython().run_cell_magic("):  # what IPython makes of it
        return None
    try:
        call = ast.parse(source, mode="eval").body
        return str(ast.literal_eval(call.args[-1]))
    except (SyntaxError, ValueError, AttributeError, IndexError):
        return None


def _assigned(source: str) -> tuple[set[str], set[str]]:
    """The names in a cell's lines `name: type = value`, and all that its own lines assign."""
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError):
        return set(), set()
    typed = {line.target.id for line in lines if isinstance(line, ast.AnnAssign) and line.value
             and isinstance(line.target, ast.Name)}  # fmt: skip
    plain = {target.id for line in lines if isinstance(line, ast.Assign)
             for target in line.targets if isinstance(target, ast.Name)}  # fmt: skip
    return typed, typed | plain


def _values(sources: Sequence[str]) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for source in sources:
        try:
            exec(compile(source, "<parameters cell>", "exec"), namespace)
        except Exception as error:
            raise ParameterError(
                "the parameters cell must stand by itself, without names from other cells:"
                f" {type(error).__name__}: {error}"
            ) from None
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and not callable(value)
    }


def training_of(run: str) -> tuple[dict[str, Any], str] | None:
    """How the run of this name is trained: its parameters and the command, or None if nothing here says so.

    Looks at `params/*/01_train.yaml`.
    """
    for path in sorted(files.PARAMS.glob("*/01_train.yaml")):
        values = read_yaml(path)
        if values.get("run") == run:
            return values, f"python -m mmlib train {files.shown(path)}"
    return None
