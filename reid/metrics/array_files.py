"""Files of arrays: .npz, and folders of .npy files that are mapped into memory. Reading one cannot run code."""

import difflib
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from reid.files import open_regular_file, write_atomically


def save_arrays(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write an .npz, or leave the old file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for `allow_pickle`
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, names: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz by name: those of `names` that it has, or all without `names`.

    Raises ValueError, with the file and the array, if one cannot be read, or if another array is nearly named as one of
    `names` that is missing. Arrays of Python objects are refused, because reading them could run code.
    """
    arrays: dict[str, np.ndarray] = {}
    reading = ""
    try:
        with open_regular_file(path) as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("a single array; give an .npz, or a folder of .npy files")
            opened.seek(-22, os.SEEK_END)  # zip's last record, which zipfile does not compare with what it found
            if int.from_bytes(opened.read()[10:12], "little") != len(file.files):
                raise ValueError("its list of arrays is damaged")
            for name in file.files:
                if not names or name in names:
                    reading = f"{name}: "
                    arrays[name] = file[name]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file or folder") from error
    except Exception as error:  # NumPy and zipfile raise a dozen types for damaged bytes; each means an unusable file
        raise ValueError(f"{path}: {reading}not a readable .npz: {_reason(error)}") from error
    _check_names(path, file.files, names)
    return arrays


def map_arrays(folder: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Map <name>.npy of a folder into memory for those of `names` that it has. Raises ValueError as `load_arrays`."""
    arrays: dict[str, np.ndarray] = {}
    found = sorted(path.stem for path in folder.glob("*.npy"))
    for name in found:
        if name in names:
            path = folder / f"{name}.npy"
            try:
                open_regular_file(path).close()  # a FIFO would block forever
                # Copy on write: torch requires writable memory, and nothing is ever written to the file.
                arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
            except Exception as error:  # as above
                raise ValueError(f"{path}: not a readable .npy: {_reason(error)}") from error
    _check_names(folder, found, names)
    return arrays


def _check_names(path: Path, found: Collection[str], names: Collection[str]) -> None:
    for name in found:
        missing = set(names) - set(found)
        if name not in names and (near := difflib.get_close_matches(name.lower(), missing, n=1, cutoff=0.7)):
            raise ValueError(f"{path}: {name} is not read; rename it if it holds {near[0]}, or leave it out")


def _reason(error: Exception) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "it holds Python objects, which only code could rebuild; give numbers"
    return (str(error) or type(error).__name__).splitlines()[0]
