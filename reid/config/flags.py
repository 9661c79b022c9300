"""Flags as people and other programs write them, in the one form that the parser reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from reid.config.renamed import RENAMED, rename
from reid.config.schema import EvaluateConfig

BOOLEANS = ("true", "false", "yes", "no", "on", "off", "0", "1")


def normalize_flags(words: Sequence[str]) -> list[str]:
    """Write flags with underscores: `--batch-size=4` becomes `--batch_size=4`. Values and words after `--` stay."""
    end = words.index("--") if "--" in words else len(words)
    flags = [re.sub("^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in words[:end]]
    return [*flags, *words[end:]]


def to_flags(knobs: Mapping[str, Any]) -> list[str]:
    """Return knobs by their full names as flags, `--loss.w1=0.1`; values that are no text as JSON."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value, default=os.fspath)}"
        for name, value in knobs.items()
    ]


def expand_flags(words: Sequence[str], kind: type) -> list[str]:
    """Write flags in the one form that the parser reads, `--knob=value`; lists as `--knob=["a", "b"]`."""
    types = {**dict.fromkeys(RENAMED, bool), **knob_types(kind)}
    rest: list[str] = normalize_flags(words)
    expanded: list[str] = []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        hint = types.get(flag.removeprefix("--"))
        values = [value] if equals else []
        if not word.startswith("-"):
            has_run = any(known.startswith("--run=") for known in (*expanded, *rest)) or "--run" in rest
            expanded.append(f"--run={word}" if kind is EvaluateConfig and not has_run else word)
        elif lists := [part for part in (hint, *get_args(hint)) if get_origin(part) in (list, tuple)]:
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            bracketed = len(values) == 1 and values[0].startswith("[")
            if lists[0] != list[str] and not bracketed:  # a path may have a comma
                values = [part for value in values for part in value.split(",") if part]
            # not a list, but null or the only folder
            may_be_one = values[:1] in (["null"], ["None"]) or (hint != lists[0] and str in get_args(hint))
            is_plain = len(values) == 1 and (bracketed or may_be_one)
            expanded.append(f"{flag}={values[0] if is_plain else json.dumps(values)}")
        elif hint is bool and not equals:
            expanded.append(f"{flag}={rest.pop(0) if rest and rest[0].lower() in BOOLEANS else 'true'}")
        elif (hint or flag == "--config") and not equals and rest and not rest[0].startswith("--"):
            expanded.append(f"{flag}={rest.pop(0)}")
        else:
            expanded.append(word)
    return [_spell_null(_rename_flag(word), types) for word in expanded]


def _rename_flag(word: str) -> str:
    flag, _, value = word.partition("=")
    if flag.removeprefix("--") not in RENAMED:
        return word
    return "--{}={}".format(*rename(flag.removeprefix("--"), value))


def _spell_null(word: str, types: Mapping[str, Any]) -> str:
    """Write null as YAML does, also where a W&B agent wrote it as Python does."""
    flag, _, value = word.partition("=")
    takes_null = type(None) in get_args(types.get(flag.removeprefix("--")))
    return f"{flag}=null" if takes_null and value == "None" else word


def knob_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of each knob by its name, `loss.w1` for one of a section."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        types |= knob_types(hint, f"{prefix}{name}.") if is_dataclass(hint) else {prefix + name: hint}  # type: ignore[arg-type]
    return types
