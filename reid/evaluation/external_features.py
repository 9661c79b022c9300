"""Files of features: those of any system are read, to evaluate them without a model, and ours are written.

A file is an .npz, or a folder of .npy files of the same names, which are mapped into memory rather than read:
    features (or embeddings)  (N, D) real numbers, not necessarily normalized
    pids                      (N,) integers, -1 = junk
    camids                    (N,) integers, optional; -1 or absent = unknown, and then no camera rule
    distractors               (N,) booleans, optional: images that match no query, whatever their pid
    paths                     (N,) text, optional: image files, for the rank lists
Arrays of Python objects are refused, because reading them could run code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from reid.metrics.features import UNKNOWN, Features
from reid.metrics.ranking import find_unusable, name_fault
from reid.metrics.retrieval import save_arrays
from reid.metrics.scores import squared_norms

KEYS = ("features", "embeddings", "pids", "camids", "distractors", "paths")
SHOWN_PX = 256  # longest side of an image in a rank list
MAX_PIXELS = 50_000_000  # of an image in a rank list; protects against decompression bombs


@dataclass(frozen=True)
class ExternalFeatures:
    """Features of one split, the paths of its images as in the file (empty if it has none), and the file."""

    features: Features
    paths: list[str]
    source: Path


def read_image(path: Path) -> np.ndarray | None:
    """Read an image (H, W, 3) uint8, at most SHOWN_PX long; None if it is absent, too large or not an image."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises many kinds; the caller counts the missing images
        return None
    upright.thumbnail((SHOWN_PX, SHOWN_PX))
    return np.asarray(upright)


def read_features(source: str | Path) -> ExternalFeatures:
    """Read one split. Raises ValueError, with the path and the fault, if it cannot be read or evaluated."""
    path = Path(source)
    arrays = _read_arrays(path)
    names = [name for name in ("features", "embeddings") if name in arrays]
    if len(names) != 1 or "pids" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; it needs pids and either features or embeddings"
        )
    embeddings, paths = arrays[names[0]], arrays.get("paths")
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {names[0]} are {embeddings.dtype} {embeddings.shape}; give numbers (images, dims)")
    if not len(embeddings) or not embeddings.shape[1]:
        raise ValueError(f"{path}: {names[0]} have shape {embeddings.shape}; give at least one image and dimension")
    if paths is not None and (paths.shape != (len(embeddings),) or paths.dtype.kind not in "US"):
        raise ValueError(f"{path}: paths are {paths.dtype} {paths.shape}; give text ({len(embeddings)},)")
    for name in ("pids", "camids", "distractors"):
        if name in arrays and arrays[name].dtype.kind not in "biu":
            raise ValueError(f"{path}: {name} are {arrays[name].dtype}; give integers, or booleans for distractors")
    camids = arrays.get("camids", np.full(len(embeddings), UNKNOWN))
    try:
        features = Features(embeddings, arrays["pids"], camids, arrays.get("distractors"))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    listed = [] if paths is None else [str(name) for name in paths]
    check_finite(features, str(path), lambda i: f"row {i}" + (f", {listed[i]}" if listed else ""))
    return ExternalFeatures(features, listed, path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            found = [path / f"{name}.npy" for name in KEYS if (path / f"{name}.npy").is_file()]
            # Copy on write: torch requires writable memory, and nothing is ever written to the file.
            return {file.stem: _native(np.load(file, mmap_mode="c", allow_pickle=False)) for file in found}
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array; give an .npz, or a folder of .npy files")
        with file:
            return {name: _native(file[name]) for name in KEYS if name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file or folder") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of features: {str(error).splitlines()[0]}") from error


def _native(array: np.ndarray) -> np.ndarray:
    """Convert to this machine's byte order, the only one that torch reads."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def check_finite(features: Features, where: str, name_of: Callable[[int], str]) -> None:
    """Raise ValueError, with the image's name from name_of(row), if features are not finite or float32 loses digits."""
    bad = find_unusable(features, squared_norms(features.embeddings))
    if len(bad):
        raise ValueError(
            f"{where}: the features of {name_of(int(bad[0]))} are {name_fault(features.embeddings[bad[0]])} "
            f"({len(bad)} of {len(features)} images); look at that image, or for a diverged model"
        )


def write_features(path: Path, features: Features) -> None:
    """Write one split as an .npz from which `read_features` reads the same bits."""
    arrays = {"features": features.embeddings, "pids": features.pids, "camids": features.camids}
    if features.distractors is not None:
        arrays["distractors"] = features.distractors
    save_arrays(path, {name: array.cpu().numpy() for name, array in arrays.items()})
