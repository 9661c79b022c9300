"""Files of features: those of any system are read, to evaluate them without a model, and ours are written.

A file is an .npz, or a folder of .npy files of the same names, which are mapped into memory rather than read:
    features (or embeddings)  (N, D) real numbers, not necessarily normalized
    pids                      (N,) integers, -1 = junk
    camids                    (N,) integers, optional; -1 or absent = unknown, and then no camera rule
    distractors               (N,) booleans (or 0 and 1), optional: images that match no query, whatever their pid
    paths                     (N,) text, optional: image files, for the rank lists
Arrays of Python objects are refused, because reading them could run code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.image_file import open_rgb
from reid.metrics.array_files import load_arrays, map_arrays, save_arrays
from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.norms import check_rows, squared_norms

KEYS = ("features", "embeddings", "pids", "camids", "distractors", "paths")
SHOWN_PX = 256  # longest side of an image in a rank list


@dataclass(frozen=True)
class ExternalFeatures:
    """Features of one split, the paths of its images as in the file (empty if it has none), and the file."""

    features: Features
    paths: list[str]
    source: Path


def read_image(path: Path) -> np.ndarray | None:
    """Read an image (H, W, 3) uint8, at most SHOWN_PX long; None if it is absent, too large or not an image."""
    try:
        upright = open_rgb(path)
    except ValueError:  # the caller counts the missing images
        return None
    upright.thumbnail((SHOWN_PX, SHOWN_PX))
    return np.asarray(upright)


def read_features(source: str | Path) -> ExternalFeatures:
    """Read one split. Raises ValueError, with the path and the fault, if it cannot be read or evaluated."""
    path = Path(source)
    arrays = map_arrays(path, KEYS) if path.is_dir() else load_arrays(path, KEYS)
    names = [name for name in ("features", "embeddings") if name in arrays]
    if len(names) != 1 or "pids" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; it needs pids and either features or embeddings"
        )
    embeddings = arrays[names[0]]
    camids = arrays.get("camids", np.full(embeddings.shape[:1], UNKNOWN))
    try:
        if not embeddings.size:
            raise ValueError(f"embeddings have shape {embeddings.shape}; give at least one image and dimension")
        features = Features(embeddings, arrays["pids"], camids, arrays.get("distractors"))  # type: ignore[arg-type]
        paths = _read_paths(arrays["paths"], len(embeddings)) if "paths" in arrays else []
    except ValueError as error:
        raise ValueError(f"{path}: {re.sub('^embeddings', names[0], str(error))}") from error
    check_finite(features, str(path), lambda i: f"row {i}" + (f", {paths[i]}" if paths else ""))
    return ExternalFeatures(features, paths, path)


def _read_paths(array: np.ndarray, number: int) -> list[str]:
    """Return the paths (N,) as text. Raises ValueError on other types, and on text that is no name of a file."""
    if array.shape != (number,) or array.dtype.kind not in "US":
        raise ValueError(f"paths are {array.dtype} {array.shape}; give text ({number},)")
    paths = []
    for row, given in enumerate(array.tolist()):
        try:
            name = given.decode() if isinstance(given, bytes) else given
            name.encode()
        except UnicodeError as error:
            raise ValueError(f"paths: row {row} is not UTF-8 ({given!r}); rename that file") from error
        if any(char < " " for char in name):
            raise ValueError(f"paths: row {row} holds a control character ({name!r}); rename that file")
        paths.append(name)
    return paths


def check_finite(features: Features, where: str, name_of: Callable[[int], str]) -> None:
    """Raise ValueError, with the image's name from name_of(row), if features are not finite or float32 loses digits."""
    squares = squared_norms(features.embeddings)
    check_rows(
        features.embeddings, squares, lambda row: f"{where}: the feature of {name_of(row)}", features.pids != JUNK
    )


def write_features(path: Path, features: Features) -> None:
    """Write one split as an .npz from which `read_features` reads the same bits."""
    arrays = {"features": features.embeddings, "pids": features.pids, "camids": features.camids}
    if features.distractors is not None:
        arrays["distractors"] = features.distractors
    save_arrays(path, {name: array.cpu().numpy() for name, array in arrays.items()})
