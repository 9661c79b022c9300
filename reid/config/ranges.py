"""Number types with a range, and the base of the dataclasses that check them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Range:
    """Values that a knob may have. text: completes "loss.margin = -1 ..." in the error."""

    contains: Callable[[float], bool]
    text: str


Size = Annotated[int, Range(lambda value: value >= 1, "must be at least 1")]
Count = Annotated[int, Range(lambda value: value >= 0, "must be a finite number, 0 or more")]
NonNegative = Annotated[float, Range(lambda value: 0 <= value < math.inf, "must be a finite number, 0 or more")]
Positive = Annotated[float, Range(lambda value: 0 < value < math.inf, "must be greater than 0, and finite")]
Fraction = Annotated[float, Range(lambda value: 0 <= value <= 1, "lies outside [0, 1]")]
Factor = Annotated[float, Range(lambda value: 0 < value <= 1, "must be greater than 0, and at most 1")]
Seed = Annotated[int, Range(lambda value: 0 <= value < 2**64, "must be at least 0 and less than 2^64")]
Weight = Annotated[NonNegative, "weight"]


@dataclass
class Section:
    """Base of the configuration dataclasses: a value outside its range is a ValueError that names the knob."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every knob against its range, then the rules between the knobs of this section."""
        for name, hint in _types(type(self)).items():  # type: ignore[arg-type]
            if getattr(self, name) is None and type(None) not in get_args(hint):
                raise ValueError(f"{self.knob(name)} = null: give it a value, or leave it out")
        for name, allowed in _ranges(type(self)).items():  # type: ignore[arg-type]
            for value in _numbers(getattr(self, name)):
                if not allowed.contains(value):
                    raise ValueError(f"{self.knob(name)} = {value} {allowed.text}")
        self.check()

    def check(self) -> None:
        """Raise ValueError for knobs of this section that do not go together."""

    def knob(self, name: str) -> str:
        """Return the name of a knob in errors: `loss.margin`, `name` at the top level, `--ranks` of an evaluation."""
        section = type(self).__name__.removesuffix("Config").lower()
        return {"": name, "evaluate": f"--{name}"}.get(section, f"{section}.{name}")


_types = cache(get_type_hints)


@cache
def _ranges(kind: type) -> dict[str, Range]:
    hints = get_type_hints(kind, include_extras=True)
    found = {name: [part for part in _parts(hint) if isinstance(part, Range)] for name, hint in hints.items()}
    return {name: ranges[0] for name, ranges in found.items() if ranges}


@cache
def weights_of(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of type `Weight`, in order."""
    return tuple(name for name, hint in get_type_hints(kind, include_extras=True).items() if hint == Weight)


def _parts(hint: Any) -> Iterator[Any]:
    """Yield what a type is made of: the Range inside `Positive | None` or `list[Count]`."""
    yield hint
    for part in (*get_args(hint), *getattr(hint, "__metadata__", ())):
        yield from _parts(part)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):  # not null, not auto
        yield value
