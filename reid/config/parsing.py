"""Configurations are read from YAML and dotted flags, and written as YAML."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from reid.config.schema import Config, EvaluateConfig

set_parsing_settings(docstring_parse_attribute_docstrings=True)

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)


class _Parser(ArgumentParser):
    """jsonargparse, with the nearest known knob in the error for an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(message + self._suggestion(message), ex)
        raise AssertionError("unreachable: the parser exits")

    def _suggestion(self, message: str) -> str:
        flag = re.search(r"nrecognized arguments: --([\w.]+)", message)
        key = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        top = re.search(r"[Oo]ption '([\w.]+)' is not accepted", message)
        if not (flag or key or top):
            return ""
        unknown = flag[1] if flag else f"{key[1]}.{key[2]}" if key else top[1] if top else ""
        known = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)
        return f"\nThe nearest known knob is --{near[0]}; --help lists all." if near else ""


def make_parser(kind: type[AnyConfig]) -> ArgumentParser:
    """The parser of a program: --config FILE, --print_config, and a dotted flag for each knob."""
    parser = _Parser(description=kind.__doc__, usage="%(prog)s [--config FILE] [--<knob>=<value> ...]")
    parser.add_argument("--config", action="config", help="YAML file; flags after it override its values")
    parser.add_class_arguments(kind)
    return parser


def parse(kind: type[AnyConfig], args: Sequence[str] | None = None) -> AnyConfig:
    """The config of `args` (default: the command line) with defaults filled in.

    An unknown knob or a value of a wrong type ends the program with the knob's name and the nearest known one.
    """
    parser = make_parser(kind)
    words = sys.argv[1:] if args is None else args
    namespace = parser.instantiate(parser.parse_args(spell_out(words, kind) if kind is EvaluateConfig else words))
    return kind(**{f.name: namespace[f.name] for f in fields(kind)})


def normalize_flags(words: Sequence[str]) -> list[str]:
    """Write flags with underscores: `--batch-size=4` becomes `--batch_size=4`. Values and words after `--` stay."""
    end = words.index("--") if "--" in words else len(words)
    flags = [re.sub("^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in words[:end]]
    return [*flags, *words[end:]]


def spell_out(words: Sequence[str], kind: type[AnyConfig]) -> list[str]:
    """Flags as people type them, in the one form that the parser reads: `--data a b` is `--data=["a", "b"]`, a bare
    `--rerank` is `--rerank=true`, `--ranks=1,5` is `--ranks=["1", "5"]` (a path may have a comma, so lists of paths are
    not split there). Values in brackets and those of other flags stay as they are."""
    lists = {f"--{f.name}": str(f.type) for f in fields(kind) if str(f.type).startswith("list[")}
    switches = {f"--{f.name}" for f in fields(kind) if f.type == "bool"}
    spelled, rest = [], list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag not in switches and flag not in lists:
            spelled.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("--") and (flag in lists or not values):
            values.append(rest.pop(0))
        if flag in switches:
            spelled.append(f"{flag}={values[0] if values else 'true'}")
        else:
            bracketed = len(values) == 1 and values[0].startswith("[")
            if lists[flag] != "list[str]" and not bracketed:
                values = [part for value in values for part in value.split(",") if part]
            spelled.append(f"{flag}={values[0] if bracketed else json.dumps(values)}")
    return spelled


def load(path: Path) -> Config:
    """The config of a finished or interrupted run, from its config.yaml."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a training run?")
    return parse(Config, [f"--config={path}"])


def save(config: Config, path: Path) -> None:
    path.write_text(to_yaml(config))


def to_yaml(config: Config) -> str:
    """As `load` reads it."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def to_dict(config: Config | EvaluateConfig) -> dict[str, Any]:
    """Plain nested dictionary (tuples become lists), as written to config.yaml and sent to W&B."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
