"""Knobs of earlier versions, so that old files and commands keep their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# old knob, a switch: for each of its values the flag that now says the same; None if it says nothing
RENAMED: Mapping[str, Mapping[bool, tuple[str, str]]] = MappingProxyType(
    {"loss.normalize": {True: ("loss.space", "unit"), False: ("loss.space", "raw")}}
)


def rename(knob: str, value: object) -> tuple[str, object]:
    """Return the present name and value of a knob. Raises ValueError if an old one has no such value."""
    if knob not in RENAMED:
        return knob, value
    switch = {"true": True, "false": False}.get(str(value).lower())
    if switch is None:
        raise ValueError(f"{knob} = {value}: give true or false, or better {RENAMED[knob][True][0]}")
    return RENAMED[knob][switch]
