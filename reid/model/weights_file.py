"""Read a file of tensors that any program may have written. No code in it runs; a wrong file is described."""

from __future__ import annotations

import argparse
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reid.model.hub import is_published
from reid.model.saved import CHECKPOINTS, MODEL, check, find_undamaged, is_checkpoint

# What a file begins with, in lower case and without white space, and what it then is.
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, without the content; run `git lfs pull` where it is from",
    b"<!doctype": "a web page (HTML), not the file that it links to; download it again",
    b"<html": "a web page (HTML), not the file that it links to; download it again",
    b"<?xml": "an XML document, perhaps the error of a server; download it again",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"\x93numpy": "an array of numpy, not tensors with names",
}
# Packages whose objects trainers save beside the tensors: settings, callbacks, paths.
BOOKKEEPING = {
    "addict", "easydict", "fvcore", "lightning", "lightning_fabric", "lightning_utilities", "ml_collections", "mmcv",
    "mmengine", "munch", "omegaconf", "pathlib", "pytorch_lightning", "typing", "yacs",
}  # fmt: skip
UNKNOWN = re.compile(r"GLOBAL ([\w.]+)")  # in torch's error


def locate(path: Path) -> Path:
    """Return the file that `model.weights` means: itself, or the weights in the folder of a run or of a model.

    Of a run they are those of its newest undamaged checkpoint. Raises ValueError if there are none.
    """
    if not path.is_dir():
        return path
    if is_checkpoint(path) or is_published(path):
        return path / MODEL
    newest, _ = find_undamaged(path / CHECKPOINTS)
    if newest is None:
        raise ValueError(
            f"model.weights = {path}: a folder without {CHECKPOINTS}/; give a run's folder, or a file in it"
        )
    return newest / MODEL


def read_file(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Return the content and the header of a .safetensors file, or the content of a file of torch.save and no header.

    The model.safetensors of a checkpoint is checked by its hash. Values may be anything, tensors or not.

    Raises:
        ValueError: there is no such file, it is damaged or something else, or code would be needed to read it.
    """
    if not path.is_file():
        fix = "give imagenet, none, a local file or the folder of a run"
        raise ValueError(f"model.weights = {path}: no such file; {fix}")
    if path.name == MODEL and is_checkpoint(path.parent):
        check(path.parent, [MODEL])
    try:
        if path.suffix == ".safetensors":
            return load_file(path), read_header(path)
        content = _load_plain(path)
    except Exception as error:  # torch and safetensors raise many types
        raise ValueError(f"model.weights = {path}: not a file of tensors: {_describe(path, error)}") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"model.weights = {path}: not a file of tensors: it holds a {kind}, not tensors by name")
    return content, {}


def _load_plain(path: Path) -> Any:
    """Return the content of a file of torch.save. No code in it runs.

    torch reads tensors and plain values only, and names the first other class; if it is one of BOOKKEEPING, the file is
    read again with `Ignored` in its place.
    """
    harmless = _list_harmless()
    while True:
        try:
            with torch.serialization.safe_globals(harmless), warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's own type is pickle's
            found = UNKNOWN.search(str(error))
            unknown = (Ignored, found[1] if found else "")
            if found is None or unknown in harmless or found[1].split(".")[0] not in BOOKKEEPING:
                raise
            harmless = [*harmless, unknown]


class Ignored:
    """Stands for a class of another program: makes an empty mapping of anything."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # one that torch fills
        return OrderedDict()


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


@cache
def _list_harmless() -> list[Any]:
    """Return what may be rebuilt besides tensors: numbers and arrays of numpy, options of a command line.

    None of it can run code of the file. numpy had the module _core under the name core before version 2.
    """
    functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(function, f"{module}.{function.__name__}") for function in functions for module in modules]
    plain = [(Ignored, f"builtins.{name}") for name in ("bool", "dict", "float", "int", "list", "str", "tuple")]
    plain.append((Ignored, "collections.defaultdict"))
    types = [value for value in vars(np.dtypes).values() if isinstance(value, type) and issubclass(value, np.dtype)]
    return [*named, *plain, *types, np.dtype, np.ndarray, argparse.Namespace]


def _describe(path: Path, error: Exception) -> str:
    """Return what a file is that could not be read, and what to do."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty (0 bytes); download or copy it again"
    for beginning, what in BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning):
            return f"it is {what}"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"it is text, and begins with {head[:40].decode()!r}"
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors and head[8:9] != b"{" and head.startswith((b"PK", b"\x80")):
        return "it was written by torch.save; name it .pth"
    if not is_safetensors and head[8:9] == b"{":
        return "it is a file of safetensors; name it .safetensors"
    if not is_safetensors and (found := re.search(rf"{UNKNOWN.pattern}|TorchScript", str(error))):
        return (
            f"it holds a {found[1] or 'program of TorchScript'}, which only code can rebuild, and no code of a file is "
            "run; if you trust the file, save only its tensors: torch.save(model.state_dict(), ...)"
        )
    size = path.stat().st_size
    return f"its {size:,} bytes are damaged, cut off or of another kind; download or copy it again"
