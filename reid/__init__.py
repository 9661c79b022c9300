"""Training and evaluation for person re-identification with the modified centroid triplet loss.

`from reid import Embedder`: images in, features out. `reid.train`, `reid.evaluate` and `reid.open_loader` do in Python
what the programs do; docs/api.md describes all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.api import BatchLoader as BatchLoader
    from reid.api import EvaluateResult as EvaluateResult
    from reid.api import evaluate as evaluate
    from reid.api import open_loader as open_loader
    from reid.config import AugmentConfig as AugmentConfig
    from reid.config import Config as Config
    from reid.config import read_flags as read_flags
    from reid.embedder import Embedder as Embedder
    from reid.training.train import TrainResult as TrainResult
    from reid.training.train import train as train

__version__ = "0.1.0"
_MODULES = {  # of each name; imported at its first use: torch takes seconds
    "AugmentConfig": "reid.config",
    "BatchLoader": "reid.api",
    "Config": "reid.config",
    "Embedder": "reid.embedder",
    "EvaluateResult": "reid.api",
    "TrainResult": "reid.training.train",
    "evaluate": "reid.api",
    "open_loader": "reid.api",
    "read_flags": "reid.config",
    "train": "reid.training.train",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
