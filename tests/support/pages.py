"""The pages of the documentation that are made from the code: `make docs` writes them, tests/test_docs.py compares.

python -m tests.support.pages
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import textwrap
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from reid.config import Config, EvaluateConfig
from reid.config.ranges import Count, Factor, Fraction, NonNegative, Positive, Seed, Size, Weight

DOCS = Path(__file__).parents[2] / "docs"
WIDTH = 100  # of a signature in one line

API = {
    "Training and evaluation": [
        "reid.train", "reid.TrainResult", "reid.evaluate", "reid.EvaluateResult", "reid.read_flags",
    ],
    "Batches for a training loop of your own": ["reid.open_loader", "reid.BatchLoader"],
    "Losses": ["reid.losses.*"],
    "Features of images": ["reid.Embedder"],
    "Metrics of features": [
        "reid.metrics.Features", "reid.metrics.evaluate", "reid.metrics.Result", "reid.metrics.top_k",
    ],
    "Search": [
        "reid.search.index.Index", "reid.search.index.Entry", "reid.search.index.Hit", "reid.search.writer.create",
        "reid.search.writer.append", "reid.search.writer.remove",
    ],
}  # fmt: skip
RETURNED = {"TrainResult", "EvaluateResult", "BatchLoader", "Embedder", "Result"}  # by functions: no signature
API_HEAD = """# Python API

Made from the docstrings by `make docs`. `import reid` is fast: torch is imported when a name is first used. Errors that
you can fix are a `ValueError`. Every knob of a `reid.Config`, and every option of `reid.evaluate`, is in
[knobs.md](knobs.md); examples are in [training.md](training.md#a-training-loop-of-your-own),
[search.md](search.md#python-api) and [quickstart.ipynb](quickstart.ipynb).
"""
KNOBS_HEAD = """# Knobs

Made from `reid/config/schema.py` by `make docs`. A knob is a line of YAML or a flag: `margin: 1.2` below `loss:`, or
`--loss.margin=1.2`. [training.md](training.md) describes how they are used; `null` in YAML means "none".
"""
WORDS = {
    Size: "whole number, 1 or more", Count: "whole number, 0 or more", Seed: "whole number, 0 to 2⁶⁴ − 1",
    NonNegative: "number, 0 or more", Weight: "number, 0 or more", Positive: "number above 0",
    Fraction: "number, 0 to 1", Factor: "number above 0, at most 1",
    int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null",
}  # fmt: skip


def main() -> None:
    """Write the pages."""
    (DOCS / "api.md").write_text(make_api())
    (DOCS / "knobs.md").write_text(make_knobs())


# Knobs


def make_knobs() -> str:
    sections = [
        ("A run", Config, ""),
        *((f.name, SECTIONS[f.name], f"{f.name}.") for f in fields(Config) if f.name in SECTIONS),
    ]
    parts = [KNOBS_HEAD, *(list_section(*section) for section in sections)]
    return "\n".join([*parts, list_section("Options of `reid evaluate`", EvaluateConfig, "--")])


SECTIONS = {name: hint for name, hint in get_type_hints(Config).items() if is_dataclass(hint)}


def list_section(title: str, kind: type, prefix: str) -> str:
    """Return the table of a section's knobs."""
    notes, hints = attribute_docs(kind), get_type_hints(kind, include_extras=True)
    rows = [f"## {title}", str(kind.__doc__), "", "| knob | values | default | meaning |", "|---|---|---|---|"]
    for knob in fields(kind):  # type: ignore[arg-type]
        if knob.name not in SECTIONS or kind is not Config:
            cells = f"`{prefix}{knob.name}`", describe(hints[knob.name]), f"`{default_of(knob)}`", notes[knob.name]
            rows.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join([*rows, ""])


def escape(text: str) -> str:
    """Return text for a cell of a table; `<` would begin a tag of HTML, outside of code."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "\\<") for number, part in enumerate(parts))


def describe(hint: Any) -> str:
    """Return in words what a knob may be."""
    if hint in WORDS:
        return WORDS[hint]
    parts, origin = get_args(hint), get_origin(hint)
    if origin is Annotated:
        return f"{describe(parts[0])}: {parts[1].text}"
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is list:
        return f"list, each: {describe(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} values, each: {describe(parts[0])}"
    assert origin in (Union, UnionType), hint
    return "; or ".join(map(describe, parts))


def default_of(knob: Field[Any]) -> str:
    value = knob.default if knob.default is not MISSING else knob.default_factory()  # type: ignore[misc]
    return (value or '""') if isinstance(value, str) else json.dumps(value)


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the text below each field of a class, in one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


# API


def make_api() -> str:
    parts = [API_HEAD]
    for title, names in API.items():
        parts += [f"## {title}\n", *(describe_object(name) for pattern in names for name in expand(pattern))]
    return "\n".join(parts)


def expand(name: str) -> list[str]:
    """Return a module's public names for `module.*`."""
    if not name.endswith(".*"):
        return [name]
    module = name.removesuffix(".*")
    return [f"{module}.{public}" for public in importlib.import_module(module).__all__]


def describe_object(name: str) -> str:
    """Return heading, signature and docstring of a function, or of a class with its public methods."""
    found = pkgutil.resolve_name(name)
    lines = [f"### `{name}`", ""]
    if found.__name__ not in RETURNED:
        lines += sign(found, found.__name__)
    lines += [format_doc(found), ""]
    if inspect.isclass(found):
        docs = attribute_docs(found) if is_dataclass(found) else {}
        lines += [f"- `{attribute}`: {text}" for attribute, text in docs.items()] + [""] * bool(docs)
        for method, kind in vars(found).items():
            lines += describe_method(found, method, kind) if method[0] != "_" and kind.__doc__ else []
    return "\n".join(lines)


def describe_method(owner: type, name: str, method: object) -> list[str]:
    if isinstance(method, property | cached_property):
        return [f"`{owner.__name__}.{name}`: {str(inspect.getdoc(method)).splitlines()[0]}", ""]
    if isinstance(method, classmethod | FunctionType):
        return [*sign(getattr(owner, name), f"{owner.__name__}.{name}"), format_doc(method), ""]
    return []


def sign(function: Any, name: str) -> list[str]:
    """Return a block with the signature, one parameter in a line if it is long."""
    signature = inspect.signature(function)
    given = [p for p in signature.parameters.values() if p.name != "self"]
    parameters = [
        f"{'**' * (p.kind is p.VAR_KEYWORD)}{p.name}: {write_type(p.annotation)}"
        + (f" = {p.default!r}".replace("'", '"') if p.default is not p.empty else "")
        for p in given
    ]
    is_typed = not inspect.isclass(function) and signature.return_annotation is not signature.empty
    returns = f" -> {write_type(signature.return_annotation)}" if is_typed else ""
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) > WIDTH:
        line = "\n".join([f"{name}(", *(f"    {parameter}," for parameter in parameters), f"){returns}"])
    return ["```py", line, "```"]


def write_type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(reid|torch)(\.\w+)*\.(?=[A-Z])", "", text)


def format_doc(found: object) -> str:
    """Return a docstring of Google's form as Markdown: sections become lists, indented text a block of code."""
    lines, section = [], ""
    for line in (inspect.getdoc(found) or "").splitlines():
        if header := re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            section = header[1]
            lines += [f"**{section}**", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry and section != "Returns" else line.strip())
        elif section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            section = section if not line.strip() else ""
            lines += [""] * (
                line.startswith("    ") and bool(lines) and bool(lines[-1]) and not lines[-1].startswith(" ")
            )
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
