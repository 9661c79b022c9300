"""Configurations are read from YAML and dotted flags, and written as YAML."""

from __future__ import annotations

import difflib
import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from reid.config.schema import Config, EvaluateConfig

set_parsing_settings(docstring_parse_attribute_docstrings=True)

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)
BASE = re.compile(r"""^base:[ \t]*(?:["'](.*?)["']|(\S+)).*$""", re.MULTILINE)  # a file that this one extends


BOOLEANS = ("true", "false", "yes", "no", "on", "off", "0", "1")


class _Parser(ArgumentParser):
    """jsonargparse; its errors name the configuration file, and the nearest known knob for an unknown one."""

    file = ""  # that is being read

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error((f"{self.file}: " if self.file else "") + message + self._suggestion(message), ex)
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


def make_parser(kind: type[AnyConfig]) -> _Parser:
    """Return a program's parser: --config FILE, --print_config, and a dotted flag for each knob."""
    parser = _Parser(description=kind.__doc__, usage="%(prog)s [--config FILE] [--<knob>=<value> ...]")
    parser.add_argument("--config", action="config", help="YAML file; flags after it override its values")
    parser.add_class_arguments(kind)
    return parser


def parse(kind: type[AnyConfig], args: Sequence[str] | None = None) -> AnyConfig:
    """Return the configuration that command-line arguments describe, with defaults filled in.

    Flags may have `-` for `_`, a boolean needs no value, and a list may be `--ranks 1 5`, `--ranks=1,5` or
    `--ranks=[1,5]`. `evaluate.py` takes the run as its one positional argument.

    Args:
        kind: Config or EvaluateConfig.
        args: default: the command line.

    Raises:
        SystemExit: with status 2 and a message on stderr, if a knob is unknown or its value has a wrong type.
        ValueError: if a value is out of its range.
    """
    return _parse(make_parser(kind), kind, sys.argv[1:] if args is None else args)


def _parse(parser: _Parser, kind: type[AnyConfig], args: Sequence[str]) -> AnyConfig:
    flags = expand_flags(args, kind)
    words = [part for flag in flags for part in expand_config(parser, flag)]
    namespace = parser.parse_args(words)
    try:
        namespace = parser.instantiate(namespace)
        return kind(**{f.name: namespace[f.name] for f in fields(kind)})
    except TypeError as error:
        raise ValueError("a section of the configuration has a value in place of its knobs, like `loss: 3`") from error
    except ValueError as error:
        files = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
        knob, is_knob, _ = str(error).removeprefix("--").partition(" = ")
        section = knob.partition(".")[0]
        if not files or not is_knob or any(flag.startswith((f"--{section}.", f"--{section}=")) for flag in flags):
            raise  # not about a knob, or a flag may be the cause
        raise ValueError(f"{files[-1]}: {error}") from error


def expand_config(parser: _Parser, word: str) -> list[str]:
    """Replace `--config=FILE` by the contents of the file, after those of the file that its `base` names."""
    flag, _, name = word.partition("=")
    if flag != "--config" or not Path(name).is_file():
        return [word]
    words, files, extended = [], [Path(name)], Path(name)
    while base := re.search(BASE, extended.read_text()):
        extended = extended.parent / (base[1] or base[2])
        if not extended.is_file() or extended in files:
            reason = "it extends itself" if extended in files else "no such file"
            parser.error(f"{files[0]}: base: {base[1] or base[2]}: {reason}")
        files.insert(0, extended)
    for file in files:
        text = re.sub(BASE, "", file.read_text())
        parser.file = str(file)
        try:
            is_empty = yaml.safe_load(text) is None
        except yaml.YAMLError as error:
            parser.error(f"not YAML: {' '.join(str(error).split())}")
        if not is_empty:
            parser.parse_string(text)
            words.append(f"--config={text}")
    parser.file = ""
    return words


def normalize_flags(words: Sequence[str]) -> list[str]:
    """Write flags with underscores: `--batch-size=4` becomes `--batch_size=4`. Values and words after `--` stay."""
    end = words.index("--") if "--" in words else len(words)
    flags = [re.sub("^--[^=]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in words[:end]]
    return [*flags, *words[end:]]


def expand_flags(words: Sequence[str], kind: type[AnyConfig]) -> list[str]:
    """Write flags in the one form that the parser reads, `--knob=value`; lists as `--knob=["a", "b"]`."""
    types = dict(_types(kind))
    rest: list[str] = normalize_flags(words)
    expanded: list[str] = []
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        hint = types.get(flag)
        values = [value] if equals else []
        if not word.startswith("-"):
            has_run = any(known.startswith("--run=") for known in (*expanded, *rest)) or "--run" in rest
            expanded.append(f"--run={word}" if kind is EvaluateConfig and not has_run else word)
        elif get_origin(hint) in (list, tuple):
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            bracketed = len(values) == 1 and values[0].startswith("[")
            if hint != list[str] and not bracketed:  # a path may have a comma
                values = [part for value in values for part in value.split(",") if part]
            expanded.append(f"{flag}={values[0] if bracketed else json.dumps(values)}")
        elif hint is bool and not equals:
            expanded.append(f"{flag}={rest.pop(0) if rest and rest[0].lower() in BOOLEANS else 'true'}")
        elif (hint or flag == "--config") and not equals and rest and not rest[0].startswith("--"):
            expanded.append(f"{flag}={rest.pop(0)}")
        else:
            expanded.append(word)
    return expanded


def _types(kind: type, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Yield each knob's flag and type, those of sections included."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _types(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, hint


def load(path: Path) -> Config:
    """Return the configuration in a run's config.yaml. Raises ValueError, which names the file, if it is not valid."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a training run?")
    parser = make_parser(Config)
    parser.exit_on_error = False
    try:
        return _parse(parser, Config, [f"--config={path}"])
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    finally:
        parser.exit_on_error = True


def save(config: Config, path: Path) -> None:
    path.write_text(to_yaml(config))


def to_yaml(config: Config) -> str:
    """Return YAML that `load` reads."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False)
    return text


def to_dict(config: Config | EvaluateConfig) -> dict[str, Any]:
    """Return a plain nested dictionary (tuples become lists), as written to config.yaml and sent to W&B."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
