"""The score below which a search says "unknown": a number, or one that an evaluation has measured for the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from reid.embedder import Embedder
from reid.runs.models import read_origin


def read_threshold(given: str, at: str, embedder: Embedder, gallery: str) -> float:
    """Return a threshold on the cosine; -inf if none is given.

    Args:
        given: a number, the thresholds.json of an evaluation, or "".
        at: which of the file's: open_set/<false alarm rate> or verification/<false positive rate>; "" = the file's
            strictest of the open set, otherwise of the verification.
        gallery: what is ranked.

    Raises:
        ValueError: the file is damaged, has no such threshold, or is of another model.
    """
    if not given:
        if at:
            raise ValueError(f"--at {at} chooses from a file: give --threshold thresholds.json")
        return -math.inf
    try:
        value = float(given)
    except ValueError:
        return _from_file(Path(given), at, embedder, gallery)
    if at or not -1 <= value <= 1:
        raise ValueError(f"--threshold {given}: give a cosine, from -1 to 1, without --at; or a thresholds.json")
    return value


def _from_file(path: Path, at: str, embedder: Embedder, gallery: str) -> float:
    if not path.is_file():
        raise ValueError(f"--threshold {path}: neither a number nor a file; `reid evaluate --open_set 0.5` writes one")
    if gallery != "images":
        raise ValueError(f"--threshold {path} was measured on images; give a number with --gallery {gallery}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        made = {name: document[name] for name in ("model", "flip", "dim")}
        found = {
            f"{kind}/{rate}": float(point["threshold"])
            for kind in ("open_set", "verification")
            for rate, point in document.get(kind, {}).get("thresholds", {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a thresholds.json ({error!r}); evaluate again to write it") from error
    _check_model(path, made, embedder)
    if not found:
        raise ValueError(f"{path} has no threshold: the evaluation had too few images; give a number")
    kinds = [name for name in found if name.startswith(next(iter(found)).split("/")[0])]
    chosen = at or min(kinds, key=lambda name: float(name.split("/")[1]))
    if chosen not in found:
        raise ValueError(f"--at {chosen}: {path} has {', '.join(found)}")
    return found[chosen]


def _check_model(path: Path, made: dict[str, Any], embedder: Embedder) -> None:
    own = {"model": read_origin(embedder.source).weights, "flip": embedder.flip, "dim": embedder.dim}
    fixes = {
        "model": f"evaluate {embedder.source} for its thresholds",
        "flip": f"evaluate {embedder.source} {'with' if embedder.flip else 'without'} --flip",
        "dim": "an evaluation measures thresholds of complete features only; give a number",
    }
    for name, value in own.items():
        if made[name] != value:
            raise ValueError(
                f"--threshold {path} is of another model than the index ({name}: {str(made[name])[:12]} against "
                f"{str(value)[:12]}); {fixes[name]}"
            )
