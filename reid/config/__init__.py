"""Every knob of training and evaluation: what it means, what it may be, and how it is read."""

from reid.config.checks import check, check_evaluation
from reid.config.parsing import load, make_parser, normalize_flags, parse, save, to_dict, to_yaml
from reid.config.schema import (
    AugmentConfig,
    BatchConfig,
    Config,
    DataConfig,
    EvalConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SpeedConfig,
    TrackConfig,
)

__all__ = [
    "AugmentConfig",
    "BatchConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "EvaluateConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "SpeedConfig",
    "TrackConfig",
    "check",
    "check_evaluation",
    "load",
    "make_parser",
    "normalize_flags",
    "parse",
    "save",
    "to_dict",
    "to_yaml",
]
