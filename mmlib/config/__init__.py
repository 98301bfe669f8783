"""Parameters → frozen, typed, checked configs."""

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
    TokenizerConfig,
    TrainConfig,
    continued,
    differences,
)
from mmlib.config.reading import (
    JOIN,
    ParameterError,
    ask,
    build,
    from_notebook,
    is_pretrained,
    read_values,
    read_yaml,
    refuse_unread,
    required,
    training_of,
    unread,
)
