"""Where the tensors of an encoder are in a file, and what else is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.model.positions import POSITIONS

CONTAINERS = {"state_dict", "model"}  # in which the tensors may be nested
DEPTH, SHOWN = 3, 8  # how deep to look into a file, and how many of its names to show
ONE_PART = "save the part that you want as a file of its own"


def may_lack(name: str) -> bool:
    """Return whether old files lack this tensor: BatchNorm's step counters, and the exponent of our GeM pooling."""
    return name.endswith("num_batches_tracked") or name == "avgpool.p"


@dataclass(frozen=True, eq=False)
class Place:
    """Where the tensors of an encoder may be in a file. hint: what to do if they do not fit."""

    containers: tuple[str, ...]
    """Names of the nested mappings that lead to `tensors`."""
    prefix: str
    tensors: Mapping[str, Tensor]
    fit: tuple[int, int] = (0, 0)
    """Number of the encoder's tensors that are here with the same name and shape, and with the same name."""
    hint: str = ""

    @property
    def name(self) -> str:
        return ": ".join([*self.containers, *([self.prefix.rstrip(".")] if self.prefix else [])])


def find_place(content: Mapping[Any, Any], own: Mapping[str, Tensor], path: Path) -> Place:
    """Return where most tensors of the encoder are: in the file, its "state_dict" or "model", and under a prefix.

    Raises ValueError if they are in several places equally well. MoCo's encoder_k, the moving average of encoder_q, is
    not counted.
    """
    places = sorted(_list_places(content, own), key=lambda place: place.fit, reverse=True)
    read = [place for place in places if set(place.containers) <= CONTAINERS]
    best = read[0] if read else Place((), "", {})
    needed = sum(not may_lack(name) for name in own)
    equal = [place for place in places if place.fit >= best.fit and place.fit[1] > needed / 2]
    queries = {place.prefix.replace("encoder_q.", "encoder_k.") for place in equal if "encoder_q." in place.prefix}
    equal = [place for place in equal if place.prefix not in queries]
    if len(equal) > 1 and any(place in read for place in equal):
        raise ValueError(
            f"model.weights = {path}: the encoder is in this file {len(equal)} times: under "
            f"{', '.join(sorted(place.name or 'no prefix' for place in equal))}; {ONE_PART}"
        )
    if equal and equal[0] not in read:
        names = ", ".join(sorted(place.name for place in equal))
        return replace(best, hint=f"the encoder is under {names}, which is not read; {ONE_PART}")
    return equal[0] if equal else best


def _list_places(
    content: Mapping[Any, Any], own: Mapping[str, Tensor], containers: tuple[str, ...] = ()
) -> Iterator[Place]:
    """Yield every place where a tensor has the name of one of the encoder's, in nested mappings, too."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    names, shapes = Counter[str](), Counter[str]()
    for key, value in tensors.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in own and not may_lack(name):
                prefix = key.removesuffix(name)
                names[prefix] += 1
                shapes[prefix] += value.shape == own[name].shape or name in POSITIONS
    for prefix, count in sorted(names.items()):
        yield Place(containers, prefix, tensors, (shapes[prefix], count))
    for key, value in content.items():
        if isinstance(value, Mapping) and len(containers) < DEPTH:
            yield from _list_places(value, own, (*containers, str(key)))


def list_top_names(content: Mapping[Any, Any]) -> str:
    """Return the first parts of the names in a file as text, in their order, and in brackets those one level below."""
    inner = {str(key): _top_names(value) for key, value in content.items() if isinstance(value, Mapping)}
    return _join([f"{name} ({_join(inner[name])})" if name in inner else name for name in _top_names(content)])


def _top_names(content: Mapping[Any, Any]) -> list[str]:
    return list(dict.fromkeys(str(key).split(".")[0] for key in content))


def list_rest(content: Mapping[Any, Any], place: Place, unused: Set[str]) -> str:
    """Return the parts of a file that were not loaded as text, with their number of tensors.

    unused: names in `place.tensors` under its prefix that the encoder did not take.
    """
    counts = Counter[str]()
    for container in place.containers:
        counts.update({str(key): 0 for key in content if key != container})
        content = content[container]
    prefix = place.prefix.split(".")[:-1]
    for key in place.tensors:
        if not key.startswith(place.prefix) or key in unused:
            parts = key.split(".")
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(parts, prefix, strict=False))))
            counts[".".join(parts[: same + 1])] += not may_lack(key)
    counts.update({str(key): 0 for key in content if key not in place.tensors})
    return _join([f"{name} ({count})" if count else name for name, count in counts.items()])


def _join(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
