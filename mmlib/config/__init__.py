"""Parameters → frozen, typed, checked configs."""

from mmlib.config.cells import from_notebook
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
from mmlib.config.reading import ParameterError, build, read_values, required
from mmlib.config.unread import ask, is_read, refuse_unread, unread

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
    "ask",
    "build",
    "continued",
    "differences",
    "from_notebook",
    "is_pretrained",
    "is_read",
    "read_values",
    "refuse_unread",
    "required",
    "unread",
]
