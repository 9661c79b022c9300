"""Training and evaluation for person re-identification with the modified centroid triplet loss.

`from reid import Embedder` is the door for other programs: images in, features out.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    """Embedder, imported when it is first asked for: it brings torch, and `import reid` should cost nothing."""
    if name == "Embedder":
        return importlib.import_module("reid.embedder").Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
