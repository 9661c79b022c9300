"""Knobs of earlier versions, so that old files and commands keep their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# old knob, a switch -> for each value that can still be had, the knob and value that say the same; None: nothing to say
RENAMED: Mapping[str, Mapping[bool, tuple[str, str] | None]] = MappingProxyType(
    {
        "loss.normalize": {True: ("loss.space", "unit"), False: ("loss.space", "raw")},
        "loss.relative": {False: None},
    }
)


def rename(knob: str, value: object) -> tuple[str, object] | None:
    """Return the present name and value of a knob, or None for an old one that is no longer needed.

    Raises:
        ValueError: an old knob has a value that can no longer be had.
    """
    if knob not in RENAMED:
        return knob, value
    switch = {"true": True, "false": False}.get(str(value).lower())
    if switch not in RENAMED[knob]:
        raise ValueError(f"{knob} = {value}: this knob was removed; choose loss.space = raw, unit or neck")
    return RENAMED[knob][switch]  # type: ignore[index]
