"""Parameters → frozen, typed, checked configs."""

from mmlib.config.asking import (
    ask,
    continued,
    differences,
    from_notebook,
    is_read,
    refuse_unread,
    training_of,
    unread,
)
from mmlib.config.parameters import (
    CONFIG_OF_NOTEBOOK,
    IDENTITY,
    AblationConfig,
    AnalysisConfig,
    AugmentConfig,
    ContinueConfig,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PlaceConfig,
    TokenizerConfig,
    TrainConfig,
    TuneConfig,
    is_pretrained,
)
from mmlib.config.reading import ParameterError, build, defaults, read_values, read_yaml, required
