"""Every parameter of every notebook and command, with its meaning and unit; tables are made from it.

Fields are grouped by what they decide:

* data, tokenizer, model: the run's *identity*.  A continued run takes these from its parent.
* loss, augmentation, fine-tuning, optimisation: the recipe.  Free to change when a run is continued.
* place: where and how often things are written.  No result depends on it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from mmlib.config.reading import Config, read_values
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


class DataConfig(Config):
    """Which images and captions."""

    dataset: Literal[DATASETS] = Field(
        "shapes",
        description="drawn shapes, one's own photos (folder), a published set, or tar files (shards)",
    )
    data_root: str | None = Field(
        None, description="folder of a data set on disk, from the repository's root (null: data/<dataset>)"
    )
    also_train_on: list[str] = Field(
        [], description="training splits of more sets, each name[:folder][@weight], as flickr30k@0.5"
    )
    data_name: Name = Field("own-photos", description="folder: what tables and figures call the data")
    private: bool = Field(
        False, description="folder: keep photos and captions out of the pages that can be passed on"
    )
    val_fraction: float = Field(
        0.15, gt=0, lt=1, description="folder: share of the photos drawn for validation, where nothing says"
    )
    test_fraction: float = Field(0.15, gt=0, lt=1, description="folder: the same of the test split")
    split_seed: int = Field(0, ge=0, description="folder: seed of splits that are drawn")
    train_shards: list[str] = Field([], description="shards: paths, URLs or patterns of the training split")
    val_shards: list[str] = Field([], description="shards: the same of the validation split")
    test_shards: list[str] = Field([], description="shards: the same of the test split")
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

    @property
    def folder(self) -> str:
        """Where the data set lies, from the repository's root."""
        return self.data_root or f"data/{self.dataset}"


class TokenizerConfig(Config):
    """How captions become token ids."""

    tokenizer: Literal["char", "char-reference", "word", "bpe", "clip", "encoder"] = Field(
        "word", description="bpe and word are learned from the training captions; encoder: the text encoder's"
    )
    max_tokens: int = Field(24, ge=1, le=4096, description="longest caption, tokens; longer ones are cut")
    min_word_count: Count = Field(1, description="word: rarer words of the training captions are unknown")
    bpe_vocabulary: int = Field(4096, ge=2, le=1_000_000, description="bpe: tokens, special ones included")


class ModelConfig(Config):
    """The memory network's sizes (reference: 16, 512, 4, 8, 4, 0.1, 128, 2, mask off)."""

    image_encoder: str = Field("vit", description="vit, timm:<name>, torchvision:<name> or open_clip:<name>")
    image_weights: str = Field(
        "none", description="none, default (the library's own), a tag of it, or a file"
    )
    image_pooling: Literal["encoder", "attention"] = Field(
        "encoder", description="pretrained: the encoder's own vector, or learned attention over its positions"
    )
    text_encoder: str = Field(
        "transformer", description="transformer, gru, words, open_clip:<name> or hf:<name or folder>"
    )
    text_weights: str = Field("none", description="none, default (the library's own), a tag of it, or a file")
    patch_size: Count = Field(8, description="vit: side of an image patch, pixels; divides image_size")
    latent_dim: int = Field(96, ge=8, description="width of the latent and of both encoders")
    num_layers: Count = Field(2, description="vit, transformer: layers of each")
    num_heads: Count = Field(4, description="attention heads; divides latent_dim")
    mlp_ratio: Count = Field(4, description="feed-forward width over latent_dim")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of encoders, fusion and feedback, probability"
    )
    memory_slots: int = Field(
        32, ge=0, description="slots of the central memory, half of it for each modality; 0: no memory at all"
    )
    feedback_steps: int = Field(2, ge=0, description="rounds of feedback through the central memory")
    padding_mask: bool = Field(True, description="leave padding out of the text encoder (reference: false)")
    memory_write: bool = Field(
        False, description="write the slots at test time (off in every published figure)"
    )


class LossConfig(Config):
    """What is minimised."""

    loss: Literal["infonce", "sigmoid", "triplet"] = Field(
        "infonce", description="InfoNCE, the sigmoid loss of SigLIP, or the hardest-negative triplet of VSE++"
    )
    temperature: float = Field(
        0.07, gt=0, description="temperature of the similarities; the first one if learned"
    )
    learn_temperature: bool = Field(
        False, description="learn the temperature (infonce: 1/temperature at most 100)"
    )
    identity_positives: bool = Field(
        True, description="captions of one image in a batch are not negatives (reference: false)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="infonce: share of the target spread over all"
    )
    sigmoid_bias: float = Field(-10.0, description="sigmoid: first value of the learned bias")
    margin: float = Field(0.2, gt=0, description="triplet: margin of cosine similarities")
    hardest_after_epochs: float = Field(
        1.0, ge=0, description="triplet: epochs of the mean over negatives before the hardest alone"
    )


class AugmentConfig(Config):
    """What is done to training images, anew at every sight of them."""

    crop_area: float = Field(1.0, gt=0, le=1, description="random crop: smallest share of the area; 1: off")
    flip: bool = Field(False, description="mirror half of the images")
    colour: float = Field(
        0.0, ge=0, le=1, description="jitter of brightness, contrast, saturation, strength; 0: off"
    )
    randaugment: int = Field(0, ge=0, le=8, description="RandAugment operations per image; 0: off")


class TuneConfig(Config):
    """How much of pretrained encoders is trained, and how fast."""

    image_tune: Tuned = Field(
        "all", description="what of the image encoder is trained: all, none, or last-<n> blocks"
    )
    text_tune: Tuned = Field(
        "all", description="what of the text encoder is trained: all, none, or last-<n> blocks"
    )
    image_lr_scale: float = Field(
        1.0, gt=0, description="rate of a pretrained image encoder over the base rate"
    )
    text_lr_scale: float = Field(
        1.0, gt=0, description="rate of a pretrained text encoder over the base rate"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="rate of a pretrained block over that of the block after it"
    )
    cache_features: bool = Field(True, description="compute the features of encoders that are not tuned once")
    feature_views: Count = Field(
        1, description="cached features: views of each image, the first as it is, the rest augmented"
    )


OPTIMIZERS = ("sgd", "adamw", "adam", "nadam", "radam", "adamax", "adagrad", "rmsprop", "adafactor")


class OptimConfig(Config):
    """How the weights are found."""

    epochs: Count = Field(..., description="epochs of this phase")
    batch_size: int = Field(64, ge=2, description="(image, caption) pairs per step, over all processes")
    chunk_size: int = Field(
        0, ge=0, description="gradient caching: pairs encoded at once in a process; 0: the whole batch"
    )
    captions_per_image: Literal["all", "one"] = Field(
        "one", description="an epoch is all pairs, or each image once with one caption drawn anew"
    )
    optimizer: Literal[OPTIMIZERS] = Field("adamw", description="sgd is SGD with Nesterov momentum")
    lr: float = Field(..., gt=0, description="base learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd, rmsprop: momentum")
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
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="moving average of the weights, which is then what is evaluated; 0: off"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic; fp16 needs a GPU")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the model; auto: on a GPU, where the run is long enough to gain by it"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, data order and dropout")
    select_by: Literal["rsum", "mean_r1"] = Field(
        "rsum", description="validation metric that chooses the best epoch, standard protocol"
    )


class PlaceConfig(Config):
    """Where a run is kept; no result depends on these."""

    run: Name = Field(..., description="name of the run folder under runs/")
    overwrite: bool = Field(False, description="delete a run of this name first")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    checkpoint_seconds: float = Field(60.0, ge=0, description="seconds between checkpoints")
    checkpoint_steps: int = Field(
        0, ge=0, description="steps between checkpoints, also at the end of an epoch; 0: by seconds"
    )


class TrainConfig(
    DataConfig,
    TokenizerConfig,
    ModelConfig,
    LossConfig,
    AugmentConfig,
    TuneConfig,
    OptimConfig,
    PlaceConfig,
):
    """Everything that a training run is made of (notebook 01)."""

    @model_validator(mode="after")
    def _values_fit_together(self):
        if wrong := [*_wrong_sizes(self), *_wrong_encoders(self), *_wrong_data(self)]:
            raise ValueError("; ".join(wrong))
        return self


def _wrong_sizes(config: "TrainConfig") -> list[str]:
    wrong = []
    if config.latent_dim % config.num_heads:
        wrong.append(
            f"num_heads must divide latent_dim: {config.latent_dim} is not a multiple of {config.num_heads}"
        )
    if config.image_encoder == "vit" and config.image_size % config.patch_size:
        wrong.append(
            f"patch_size must divide image_size: {config.image_size} is not a multiple of {config.patch_size}"
        )
    if config.memory_slots == 1:
        wrong.append("memory_slots must be 0 (no memory) or at least 2: found 1, half of which is none")
    if config.warmup_epochs >= config.epochs and config.warmup_epochs > 0:
        wrong.append(
            f"warmup_epochs must be smaller than epochs: found {config.warmup_epochs} of {config.epochs}"
        )
    if config.chunk_size > config.batch_size:
        wrong.append(
            f"chunk_size must not exceed batch_size: found {config.chunk_size} of {config.batch_size}"
        )
    return wrong


def is_pretrained(encoder: str) -> bool:
    """Whether an encoder comes from another library (`timm:…`, `hf:…`), by its name."""
    return ":" in encoder


def _wrong_encoders(config: "TrainConfig") -> list[str]:
    wrong = []
    if config.tokenizer == "encoder" and not is_pretrained(config.text_encoder):
        wrong.append(
            f"tokenizer 'encoder' needs a pretrained text encoder: found text_encoder"
            f" {config.text_encoder!r}; use word, bpe, clip or char"
        )
    if is_pretrained(config.text_encoder) and config.tokenizer != "encoder":
        wrong.append(
            f"text_encoder {config.text_encoder!r} reads its own tokens: expected tokenizer 'encoder', found"
            f" {config.tokenizer!r}"
        )
    for side, encoder in (("image", config.image_encoder), ("text", config.text_encoder)):
        tune = getattr(config, f"{side}_tune")
        if tune != "all" and not is_pretrained(encoder):
            wrong.append(
                f"{side}_tune {tune!r} would leave random weights as they are: {side}_encoder {encoder!r} is"
                " trained from scratch, use 'all'"
            )
    return wrong


def _wrong_data(config: "TrainConfig") -> list[str]:
    wrong = []
    if config.val_fraction + config.test_fraction >= 1:
        wrong.append(
            f"val_fraction {config.val_fraction:g} and test_fraction {config.test_fraction:g} leave no photo"
            " to train on: choose two that add up to less than 1"
        )
    if config.data_name in DATASETS:
        wrong.append(f"data_name {config.data_name!r} is the name of a published data set: choose another")
    if config.dataset != "shards":
        return wrong
    return wrong + [
        f"dataset 'shards' needs {name}: paths, URLs or patterns of tar files"
        for name in ("train_shards", "val_shards")
        if not getattr(config, name)
    ]


IDENTITY = tuple(f for part in (DataConfig, TokenizerConfig, ModelConfig) for f in part.model_fields)
PLACE = (*PlaceConfig.model_fields, "data_root")  # may differ when a run is resumed
_OWN = ("epochs", "lr", "warmup_epochs", "seed")  # a continued run never inherits these


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


class EvaluateConfig(Config):
    """One evaluation of finished runs on a split (notebook 03)."""

    runs: list[Name] = Field(..., min_length=1, description="runs to evaluate, oldest phase first")
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of each run")
    split: Literal["test", "val"] = Field("test", description="split; test is for final rows only")
    wise_ft: Fraction = Field(
        1.0, description="share of each run's weights; the rest are its parent's or the pretrained ones"
    )
    eval_batch_size: Count = Field(250, description="images or captions embedded at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    data_root: str | None = Field(
        None, description="where the data set lies now (null: where the run found it)"
    )
    gallery_queries: int = Field(8, ge=0, description="queries of each direction kept for the gallery")


class AnalysisConfig(Config):
    """What the analysis reads (notebook 04)."""

    runs: list[Name] = Field(..., min_length=1, description="runs of one lineage, oldest phase first")


class AblationConfig(Config):
    """Runs that differ in what is asked about, under several seeds, and claims on them (notebook 05)."""

    run: Name = Field(..., description="name of the ablation; its runs are <run>.<arm>.s<seed>")
    base: str = Field(
        ..., description="YAML file of the training run that all arms share, from the repository's root"
    )
    changes: dict[str, Any] = Field({}, description="parameters that differ from the base in all arms")
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="name → parameters that differ from base and changes; the first is the base line"
    )
    grid: dict[str, list] = Field(
        {}, description="parameter → values; all combinations, with each arm where there are arms"
    )
    tune: dict[str, list | dict[str, list]] = Field(
        {},
        description="parameter → values to choose from on validation with the first seed, for all arms; or"
        " arm → such a mapping for that arm",
    )
    seeds: list[int] = Field([0], min_length=1, description="seeds that every arm is trained with")
    split: Literal["val", "test"] = Field(
        "val", description="split that each final run is evaluated on; tuning never sees test"
    )
    claims: list[dict[str, str]] = Field(
        [], description="what to judge: claim (a sentence), arm, and over (the arm that it should beat)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    data_root: str | None = Field(None, description="where the data set lies (null: as in the base)")
    image_weights: str | None = Field(
        None, description="weights of the image encoder in all arms (null: as base and changes say)"
    )
    overwrite: bool = Field(False, description="delete the runs of this ablation first")

    @field_validator("changes", "arms", "grid", "tune")
    @classmethod
    def _as_the_runs_read_it(cls, value: dict, info) -> dict:
        """The values of the runs' parameters, one or a list of each, as a run reads them."""
        one = info.field_name in ("changes", "arms")
        return {
            name: _train_values(inner, one)
            if isinstance(inner, dict) and info.field_name != "changes"
            else _train_values({name: inner}, one)[name]
            for name, inner in value.items()
        }


def _train_values(values: dict[str, Any], one: bool) -> dict[str, Any]:
    if one:
        return read_values(TrainConfig, values)
    return {
        name: [read_values(TrainConfig, {name: each})[name] for each in inner]
        if isinstance(inner, list)
        else inner
        for name, inner in values.items()
    }


CONFIG_OF_NOTEBOOK = {
    "01_train": TrainConfig,
    "02_continue": ContinueConfig,
    "03_evaluate": EvaluateConfig,
    "04_analysis": AnalysisConfig,
    "05_ablation": AblationConfig,
}
