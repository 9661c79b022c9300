"""Features of any system as files: read for an evaluation without a model, and written from ours in the same form.

A file is an .npz, or a folder of .npy files of the same names, which are mapped into memory rather than read:
    features (or embeddings)  (N, D) real numbers, not necessarily normalised
    pids                      (N,) integers, -1 = junk
    camids                    (N,) integers, optional; -1 or absent = unknown, and then no camera rule
    distractors               (N,) booleans, optional: images that match nobody, whatever their pid
    paths                     (N,) text, optional: image files, for the rank lists
Arrays of Python objects are refused: reading them could run code.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from reid.metrics.features import JUNK, UNKNOWN, Features
from reid.metrics.scores import squared_norms

KEYS = ("features", "embeddings", "pids", "camids", "distractors", "paths")
SHOWN_PX = 256  # longest side of a picture in a rank list


@dataclass(frozen=True)
class Foreign:
    """One split: its features, `paths` of its images as the file names them (None: absent), and where it came from."""

    features: Features
    paths: list[str] | None
    source: Path

    @property
    def knows_cameras(self) -> bool:
        return bool((self.features.camids != UNKNOWN).any())


def read_features(source: str | Path) -> Foreign:
    """The split in `source`. ValueError names the file and what is wrong: unreadable, incomplete, shapes, NaN."""
    path = Path(source)
    arrays = _read_arrays(path)
    names = [name for name in ("features", "embeddings") if name in arrays]
    if len(names) != 1 or "pids" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; it needs pids and either features or embeddings"
        )
    embeddings, pids = arrays[names[0]], arrays["pids"]
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise ValueError(f"{path}: {names[0]} are {embeddings.dtype} {embeddings.shape}; give numbers (images, dims)")
    if not len(embeddings) or not embeddings.shape[1]:
        raise ValueError(f"{path}: {names[0]} have shape {embeddings.shape}; give at least one image and dimension")
    embeddings = embeddings.astype(embeddings.dtype.newbyteorder("="), copy=False)  # torch knows no other order
    camids = arrays.get("camids", np.full(len(pids), UNKNOWN))
    distractors, paths = arrays.get("distractors"), arrays.get("paths")
    for name, array in (("pids", pids), ("camids", camids), ("distractors", distractors), ("paths", paths)):
        if array is not None:
            _check_column(path, name, array, len(embeddings))
    try:
        features = Features(
            torch.as_tensor(embeddings), torch.tensor(pids.astype(np.int64)), torch.tensor(camids.astype(np.int64))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if distractors is not None:
        features.distractors = torch.from_numpy(distractors.astype(bool))
    listed = None if paths is None else [str(name) for name in paths]
    check_finite(features, str(path), lambda i: f"row {i}" + (f", {listed[i]}" if listed else ""))
    return Foreign(features, listed, path)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            found = [path / f"{name}.npy" for name in KEYS if (path / f"{name}.npy").is_file()]
            # Copy on write: torch wants writable memory, and nothing is ever written to the file.
            return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in found}
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("one array alone; give an .npz, or a folder of .npy files")
        with file:
            return {name: file[name] for name in KEYS if name in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file or folder") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of features: {str(error).splitlines()[0]}") from error


def _check_column(path: Path, name: str, array: np.ndarray, length: int) -> None:
    if array.shape != (length,):
        raise ValueError(f"{path}: {name} have shape {array.shape}; {length} features need ({length},)")
    kinds = {"paths": "US", "distractors": "biu"}.get(name, "iu")
    if array.dtype.kind not in kinds:
        wanted = {"paths": "text", "distractors": "booleans"}.get(name, "integers")
        raise ValueError(f"{path}: {name} are {array.dtype}; give {wanted}")


def check_finite(features: Features, where: str, name_of: Callable[[int], str]) -> None:
    """ValueError that names the first image, by name_of(row), whose features or their square are not finite. Junk may
    hold anything."""
    bad = (~squared_norms(features.embeddings).isfinite() & (features.pids != JUNK)).nonzero().squeeze(1)
    if len(bad):
        kind = "too large for float32" if bool(features.embeddings[bad[0]].isfinite().all()) else "not finite"
        raise ValueError(
            f"{where}: the features of {name_of(int(bad[0]))} are {kind} ({len(bad)} of {len(features)} images); "
            "look at that image, or for a diverged model"
        )


def write_features(path: Path, features: Features) -> None:
    """One split as an .npz that `read_features` reads back to the last digit."""
    arrays = {"features": features.embeddings, "pids": features.pids, "camids": features.camids}
    if features.distractors is not None:
        arrays["distractors"] = features.distractors
    with open(path, "wb") as file:
        np.savez(file, **{name: array.cpu().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]


def read_pictures(split: Foreign, rows: Sequence[int], folder: Path, max_pixels: int) -> list[np.ndarray | None]:
    """The images (H, W, 3) uint8 of `rows`, at most SHOWN_PX long; None for a file that is absent or no image.

    Paths count from `folder`.
    """
    return [None if split.paths is None else _read_picture(folder / split.paths[row], max_pixels) for row in rows]


def _read_picture(path: Path, max_pixels: int) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                return None
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # Pillow raises many kinds; each means that there is nothing to show, and the caller counts it
        return None
    upright.thumbnail((SHOWN_PX, SHOWN_PX))
    return np.asarray(upright)
