"""Every parameter of every notebook and command, with its meaning and unit; tables are made from it.

Fields are grouped by what they decide:

* data, tokenizer, model: the run's *identity*.  A continued run takes these from its parent.
* loss, augmentation, fine-tuning, optimisation: the recipe.  Free to change when a run is continued.
* place: where and how often things are written.  No result depends on it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from mmlib.config.reading import (
    OTHER_THAN,
    PRETRAINED,
    Config,
    ParameterError,
    build,
    is_pretrained,
    is_read,
    param,
    read_values,
    refuse_unread,
)
from mmlib.files import NAME_RULE, is_name


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"expected {NAME_RULE}")
    return value


Name = Annotated[str, AfterValidator(_name)]  # of what becomes a folder
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Tuned = Annotated[str, Field(pattern=r"^(all|none|last-[1-9][0-9]*)$")]

DATASETS = ("shapes", "folder", "flickr8k", "flickr30k", "coco", "shards")
_PHOTOS = ("folder", "flickr8k", "flickr30k", "coco")
_USED, _ON = (OTHER_THAN, "none"), (OTHER_THAN, 0)
_FROZEN_ONCE = {"image_tune": _USED, "cache_features": (False,), "dataset": ("shards",)}
_AUGMENTATION = {"crop_area": (OTHER_THAN, 1), "flip": (True,), "colour": _ON, "randaugment": _ON}
_LAYERS = {"image_encoder": ("vit",), "text_encoder": ("transformer",)}


class RunConfig(Config):
    """Parameters of a run, of which some are read only where others have certain values."""

    READ_BY = (
        ({"dataset": _PHOTOS}, ("data_root", "also_train_on")),
        ({"dataset": ("folder",)}, ("data_name", "private", "val_fraction", "test_fraction", "split_seed")),
        ({"dataset": ("shards",)}, ("train_shards", "val_shards", "test_shards")),
        ({"dataset": ("shapes",)}, ("shapes_seed", "shapes_train", "shapes_val", "shapes_test")),
        ({"dataset": (OTHER_THAN, "shapes")}, ("resize", "leaks")),
        ({"dataset": (OTHER_THAN, "shards")}, ("cache_features", "feature_views")),
        ({"tokenizer": ("word",)}, ("min_word_count",)),
        ({"tokenizer": ("bpe",)}, ("bpe_vocabulary",)),
        ({"image_encoder": (PRETRAINED,)}, ("image_weights", "image_lr_scale")),
        ({"image_tune": _USED}, ("image_lr_scale",)),
        ({"text_encoder": (PRETRAINED,)}, ("text_weights", "text_lr_scale")),
        ({"text_tune": _USED}, ("text_lr_scale",)),
        ({"image_encoder": (OTHER_THAN, "vit")}, ("image_pooling",)),
        ({"image_encoder": ("vit",)}, ("patch_size",)),
        ({"image_encoder": ("vit",), "text_encoder": ("transformer", "words")}, ("mlp_ratio",)),
        (_LAYERS, ("num_layers",)),
        (_LAYERS | {"image_pooling": ("attention",), "memory": _USED}, ("num_heads",)),
        ({"memory": _USED}, ("memory_slots",)),
        ({"memory": ("published",)}, ("feedback_steps", "memory_write")),
        ({"text_encoder": ("transformer",)}, ("padding_mask",)),
        ({"loss": ("infonce", "sigmoid")}, ("temperature", "learn_temperature")),
        ({"loss": ("infonce",)}, ("label_smoothing",)),
        ({"loss": ("sigmoid",)}, ("sigmoid_bias",)),
        ({"loss": ("triplet",)}, ("margin", "hardest_after_epochs")),
        (_FROZEN_ONCE | {"feature_views": (OTHER_THAN, 1)}, ("crop_area", "flip", "colour", "randaugment")),
        ({"image_encoder": (PRETRAINED,), "text_encoder": (PRETRAINED,)}, ("layer_decay",)),  # and tuned
        ({"image_encoder": (PRETRAINED,), "text_tune": _USED}, ("layer_decay",)),
        ({"image_tune": _USED, "text_encoder": (PRETRAINED,)}, ("layer_decay",)),
        ({"image_tune": _USED, "text_tune": _USED}, ("layer_decay",)),
        ({"image_tune": ("none",), "text_tune": ("none",)}, ("cache_features",)),
        ({"image_tune": ("none",)}, ("feature_views",)),
        ({"cache_features": (True,)}, ("feature_views",)),
        (_AUGMENTATION, ("feature_views",)),
        ({"optimizer": ("sgd", "rmsprop")}, ("momentum",)),
        ({"schedule": ("cosine",)}, ("schedule_unit", "final_lr_fraction")),
        ({"checkpoint_steps": (0,)}, ("checkpoint_seconds",)),
    )


class DataConfig(RunConfig):
    """Which images and captions."""

    dataset: Literal[DATASETS] = param(
        "shapes", "drawn shapes, one's own photos (folder), a published set, or tar files (shards)"
    )
    data_root: str | None = param(
        None, "folder of a data set on disk, from the repository's root (null: data/<dataset>)"
    )
    also_train_on: list[str] = param(
        [], "training splits of more sets, each name[:folder][@weight], as flickr30k@0.5"
    )
    data_name: Name = param("own-photos", "folder: what tables and figures call the data")
    private: bool = param(False, "folder: keep photos and captions out of the pages that can be passed on")
    val_fraction: float = param(0.15, "folder: share of photos drawn for validation", gt=0, lt=1)
    test_fraction: float = param(0.15, "folder: share of photos drawn for the test split", gt=0, lt=1)
    split_seed: int = param(0, "folder: seed of splits that are drawn", ge=0)
    train_shards: list[str] = param([], "shards: paths, URLs or patterns of the training split")
    val_shards: list[str] = param([], "shards: the same of the validation split")
    test_shards: list[str] = param([], "shards: the same of the test split")
    shapes_seed: int = param(0, "shapes: seed of the scenes", ge=0)
    shapes_train: Count = param(2000, "shapes: training images")
    shapes_val: Count = param(250, "shapes: validation images")
    shapes_test: Count = param(250, "shapes: test images")
    image_size: int = param(64, "side of the square image the model sees, pixels", ge=16, le=1024)
    resize: Literal["squash", "crop"] = param(
        "squash", "squash to a square, as the reference does, or resize the shorter side and crop"
    )
    leaks: Literal["exclude", "keep"] = param(
        "exclude", "training images that are also in val or test, by id, bytes or look"
    )

    @property
    def shown_name(self) -> str:
        """What tables and figures call the data set."""
        return self.data_name if self.dataset == "folder" else self.dataset

    @property
    def folder(self) -> str:
        """Where the data set lies, from the repository's root."""
        return self.data_root or f"data/{self.dataset}"


class TokenizerConfig(RunConfig):
    """How captions become token ids."""

    tokenizer: Literal["char", "char-reference", "word", "bpe", "clip", "encoder"] = param(
        "word", "bpe and word are learned from the training captions; encoder: the text encoder's"
    )
    max_tokens: int = param(24, "longest caption, tokens; longer ones are cut", ge=1, le=4096)
    min_word_count: Count = param(1, "word: rarer words of the training captions are unknown")
    bpe_vocabulary: int = param(4096, "bpe: tokens, padding and 256 bytes included", ge=257, le=1_000_000)


class ModelConfig(RunConfig):
    """The memory network's sizes (reference: 16, 512, 4, 8, 4, 0.1, 128, 2, mask off)."""

    image_encoder: str = param("vit", "vit, timm:<name>, torchvision:<name>, open_clip:<name>; several: a+b")
    image_weights: str = param("none", "none, default (the library's own), a tag of it, a file; each: a+b")
    image_pooling: Literal["encoder", "attention"] = param(
        "encoder", "pretrained: the encoder's own vector, or learned attention over its positions"
    )
    text_encoder: str = param(
        "transformer", "transformer, gru, words, open_clip:<name> or hf:<name or folder>"
    )
    text_weights: str = param("none", "none, default (the library's own), a tag of it, or a file")
    patch_size: Count = param(8, "vit: side of an image patch, pixels; divides image_size")
    latent_dim: int = param(96, "width of the latent and of both encoders", ge=8)
    num_layers: Count = param(2, "vit, transformer: layers of each")
    num_heads: Count = param(4, "attention heads; divides latent_dim")
    mlp_ratio: Count = param(4, "feed-forward width over latent_dim")
    dropout: float = param(0.1, "dropout of encoders, fusion and feedback, probability", ge=0, lt=1)
    memory: Literal["published", "cosine", "none"] = param(
        "published", "the reference's three memories, one that both modalities read by cosine, or none"
    )
    memory_slots: int = param(32, "slots of the central memory; each modality has half (published)", ge=2)
    feedback_steps: int = param(2, "rounds of feedback through the central memory", ge=0)
    padding_mask: bool = param(True, "leave padding out of the text encoder (reference: false)")
    memory_write: bool = param(False, "write the slots at test time (off in every published figure)")


class LossConfig(RunConfig):
    """What is minimised."""

    loss: Literal["infonce", "sigmoid", "triplet"] = param(
        "infonce", "InfoNCE, the sigmoid loss of SigLIP, or the hardest-negative triplet of VSE++"
    )
    temperature: float = param(0.07, "temperature of the similarities; the first one if learned", gt=0)
    learn_temperature: bool = param(False, "learn the temperature (infonce: 1/temperature at most 100)")
    identity_positives: bool = param(
        True, "captions of one image in a batch are not negatives (reference: false)"
    )
    label_smoothing: float = param(0.0, "infonce: share of the target spread over all", ge=0, lt=1)
    sigmoid_bias: float = param(-10.0, "sigmoid: first value of the learned bias")
    margin: float = param(0.2, "triplet: margin of cosine similarities", gt=0)
    hardest_after_epochs: float = param(
        1.0, "triplet: epochs of the mean over negatives before the hardest alone", ge=0
    )


class AugmentConfig(RunConfig):
    """What is done to training images, anew at every sight of them."""

    crop_area: float = param(1.0, "random crop: smallest share of the area; 1: off", gt=0, le=1)
    flip: bool = param(False, "mirror half of the images")
    colour: float = param(0.0, "jitter of brightness, contrast, saturation, strength; 0: off", ge=0, le=1)
    randaugment: int = param(0, "RandAugment operations per image; 0: off", ge=0, le=8)


class TuneConfig(RunConfig):
    """How much of pretrained encoders is trained, and how fast."""

    image_tune: Tuned = param("all", "what of the image encoder is trained: all, none, or last-<n> blocks")
    text_tune: Tuned = param("all", "what of the text encoder is trained: all, none, or last-<n> blocks")
    image_lr_scale: float = param(1.0, "rate of a pretrained image encoder over the base rate", gt=0)
    text_lr_scale: float = param(1.0, "rate of a pretrained text encoder over the base rate", gt=0)
    layer_decay: float = param(1.0, "rate of a pretrained block over that of the block after it", gt=0, le=1)
    cache_features: bool = param(True, "compute the features of encoders that are not tuned once")
    feature_views: Count = param(
        1, "cached features: views of each image, the first as it is, the rest augmented"
    )


OPTIMIZERS = ("sgd", "adamw", "adam", "nadam", "radam", "adamax", "adagrad", "rmsprop", "adafactor")


class OptimConfig(RunConfig):
    """How the weights are found."""

    epochs: Count = param(..., "epochs of this phase")
    batch_size: int = param(64, "(image, caption) pairs per step, over all processes", ge=2)
    chunk_size: int = param(
        0, "gradient caching: pairs encoded at once in a process; 0: the whole batch", ge=0
    )
    captions_per_image: Literal["all", "one"] = param(
        "one", "an epoch is all pairs, or each image once with one caption drawn anew"
    )
    optimizer: Literal[OPTIMIZERS] = param("adamw", "sgd is SGD with Nesterov momentum")
    lr: float = param(..., "base learning rate", gt=0)
    momentum: float = param(0.9, "sgd, rmsprop: momentum", ge=0, lt=1)
    weight_decay: float = param(0.0, "weight decay; of matrices alone", ge=0)
    schedule: Literal["cosine", "constant"] = param("cosine", "course of the learning rate")
    schedule_unit: Literal["epoch", "step"] = param("epoch", "how often the learning rate changes")
    warmup_epochs: float = param(0.0, "linear warm-up before the schedule, epochs (fractions allowed)", ge=0)
    final_lr_fraction: Fraction = param(0.01, "cosine: last learning rate over the base rate")
    clip_norm: float = param(1.0, "largest gradient norm; 0 turns clipping off", ge=0)
    ema_decay: float = param(
        0.0, "moving average of the weights, which is then what is evaluated; 0: off", ge=0, lt=1
    )
    precision: Literal["fp32", "bf16", "fp16"] = param("fp32", "arithmetic; fp16 needs a GPU")
    compile: Literal["auto", "on", "off"] = param(
        "auto", "compile the model; auto: on a GPU, where the run is long enough to gain by it"
    )
    seed: int = param(0, "seed of weights, data order and dropout", ge=0, lt=2**32)
    select_by: Literal["rsum", "mean_r1", "last"] = param(
        "rsum", "validation metric that chooses the best epoch; last: it is the last one"
    )


class PlaceConfig(RunConfig):
    """Where a run is kept; no result depends on these."""

    run: Name = param(..., "name of the run folder under runs/")
    overwrite: bool = param(False, "delete a run of this name first")
    device: Literal["auto", "cpu", "cuda"] = param("auto", "auto takes a GPU where there is one")
    checkpoint_seconds: float = param(60.0, "seconds between checkpoints", ge=0)
    checkpoint_steps: int = param(
        0, "steps between checkpoints, also at the end of an epoch; 0: by seconds", ge=0
    )
    tracker: Literal["none", "csv", "tensorboard"] = param("none", "a log of the epochs in the run's folder")


class TrainConfig(
    DataConfig, TokenizerConfig, ModelConfig, LossConfig, AugmentConfig, TuneConfig, OptimConfig, PlaceConfig
):
    """Everything that a training run is made of (notebook 01)."""

    @model_validator(mode="after")
    def _values_fit_together(self):
        if wrong := _conflicts(self):
            raise ValueError("; ".join(wrong))
        return self


def _conflicts(c: "TrainConfig") -> list[str]:
    """What is wrong with values that are each possible, a sentence each."""
    own_tokens = is_pretrained(c.text_encoder)
    wrong = {
        f"num_heads must divide latent_dim: {c.latent_dim} is not a multiple of {c.num_heads}":
            c.latent_dim % c.num_heads,
        f"patch_size must divide image_size: {c.image_size} is not a multiple of {c.patch_size}":
            c.image_encoder == "vit" and c.image_size % c.patch_size,
        f"warmup_epochs must be smaller than epochs: found {c.warmup_epochs} of {c.epochs}":
            0 < c.warmup_epochs >= c.epochs,
        f"chunk_size must not exceed batch_size: found {c.chunk_size} of {c.batch_size}":
            c.chunk_size > c.batch_size,
        f"tokenizer 'encoder' needs a pretrained text encoder: found text_encoder {c.text_encoder!r}":
            c.tokenizer == "encoder" and not own_tokens,
        f"text_encoder {c.text_encoder!r} needs tokenizer 'encoder': found {c.tokenizer!r}":
            c.tokenizer != "encoder" and own_tokens,
        f"val_fraction {c.val_fraction:g} and test_fraction {c.test_fraction:g} leave no photo to train on":
            c.val_fraction + c.test_fraction >= 1,
        f"data_name {c.data_name!r} is the name of a published set: choose another": c.data_name in DATASETS,
    }  # fmt: skip
    for side in ("image", "text"):
        tune, encoder = getattr(c, f"{side}_tune"), getattr(c, f"{side}_encoder")
        wrong[
            f"{side}_tune {tune!r} would leave random weights as they are: {side}_encoder {encoder!r} is"
            " trained from scratch, use 'all'"
        ] = tune != "all" and not is_pretrained(encoder)
    for name in ("train_shards", "val_shards"):
        message = f"dataset 'shards' needs {name}: paths, URLs or patterns of tar files"
        wrong[message] = c.dataset == "shards" and not getattr(c, name)
    return [message for message, is_wrong in wrong.items() if is_wrong]


IDENTITY = tuple(f for part in (DataConfig, TokenizerConfig, ModelConfig) for f in part.model_fields)
PLACE = (*PlaceConfig.model_fields, "data_root")  # may differ when a run is resumed
OWN = ("epochs", "lr", "warmup_epochs", "seed")  # a continued run never inherits these


def _continuing() -> dict[str, Any]:
    fields = {}
    others = [name for name in TrainConfig.model_fields if name not in (*OWN, *PlaceConfig.model_fields)]
    for name in (*OWN, *others):
        field = TrainConfig.model_fields[name]
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        as_parent = Field(None, description=f"{field.description} (null: as the parent)")
        fields[name] = (kind, field) if name in OWN else (kind | None, as_parent)
    return fields


class _ContinueOwn(PlaceConfig):
    parent: Name = param(..., "run to continue from")
    parent_checkpoint: Literal["best", "last"] = param("best", "which of the parent's checkpoints")
    optimizer_state: Literal["keep", "reset"] = param("keep", "momentum and the like of the parent")


ContinueConfig = create_model(
    "ContinueConfig",
    __base__=_ContinueOwn,
    __doc__="A new run from a parent's checkpoint (notebook 02); null means as the parent.",
    **_continuing(),
)


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


class EvaluateConfig(Config):
    """One evaluation of finished runs on a split (notebook 03)."""

    runs: list[Name] = param(..., "runs to evaluate, oldest phase first", min_length=1)
    checkpoint: Literal["best", "last"] = param("best", "which checkpoint of each run")
    split: Literal["test", "val"] = param("test", "split; test is for final rows only")
    wise_ft: Fraction = param(
        1.0, "share of each run's weights; the rest are its parent's or the pretrained ones"
    )
    eval_batch_size: Count = param(250, "images or captions embedded at once")
    device: Literal["auto", "cpu", "cuda"] = param("auto", "auto takes a GPU where there is one")
    data_root: str | None = param(None, "where the data set lies now (null: where the run found it)")
    gallery_queries: int = param(8, "queries of each direction kept for the gallery", ge=0)


class AnalysisConfig(Config):
    """What the analysis reads (notebook 04)."""

    runs: list[Name] = param(..., "runs of one lineage, oldest phase first", min_length=1)


class AblationConfig(Config):
    """Runs that differ in what is asked about, under several seeds, and claims on them (notebook 05)."""

    run: Name = param(..., "name of the ablation; its runs are <run>.<arm>.s<seed>")
    base: str = param(..., "YAML file of the training run that all arms share, from the repository's root")
    changes: dict[str, Any] = param({}, "parameters that differ from the base in all arms")
    arms: dict[str, dict[str, Any]] = param(
        {}, "name → parameters that differ from base and changes; the first is the base line"
    )
    grid: dict[str, list] = param({}, "parameter → values; all combinations, with each arm if there are any")
    tune: dict[str, list | dict[str, list]] = param(
        {},
        "parameter → values to choose from on validation with the first seed, for all arms; or"
        " arm → such a mapping for that arm",
    )
    ensembles: dict[str, list[str]] = param({}, "name → arms whose embeddings are joined, seed by seed")
    seeds: list[int] = param([0], "seeds that every arm is trained with", min_length=1)
    split: Literal["val", "test"] = param(
        "val", "split that each final run is evaluated on; tuning never sees test"
    )
    claims: list[dict[str, str]] = param(
        [], "to judge: claim (a sentence), arm, over (the arm it should beat)"
    )
    device: Literal["auto", "cpu", "cuda"] = param("auto", "auto takes a GPU where there is one")
    data_root: str | None = param(None, "where the data set lies (null: as in the base)")
    image_weights: str | None = param(
        None, "weights of the image encoder in all arms (null: as base and changes say)"
    )
    overwrite: bool = param(False, "delete the runs of this ablation first")

    @field_validator("changes", "arms", "grid", "tune")
    @classmethod
    def _as_the_runs_read_it(cls, value: dict, info) -> dict:
        """The values of the runs' parameters, one or a list of each, as a run reads them."""
        return _read_inside(value, lists=info.field_name in ("grid", "tune"))


def _read_inside(values: dict[str, Any], lists: bool) -> dict[str, Any]:
    read = dict(values)
    for name, value in values.items():
        if isinstance(value, dict):  # of an arm
            read[name] = _read_inside(value, lists)
        elif not lists:
            read |= read_values(TrainConfig, {name: value})
        elif isinstance(value, list):
            read[name] = [read_values(TrainConfig, {name: each})[name] for each in value]
    return read


CONFIG_OF_NOTEBOOK = {
    "01_train": TrainConfig,
    "02_continue": ContinueConfig,
    "03_evaluate": EvaluateConfig,
    "04_analysis": AnalysisConfig,
    "05_ablation": AblationConfig,
}
