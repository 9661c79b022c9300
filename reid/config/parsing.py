"""Configurations are read from YAML and dotted flags, and written as YAML."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentParser, set_parsing_settings

from reid.config.flags import expand_flags, knob_types
from reid.config.renamed import rename
from reid.config.schema import Config, EvaluateConfig
from reid.config.shipped import find_config
from reid.config.yaml_file import read_yaml, to_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)

AnyConfig = TypeVar("AnyConfig", Config, EvaluateConfig)
NEAR = 0.6  # a name is suggested for an unknown one if at least this share of their letters is equal
LONGEST = 60  # letters of a value in an error


class _Parser(ArgumentParser):
    """jsonargparse, with errors that name the configuration file, the knob and what it may be."""

    file = ""  # that is being read
    types: Mapping[str, Any] = MappingProxyType({})  # of each knob by its name

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(((f"{self.file}: " if self.file else "") + self._explain(message)).split())
        if self.exit_on_error:
            self.exit(2, f"error: {text}\n")
        super().error(text, ex)
        raise AssertionError("unreachable: the parser exits")

    def _explain(self, message: str) -> str:
        if flag := re.search(r"nrecognized arguments: --([\w.-]+)", message):
            suggestion = suggest_knob(flag[1], self.types)
            return message if suggestion in message else f"{message}. {suggestion}"
        wrong = re.match(r"""Parser key ["']([\w.]+)["']:\s*(.*)""", message, re.DOTALL)
        name = wrong[1] if wrong else ""
        if wrong and (missing := re.match(r"File does not exist: '(.*)'", wrong[2])):
            return f"--{name} {missing[1]}: no such file; `reid configs` lists those of the product"
        if inside := [knob for knob in self.types if name and knob.startswith(f"{name}.")]:
            return f"{name} is a section; give one of its knobs, as --{inside[0]}"
        if not wrong or name not in self.types:
            return " ".join(message.split())
        given = re.search(r"(?:Got|Given) value: (.*)", wrong[2], re.DOTALL)
        return f"{name} = {_shorten(given[1] if given else '')}: give {_describe_type(self.types[name])}"


def suggest_knob(unknown: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest of the known knobs, if one is near, by its full or its last name."""

    def likeness(name: str) -> tuple[float, float]:
        pairs = (unknown, name), (unknown.rpartition(".")[2], name.rpartition(".")[2])
        full, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(full, last), full

    nearest = max(known, key=likeness)
    near = likeness(nearest)[0] >= NEAR
    return f"The nearest known knob is --{nearest}; --help lists all." if near else "--help lists all knobs."


def _shorten(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _describe_type(hint: Any) -> str:
    """Say in an error what a knob may be."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, parts)) if len(parts) > 1 else str(parts[0])
    if get_origin(hint) is list:
        return f"a list, each {_describe_type(parts[0])}"
    if get_origin(hint) is tuple:
        return f"a list of {len(parts)}, each {_describe_type(parts[0])}"
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join("null" if part is type(None) else _describe_type(part) for part in parts)
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")


def make_parser(kind: type[AnyConfig], exit_on_error: bool = True) -> _Parser:
    """Return a program's parser: --config FILE, --print_config, and a dotted flag for each knob."""
    usage = "%(prog)s [--config FILE] [--<knob>=<value> ...]"
    parser = _Parser(description=kind.__doc__, usage=usage, exit_on_error=exit_on_error, allow_abbrev=False)
    parser.types = knob_types(kind)
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


def read_flags(flags: Sequence[str]) -> Config:
    """Return the configuration of a training that flags describe, as those of `reid train`.

        config = read_flags(["--config=reid:quickstart", "--name=mine", "--optim.epochs=5"])

    Raises:
        ValueError: a knob is unknown, or its value is wrong.
    """
    try:
        return _parse(make_parser(Config, exit_on_error=False), Config, flags)
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _parse(parser: _Parser, kind: type[AnyConfig], args: Sequence[str]) -> AnyConfig:
    flags = expand_flags(args, kind)
    words = [part for flag in flags for part in expand_config(parser, kind, flag)]
    try:
        namespace = parser.parse_args(words)
    except (LookupError, AttributeError, RecursionError, OSError) as error:  # of PyYAML and of long names of files
        raise ValueError(f"a flag has a value that cannot be read: {str(error)[:LONGEST] or error!r}") from error
    try:
        namespace = parser.instantiate(namespace)
        return kind(**{f.name: namespace[f.name] for f in fields(kind)})
    except ValueError as error:
        files = [flag.removeprefix("--config=") for flag in flags if flag.startswith("--config=")]
        knob, is_knob, _ = str(error).removeprefix("--").partition(" = ")
        section = knob.partition(".")[0]
        if not files or not is_knob or any(flag.startswith((f"--{section}.", f"--{section}=")) for flag in flags):
            raise  # not about a knob, or a flag may be the cause
        raise ValueError(f"{files[-1]}: {error}") from error


def change(config: AnyConfig, flags: Sequence[str]) -> AnyConfig:
    """Return a configuration with other values of some knobs, as `parse` does with more flags, without its delay.

    Raises:
        ValueError: names the knob, if it is unknown or its value has a wrong type or is out of its range.
    """
    sections: dict[str, dict[str, Any]] = {}
    for flag in expand_flags(flags, type(config)):
        name = flag.removeprefix("--").partition("=")[0]
        try:
            value = _knob_parser(type(config), name).parse_args([flag])[name]  # type: ignore[arg-type]
        except ArgumentError as error:
            raise ValueError(str(error)) from error
        section, _, knob = name.rpartition(".")
        sections.setdefault(section, {})[knob] = value
    top = sections.pop("", {})
    return replace(config, **top, **{name: replace(getattr(config, name), **knobs) for name, knobs in sections.items()})


@cache
def _knob_parser(kind: type, name: str) -> _Parser:
    """Return a parser of one knob's flag only."""
    types = knob_types(kind)
    parser = _Parser(exit_on_error=False, allow_abbrev=False)
    parser.types = types
    if name not in types:
        raise ValueError(f"unknown knob {name!r}. {suggest_knob(name, types)}")
    parser.add_argument(f"--{name}", type=types[name])
    return parser


def expand_config(parser: _Parser, kind: type, word: str) -> list[str]:
    """Replace `--config=FILE` by the contents of the file, after those of the file that its `base` names."""
    flag, _, name = word.partition("=")
    if flag != "--config":
        return [word]
    name = find_config(name)
    if not os.path.isfile(name):  # False also for a name that no file can have
        return [word]
    words = []
    try:
        for file, knobs in _read_files(kind, Path(name)):
            parser.file, text = str(file), to_text(knobs)
            if knobs:
                parser.parse_string(text)
                words.append(f"--config={text}")
    except ValueError as error:
        parser.file = ""  # which the error names
        parser.error(str(error))
    finally:
        parser.file = ""
    return words


def _read_files(kind: type, file: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return a file and its knobs, {"loss.w1": 0.1}, after those that it extends. Raises ValueError, with the file."""
    found: list[tuple[Path, dict[str, Any]]] = []
    extended: Path | None = file
    while extended:
        knobs = _list_knobs(kind, extended, read_yaml(extended))
        base = knobs.pop("base", None)
        found.insert(0, (extended, knobs))
        if base is None:
            return found
        extended = extended.parent / str(base)
        if not extended.is_file() or extended.resolve() in (path.resolve() for path, _ in found):
            reason = "it extends itself" if extended.is_file() else "no such file"
            raise ValueError(f"{file}: base: {base}: {reason}")
    return found


def _list_knobs(kind: type, file: Path, document: Any) -> dict[str, Any]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"{file}: it does not hold knobs and sections, as `seed: 0`")
    knobs: dict[str, Any] = {}
    known = {"base", *knob_types(kind)}
    sections = {name.partition(".")[0] for name in known if "." in name}
    for name, content in document.items():
        if name in sections and not isinstance(content, dict):
            raise ValueError(
                f"{file}: {name} = {_shorten(content)}: give knobs of this section, indented below it, or leave it out"
            )
        inside = {f"{name}.{knob}": entry for knob, entry in content.items()} if name in sections else {name: content}
        for written, entry in inside.items():
            try:
                knob, value = rename(written, entry)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            if knob not in known:
                raise ValueError(f"{file}: unknown knob {knob!r}. {suggest_knob(knob, knob_types(kind))}")
            if knob in knobs:
                raise ValueError(f"{file}: {knob} is there twice; keep one")
            knobs[knob] = value
    return knobs


def load(path: Path) -> Config:
    """Return the configuration in a run's config.yaml. Raises ValueError, which names the file, if it is not valid."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {path.parent} the folder of a training run?")
    return read_flags([f"--config={path}"])


def save(config: Config, path: Path) -> None:
    path.write_text(to_yaml(config))


def to_yaml(config: Config) -> str:
    """Return YAML that `load` reads."""
    return to_text(to_dict(config))


def to_dict(config: Config | EvaluateConfig) -> dict[str, Any]:
    """Return a plain nested dictionary (tuples become lists), as written to config.yaml and sent to W&B."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
