"""What reads each parameter: one that is set and that nothing in a run reads is an error, not ignored.

Asked where a person asks for a run (`ask`), not where a stored config is read.  A value counts as set
where it differs from the field's default.  What a run has from its parent, or an arm of an ablation from
its base, may go unread there: the parent and the base have read it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from mmlib.config.fields import TrainConfig, is_pretrained
from mmlib.config.reading import ParameterError, build, shown

PHOTOS = ("flickr8k", "flickr30k", "coco")
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
_SHARDS: Needs = ({"dataset": ("shards",)},)
_PHOTOS: Needs = ({"dataset": PHOTOS},)
_NOT_DRAWN: Needs = ({"dataset": (*PHOTOS, "shards")},)
_MEMORY: Needs = ({"memory_slots": ABOVE_0},)
_AUGMENTED: Needs = ({**_FROZEN_ONCE, "feature_views": ABOVE_1},)

READ_BY: dict[str, Needs] = {
    "data_root": _PHOTOS,
    "also_train_on": _PHOTOS,
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
