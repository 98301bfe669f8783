"""Parameters → frozen, typed, checked configs."""

from mmlib.config.continuing import continued, differences
from mmlib.config.fields import (
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
from mmlib.config.reading import ParameterError, build, from_notebook

__all__ = [
    "CONFIG_OF_NOTEBOOK",
    "IDENTITY",
    "AblationConfig",
    "AnalysisConfig",
    "AugmentConfig",
    "ContinueConfig",
    "DataConfig",
    "EvaluateConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ParameterError",
    "PlaceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TuneConfig",
    "build",
    "continued",
    "differences",
    "from_notebook",
    "is_pretrained",
]
