"""Where the tensors of an encoder are in a file, and what else is in it.

Names are those of `flatten`: "state_dict: module.conv1.weight" is the tensor "module.conv1.weight" in "state_dict".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.model.positions import POSITIONS

CONTAINERS = {"state_dict", "model"}  # in which the tensors may be nested
DEPTH, SHOWN = 3, 8  # how deep to look into a file, and how many of its names to show
SEPARATOR = re.compile(r": |\.")
ONE_PART = "save the part that you want as a file of its own"


def may_lack(name: str) -> bool:
    """Return whether old files lack this tensor: BatchNorm's step counters, and the exponent of our GeM pooling."""
    return name.endswith("num_batches_tracked") or name == "avgpool.p"


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a file and of the mappings in it by name."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value and prefix.count(": ") < DEPTH:
            flat |= flatten(value, f"{prefix}{key}: ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def find_prefix(flat: Mapping[str, Any], own: Mapping[str, Tensor], path: Path) -> tuple[str, str]:
    """Return the prefix under which most tensors of the encoder are, and what to do if they do not fit, or "".

    Only CONTAINERS are read. MoCo's encoder_k, the moving average of encoder_q, is left out.

    Raises:
        ValueError: the encoder is in several places equally well.
    """
    fits = _count_fits(flat, own)
    read = {prefix for prefix in fits if set(prefix.split(": ")[:-1]) <= CONTAINERS}
    best = max(sorted(read), key=lambda prefix: fits[prefix], default="")
    half = sum(not may_lack(name) for name in own) / 2
    equal = sorted(prefix for prefix, fit in fits.items() if fit >= fits.get(best, (0, 0)) and fit[1] > half)
    names = ", ".join(name_prefix(prefix) or "no prefix" for prefix in equal)
    if len(equal) > 1 and read & set(equal):
        raise ValueError(
            f"model.weights = {path}: the encoder is in this file {len(equal)} times: under {names}; {ONE_PART}"
        )
    unread = equal and not read & set(equal)
    return best, f"the encoder is under {names}, which is not read; {ONE_PART}" if unread else ""


def _count_fits(flat: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return, by prefix, the number of the encoder's tensors with the same name and shape, and with the same name."""
    names, shapes = Counter[str](), Counter[str]()
    for key, value in flat.items():
        for start in [0, *(found.end() for found in SEPARATOR.finditer(key))]:
            name, prefix = key[start:], key[:start]
            if isinstance(value, Tensor) and name in own and not may_lack(name):
                names[prefix] += 1
                shapes[prefix] += value.shape == own[name].shape or name in POSITIONS
    averages = {prefix.replace("encoder_q.", "encoder_k.") for prefix in names if "encoder_q." in prefix}
    return {prefix: (shapes[prefix], names[prefix]) for prefix in names if prefix not in averages}


def name_prefix(prefix: str) -> str:
    return prefix.rstrip(".: ")


def list_top_names(content: Mapping[Any, Any]) -> str:
    """Return the first parts of the names in a file as text, in their order, and in brackets those one level below."""
    names: dict[str, str] = {}
    for key, value in content.items():
        inside = [str(name).split(".")[0] for name in value] if isinstance(value, Mapping) else []
        names[str(key).split(".")[0]] = f" ({_join(list(dict.fromkeys(inside)))})" if inside else ""
    return _join([name + inside for name, inside in names.items()])


def list_rest(flat: Mapping[str, Any], prefix: str, used: Set[str]) -> str:
    """Return what is in a file besides the names `used`, with the number of tensors of each part.

    A part is a first part of the names; under `prefix` also a part after it.
    """
    counts = Counter[str]()
    for key in (key for key in flat if key not in used):
        ends = [*(found.end() for found in SEPARATOR.finditer(key)), len(key)]
        group = next((key[:end] for end in ends if not prefix.startswith(key[:end])), key)
        counts[name_prefix(group)] += isinstance(flat[key], Tensor) and not may_lack(key)
    return _join([f"{name} ({count})" if count else name for name, count in counts.items()])


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
