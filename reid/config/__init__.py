"""Every knob of training and evaluation: what it means, what it may be, and how it is read."""

from reid.config.checks import check, check_evaluation, check_streams
from reid.config.flags import knob_types, normalize_flags, to_flags
from reid.config.parsing import (
    change,
    load,
    make_parser,
    parse,
    read_flags,
    save,
    suggest_knob,
    to_dict,
    to_yaml,
)
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
from reid.config.yaml_file import read_yaml, to_text

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
    "change",
    "check",
    "check_evaluation",
    "check_streams",
    "knob_types",
    "load",
    "make_parser",
    "normalize_flags",
    "parse",
    "read_flags",
    "read_yaml",
    "save",
    "suggest_knob",
    "to_dict",
    "to_flags",
    "to_text",
    "to_yaml",
]
