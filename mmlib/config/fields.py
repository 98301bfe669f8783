"""Parameters → frozen, typed, checked configs.

Every parameter of every notebook and command is a field here, with its meaning and unit in the
description; parameter tables are made from it.  Fields are grouped by what they decide:

* data, tokenizer, model: the run's *identity*.  A continued run takes these from its parent.
* loss, optimisation: the recipe.  Free to change when a run is continued.
* place: where and how often things are written.  No result depends on it.

papermill hands `1e-3` over as text and `-p amp false` as `'false'`: text that reads as the number
or truth value that is expected is taken as such; nothing else is converted.
"""

import contextlib
import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ParameterError(ValueError):
    """A parameter has a wrong name, type or value; the message lists every one of them."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info) -> Any:
        kinds = _basic_types(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError(f"expected {_type_names(kinds)}")
        if isinstance(value, str) and str not in kinds:
            value = _parse(value, kinds)
        if isinstance(value, float) and float not in kinds and int in kinds and value.is_integer():
            return int(value)
        return value


def _basic_types(annotation: Any) -> set[type]:
    """The plain types inside an annotation: `float | None` → {float, NoneType}; a Literal → its values'."""
    if typing.get_origin(annotation) is Literal:
        return {type(v) for v in typing.get_args(annotation)}
    if typing.get_origin(annotation) is Annotated:
        return _basic_types(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (list, tuple):
        return {list}
    if args := typing.get_args(annotation):
        return set().union(*(_basic_types(a) for a in args))
    return {annotation}


def _type_names(kinds: set[type]) -> str:
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "text",
        list: "a list", type(None): "nothing (null)",
    }  # fmt: skip
    order = sorted(kinds, key=list(names).index)
    return " or ".join(names[k] for k in order)


def _parse(text: str, kinds: set[type]) -> Any:
    lowered = text.strip().lower()
    if bool in kinds and lowered in ("true", "false"):
        return lowered == "true"
    if type(None) in kinds and lowered in ("none", "null"):
        return None
    if kinds & {int, float}:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    raise ValueError(f"expected {_type_names(kinds)}")


class DataConfig(_Config):
    """Which images and captions."""

    dataset: Literal["shapes", "flickr8k"] = Field(
        "shapes", description="data set; shapes is drawn from a seed"
    )
    data_root: str = Field(
        "data/flickr8k", description="folder of a data set on disk, from the repository's root"
    )
    shapes_seed: int = Field(0, ge=0, description="shapes: seed of the scenes")
    shapes_train: Count = Field(2000, description="shapes: training images")
    shapes_val: Count = Field(250, description="shapes: validation images")
    shapes_test: Count = Field(250, description="shapes: test images")
    image_size: int = Field(64, ge=16, le=1024, description="side of the square image the model sees, pixels")
    resize: Literal["squash", "crop"] = Field(
        "squash", description="squash to a square, as the reference does, or resize the shorter side and crop"
    )
    leaks: Literal["exclude", "keep"] = Field(
        "exclude", description="training images that are also in val or test, by id, bytes or look"
    )


class TokenizerConfig(_Config):
    """How captions become token ids."""

    tokenizer: Literal["char", "char-reference", "word"] = Field(
        "word", description="char-reference shares one index for padding and unknown; char and word do not"
    )
    max_tokens: int = Field(24, ge=1, le=4096, description="longest caption, tokens; longer ones are cut")
    min_word_count: Count = Field(1, description="word: rarer words of the training captions are unknown")


class ModelConfig(_Config):
    """The memory network's sizes (reference: 16, 512, 4, 8, 4, 0.1, 128, 2, mask off)."""

    patch_size: Count = Field(8, description="side of an image patch, pixels; divides image_size")
    latent_dim: int = Field(96, ge=8, description="width of the latent and of both encoders")
    num_layers: Count = Field(2, description="transformer layers of each encoder")
    num_heads: Count = Field(4, description="attention heads; divides latent_dim")
    mlp_ratio: Count = Field(4, description="feed-forward width over latent_dim")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of encoders, fusion and feedback, probability"
    )
    memory_slots: int = Field(32, ge=2, description="slots of the central memory; each modality has half")
    feedback_steps: int = Field(2, ge=0, description="rounds of feedback through the central memory")
    padding_mask: bool = Field(True, description="leave padding out of the text encoder (reference: false)")
    memory_write: bool = Field(
        False, description="write the slots at test time (off in every published figure)"
    )


class LossConfig(_Config):
    """Symmetric InfoNCE."""

    temperature: float = Field(
        0.07, gt=0, description="temperature of the similarities; the first one if learned"
    )
    learn_temperature: bool = Field(False, description="learn the temperature, 1/temperature at most 100")
    identity_positives: bool = Field(
        True, description="captions of one image in a batch are not negatives (reference: false)"
    )


class OptimConfig(_Config):
    """How the weights are found."""

    epochs: Count = Field(..., description="epochs of this phase")
    batch_size: int = Field(64, ge=2, description="(image, caption) pairs per step")
    captions_per_image: Literal["all", "one"] = Field(
        "all", description="an epoch is all pairs, or each image once with one caption drawn anew"
    )
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd is SGD with Nesterov momentum")
    lr: float = Field(..., gt=0, description="base learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum")
    weight_decay: float = Field(0.0, ge=0, description="weight decay; of matrices alone")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="course of the learning rate")
    schedule_unit: Literal["epoch", "step"] = Field(
        "epoch", description="how often the learning rate changes"
    )
    warmup_epochs: float = Field(
        0.0, ge=0, description="linear warm-up before the schedule, epochs (fractions allowed)"
    )
    final_lr_fraction: Fraction = Field(0.01, description="cosine: last learning rate over the base rate")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0 turns clipping off")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic; fp16 needs a GPU")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, data order and dropout")
    select_by: Literal["rsum", "mean_r1"] = Field(
        "rsum", description="validation metric that chooses the best epoch, standard protocol"
    )


class PlaceConfig(_Config):
    """Where a run is kept; no result depends on these."""

    run: Name = Field(..., description="name of the run folder under runs/")
    overwrite: bool = Field(False, description="delete a run of this name first")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    checkpoint_seconds: float = Field(60.0, ge=0, description="seconds between checkpoints inside an epoch")


class TrainConfig(DataConfig, TokenizerConfig, ModelConfig, LossConfig, OptimConfig, PlaceConfig):
    """Everything that a training run is made of (notebook 01)."""

    @model_validator(mode="after")
    def _sizes_fit(self):
        wrong = []
        if self.latent_dim % self.num_heads:
            wrong.append(
                f"num_heads must divide latent_dim: {self.latent_dim} is not a multiple of {self.num_heads}"
            )
        if self.image_size % self.patch_size:
            wrong.append(
                f"patch_size must divide image_size: {self.image_size} is not a multiple of {self.patch_size}"
            )
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            wrong.append(
                f"warmup_epochs must be smaller than epochs: found {self.warmup_epochs} of {self.epochs}"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


IDENTITY = tuple(f for part in (DataConfig, TokenizerConfig, ModelConfig) for f in part.model_fields)
PLACE = (*PlaceConfig.model_fields, "data_root")  # may differ when a run is resumed
_OWN = ("epochs", "lr", "warmup_epochs", "seed")  # a continued run never inherits these
_ELSEWHERE = {  # what other trainers call it, where spelling alone finds another parameter
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "bs": "batch_size",
    "amp": "precision",
    "memory_size": "memory_slots",
    "width": "latent_dim",
}


def _inherited() -> dict[str, Any]:
    fields = {}
    for name, field in TrainConfig.model_fields.items():
        if name in PlaceConfig.model_fields or name in _OWN:
            continue
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        fields[name] = (kind | None, Field(None, description=f"{field.description} (null: as the parent)"))
    return fields


class _ContinueOwn(PlaceConfig):
    parent: Name = Field(..., description="run to continue from")
    parent_checkpoint: Literal["best", "last"] = Field(
        "best", description="which of the parent's checkpoints"
    )
    optimizer_state: Literal["keep", "reset"] = Field(
        "keep", description="momentum and the like of the parent"
    )
    epochs: Count = OptimConfig.model_fields["epochs"]
    lr: float = OptimConfig.model_fields["lr"]
    warmup_epochs: float = OptimConfig.model_fields["warmup_epochs"]
    seed: int = OptimConfig.model_fields["seed"]


ContinueConfig = create_model(
    "ContinueConfig",
    __base__=_ContinueOwn,
    __doc__="A new run from a parent's checkpoint (notebook 02); null means as the parent.",
    **_inherited(),
)


class EvaluateConfig(_Config):
    """One evaluation of finished runs on a split (notebook 03)."""

    runs: list[Name] = Field(..., min_length=1, description="runs to evaluate, oldest phase first")
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of each run")
    split: Literal["test", "val"] = Field("test", description="split; test is for final rows only")
    eval_batch_size: Count = Field(250, description="images or captions embedded at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    data_root: str | None = Field(
        None, description="where the data set lies now (null: where the run found it)"
    )
    gallery_queries: int = Field(8, ge=0, description="queries of each direction kept for the gallery")


class AnalysisConfig(_Config):
    """What the analysis reads (notebook 04)."""

    runs: list[Name] = Field(..., min_length=1, description="runs of one lineage, oldest phase first")


CONFIG_OF_NOTEBOOK = {
    "01_train": TrainConfig,
    "02_continue": ContinueConfig,
    "03_evaluate": EvaluateConfig,
    "04_analysis": AnalysisConfig,
}


def build(config_class: type[BaseModel], parameters: Mapping[str, Any]) -> Any:
    """`parameters` as a checked config.

    Raises:
        ParameterError: lists every unknown name (with the nearest known one), every missing name,
            and every wrong type or impossible value, with what was expected and what came.
    """
    try:
        return config_class(**parameters)
    except ValidationError as error:
        lines = [_explain(config_class, e) for e in error.errors()]
        raise ParameterError("\n".join([f"{len(lines)} wrong parameter(s):", *lines])) from None


def from_notebook(config_class: type[BaseModel], namespace: Mapping[str, Any]) -> Any:
    """The config of a notebook, from `globals()` right after its parameters cell.

    papermill injects overrides as variables and only warns of names that it does not know.  Any
    plain value in the namespace that is no parameter is therefore an error, with the nearest name.

    Raises:
        ParameterError: as `build`.
    """
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    hidden = {"In", "Out", "papermill"}  # IPython's own, and papermill's metadata
    return build(
        config_class,
        {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in hidden and isinstance(value, plain)
        },
    )


def continued(config: Any, parent: TrainConfig) -> TrainConfig:
    """The full config of a run that continues `parent`.

    Raises:
        ParameterError: data, tokenizer or architecture were asked to differ from the parent's; the
            message names both values of each.
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
    return build(TrainConfig, {**parent.model_dump(), **asked})


def differences(there: TrainConfig, here: TrainConfig) -> list[str]:
    """One line `name: there → here` for each parameter that a resumed run may not change."""
    return [
        f"{name}: {getattr(there, name)!r} there, {getattr(here, name)!r} here"
        for name in TrainConfig.model_fields
        if name not in PLACE and getattr(there, name) != getattr(here, name)
    ]


def _explain(config_class: type[BaseModel], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, config_class.model_fields, n=1, cutoff=0.5)
        if _ELSEWHERE.get(name) in config_class.model_fields:
            near = [_ELSEWHERE[name]]
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(config_class.model_fields)}"
        return f"  {name} = {error['input']!r}: unknown parameter; {hint}"
    if error["type"] == "missing":
        return f"  {name}: missing; expected {config_class.model_fields[name].description}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not name:
        return f"  {message}"
    field = config_class.model_fields[name]
    found = f"found {error['input']!r} ({type(error['input']).__name__})"
    return f"  {name}: {message}, {found}; it is: {field.description}"
