"""Read YAML files that people write; what is damaged or ambiguous in them is an error that names the file."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from reid.files import read_text

LARGEST = 10_000  # values in a file, those of an alias counted each time it is used
DEEPEST = 20  # lists and sections inside one another
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*|\.[\d_]+|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class _Loader(yaml.SafeLoader):
    """Plain data as the parser of flags understands it: 1e-3 is a number, 2024-01-01 is text, no key twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        known: set[Hashable] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in known:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            known.add(name)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes text that `_Loader` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":timestamp"))]
        for letter, resolvers in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: dictionaries, lists, text, numbers, booleans and None.

    Raises:
        ValueError: names the file; `read_text` refuses it, or it is not YAML, has a key twice, more than LARGEST values
            (as with an alias that holds itself), or other kinds of values.
    """
    text = read_text(path)
    try:
        document = _Loader(text).get_single_data()
    except Exception as error:  # PyYAML has many ways to say that a value is not what its tag says
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split()) or type(error).__name__
        hint = "; indent with spaces, not with tabs" if r"'\t'" in reason else ""
        raise ValueError(f"{path}: not YAML: {reason}{hint}") from error
    _check_values(path, document)
    return document


def to_text(document: Any) -> str:
    """Return YAML that reads as the same document."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False)
    return text


def _check_values(path: Path, document: Any) -> None:
    found = [(document, 0)]
    for value, depth in found:  # which grows meanwhile
        inside: list[Any] = []
        if isinstance(value, dict):
            if unnamed := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"{path}: the key {unnamed[0]!r} is not text; put it in quotes, or fix it")
            inside = list(value.values())
        elif isinstance(value, list):
            inside = value
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"{path}: {value!r} is a {type(value).__name__}; give text, numbers, true, false or null")
        found += [(entry, depth + 1) for entry in inside]
        if len(found) > LARGEST or depth > DEEPEST:
            raise ValueError(
                f"{path}: more than {LARGEST:,} values, or more than {DEEPEST} lists in one another; does an alias (*) "
                "repeat or hold itself?"
            )
