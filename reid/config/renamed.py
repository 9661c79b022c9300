"""Knobs of earlier versions, so that the config.yaml of an earlier run means what it meant."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# old switch -> for each value that is still supported, the new knob and value
RENAMED: Mapping[str, Mapping[bool, tuple[str, str]]] = MappingProxyType(
    {
        "loss.normalize": {True: ("loss.space", "unit"), False: ("loss.space", "raw")},
        "loss.relative": {False: ("loss.triplet_space", "raw")},  # at its time triplets were always raw
    }
)


def rename(knob: str, value: object) -> tuple[str, object]:
    """Return the current name and value of a knob.

    Raises:
        ValueError: the value of an old knob is no longer supported.
    """
    if knob not in RENAMED:
        return knob, value
    switch = {"true": True, "false": False}.get(str(value).lower())
    if switch not in RENAMED[knob]:
        raise ValueError(f"{knob} = {value}: this is no longer supported; leave it out, and see loss.space in --help")
    return RENAMED[knob][switch]  # type: ignore[index]
