"""Read a file of tensors that any program may have written. No code in it runs; a wrong file is described."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reid.model.saved import MODEL, check, is_checkpoint

# What a file begins with, in lower case and without white space, and what it then is.
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, without the content; run `git lfs pull` where it is from",
    b"<!doctype": "a web page (HTML), not the file that it links to; download it again",
    b"<html": "a web page (HTML), not the file that it links to; download it again",
    b"<?xml": "an XML document, perhaps the error of a server; download it again",
    b"\x1f\x8b": "packed by gzip; unpack it first",
    b"\x93numpy": "an array of numpy, not tensors with names",
}


def read_file(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    """Return the content and the header of a .safetensors file, or the content of a file of torch.save and no header.

    The model.safetensors of a checkpoint is checked by its hash. Values may be anything, tensors or not.

    Raises:
        ValueError: there is no such file, it is damaged or something else, or code would be needed to read it.
    """
    if not path.is_file():
        what = "a folder; give a file in it" if path.is_dir() else "no such file; give imagenet, none or a local file"
        raise ValueError(f"model.weights = {path}: {what}")
    if path.name == MODEL and is_checkpoint(path.parent):
        check(path.parent, [MODEL])
    try:
        if path.suffix == ".safetensors":
            return load_file(path), read_header(path)
        with torch.serialization.safe_globals(_list_harmless()), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types
        raise ValueError(f"model.weights = {path}: not a file of tensors: {_describe(path, error)}") from error
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise ValueError(f"model.weights = {path}: not a file of tensors: it holds a {kind}, not tensors by name")
    return content, {}


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
    types = [value for value in vars(np.dtypes).values() if isinstance(value, type) and issubclass(value, np.dtype)]
    return [*named, *types, np.dtype, np.ndarray, argparse.Namespace]


def _describe(path: Path, error: Exception) -> str:
    """Say what a file is that could not be read, and what to do."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty (0 bytes); download or copy it again"
    for beginning, what in BEGINNINGS.items():
        if head.lstrip().lower().startswith(beginning):
            return f"it is {what}"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"it is text, and begins with {head[:40].decode()!r}"
    if path.suffix != ".safetensors" and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
        return (
            f"it holds a {found[1]}, which only code can rebuild, and no code of a file is run; where you trust the "
            "file, save its tensors alone: torch.save(model.state_dict(), ...)"
        )
    if head[8:9] == b"{":
        return _describe_safetensors(path, head, size)
    if head.startswith(b"PK"):
        return _describe_archive(path, size)
    what = "it was written by torch.save; name it .pth" if path.suffix == ".safetensors" and head[0] == 0x80 else ""
    return what or f"its {size:,} bytes are damaged, cut off or of another kind; download or copy it again"


def _describe_safetensors(path: Path, head: bytes, size: int) -> str:
    if path.suffix != ".safetensors":
        return "it is a file of safetensors; name it .safetensors"
    header = int.from_bytes(head[:8], "little")
    with open(path, "rb") as file:
        text = file.read(8 + min(header, size))[8:].decode(errors="replace")
    described = [8 + header + int(end) for end in re.findall(r'"data_offsets":\s*\[\d+,\s*(\d+)\]', text)]
    if described and max(described) > size:
        return f"it is cut off: {size:,} of {max(described):,} bytes are there; download or copy it again"
    return f"its header is damaged ({size:,} bytes); download or copy it again"


def _describe_archive(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"it is cut off or damaged ({size:,} bytes); download or copy it again"
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in last:
        return (
            "it is a program of TorchScript; save its tensors alone: torch.save(torch.jit.load(...).state_dict(), ...)"
        )
    if "data.pkl" not in last:
        return f"it is a zip archive of {', '.join(names[:3]) or 'nothing'}, not of torch.save; unpack it"
    if path.suffix == ".safetensors":
        return "it was written by torch.save; name it .pth"
    return f"it is damaged ({size:,} bytes); download or copy it again"
