"""Training and evaluation for person re-identification with the modified centroid triplet loss.

Other programs use `from reid import Embedder`: images in, features out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Import Embedder at its first use: it imports torch, which takes seconds."""
    if name == "Embedder":
        return importlib.import_module("reid.embedder").Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
