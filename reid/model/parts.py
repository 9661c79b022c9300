"""Where an encoder is in a file, and what else is in the file.

Names are those of `flatten`: "state_dict.module.conv1.weight" is the tensor "module.conv1.weight" in "state_dict". The
place of the tensor "conv1.weight" is then "state_dict.module".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reid.model.fit import Fit, is_derived, judge, present_name

DEPTH, SHOWN = 4, 8  # how deep to look into a file, and how many of its names to show


@dataclass(frozen=True)
class Place:
    """A part of a file that holds tensors of an encoder."""

    prefix: str
    """Before the encoder's names; empty, or ends with a dot."""
    tensors: Mapping[str, Tensor]
    """All tensors of this part, by the encoder's names."""
    fit: Fit

    @property
    def name(self) -> str:
        """As model.weights_key names it; "." is the top of the file."""
        return self.prefix.rstrip(".") or "."


def flatten(content: Mapping[Any, Any], prefix: str = "", depth: int = DEPTH) -> dict[str, Any]:
    """Return the values of a file and of the mappings in it by name."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value and depth:
            flat |= flatten(value, f"{prefix}{key}.", depth - 1)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def find_places(flat: Mapping[str, Any], own: Mapping[str, Tensor], key: str = "") -> list[Place]:
    """Return the parts of a file that hold tensors of an encoder, the one that fits best first.

    MoCo's encoder_k, the moving average of encoder_q, is left out beside it.

    Args:
        flat: the file.
        own: the encoder's tensors.
        key: only this part and those in it, e.g. "teacher"; "." = only the top of the file; empty = all parts.
    """
    under: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in flat.items():
        if isinstance(value, Tensor):
            for start in [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]:
                under[name[:start]][present_name(name[start:], own)] = value
    under = {prefix: tensors for prefix, tensors in under.items() if tensors.keys() & own.keys()}
    if key == ".":
        under = {prefix: tensors for prefix, tensors in under.items() if not prefix}
    elif key:
        under = {prefix: tensors for prefix, tensors in under.items() if prefix.startswith(f"{key.rstrip('.')}.")}
    averages = {prefix.replace("encoder_q.", "encoder_k.") for prefix in under if "encoder_q." in prefix}
    places = [Place(prefix, part, judge(own, part)) for prefix, part in under.items() if prefix not in averages]
    return sorted((place for place in places if place.fit.rank[1]), key=lambda place: place.fit.rank, reverse=True)


def list_top_names(content: Mapping[Any, Any]) -> str:
    """Return the first parts of the names in a file as text, in their order, and in brackets those one level below."""
    names: dict[str, str] = {}
    for key, value in content.items():
        inside = [str(name).split(".")[0] for name in value] if isinstance(value, Mapping) else []
        names[str(key).split(".")[0]] = f" ({join(list(dict.fromkeys(inside)))})" if inside else ""
    return join([name + inside for name, inside in names.items()])


def list_rest(flat: Mapping[str, Any], prefix: str, used: Set[str]) -> str:
    """Return what is in a file besides the names `used`, with the number of tensors of each part.

    A part is a first part of the names; under `prefix` also a part after it.
    """
    counts = Counter[str]()
    for key in (key for key in flat if key not in used and not is_derived(key)):
        ends = [*(place + 1 for place, letter in enumerate(key) if letter == "."), len(key)]
        group = next((key[:end] for end in ends if not prefix.startswith(key[:end])), key)
        counts[group.rstrip(".")] += isinstance(flat[key], Tensor)
    return join([f"{name} ({count})" if count else name for name, count in counts.items()])


def join(names: Sequence[str]) -> str:
    """Return the first names as text, and how many more there are."""
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
