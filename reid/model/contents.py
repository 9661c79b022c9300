"""What a file of weights holds, and which encoders it fits: the tables of `reid model inspect FILE`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.config import DataConfig, ModelConfig
from reid.model.encoders import build_encoder
from reid.model.parts import find_places, flatten, list_rest
from reid.model.weights_file import locate, read_file

ROWS = 40  # of the table of parts
LEAST, BEST = 0.05, 6  # share of an encoder below which it is no candidate, and how many candidates to show


def describe_file(path: Path, encoders: Sequence[str], key: str = "") -> str:
    """Return two tables: the parts of a file, and how well each encoder fits.

    Args:
        path: as model.weights.
        encoders: names.
        key: as model.weights_key.
    """
    path = locate(path)
    content, _ = read_file(path)
    flat = flatten(content)
    rows = [("part", "tensors", "numbers"), *_list_parts(flat)]
    lines = [str(path), *_align(rows[: ROWS + 1])]
    if len(rows) > ROWS + 1:
        lines.append(f"and {len(rows) - ROWS - 1} more parts")
    fits = list(_list_fits(flat, encoders, key))
    if fits:
        lines += ["", *_align([("encoder", "fits", "tensors", "numbers", "weights_key", "left out"), *fits])]
    else:
        lines += ["", f"none of {', '.join(encoders)} has tensors of these names; --encoder timm/NAME tries others"]
    return "\n".join(lines)


def _list_parts(flat: Mapping[str, Any], under: str = "", levels: int = 2) -> Iterator[tuple[str, str, str]]:
    """Yield the parts of a file at its first forks, with the number of tensors and of their elements."""
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in flat.items():
        parts[name.split(".")[0]][name.partition(".")[2]] = value
    for part, values in parts.items():
        sizes = [value.numel() for value in values.values() if isinstance(value, Tensor)]
        if len(parts) == 1 and "" not in values:
            yield from _list_parts(values, f"{under}{part}.", levels)
        elif levels > 1 and len(sizes) > 1 and len(values) == len(sizes):
            yield from _list_parts(values, f"{under}{part}.", levels - 1)
        else:
            counts = (f"{len(sizes)}", f"{sum(sizes):,}") if sizes else ("-", f"no tensor: {_kind_of(values)}")
            yield under + part, *counts


def _kind_of(values: Mapping[str, Any]) -> str:
    return type(values[""]).__name__ if "" in values else "dict"


def _list_fits(flat: Mapping[str, Any], encoders: Sequence[str], key: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each place where an encoder fits best, the best encoder first."""
    found = []
    for name in encoders:
        with torch.device("meta"):
            encoder, _ = build_encoder(ModelConfig(encoder=name, weights="none"), DataConfig().image_size)
        places = find_places(flat, encoder.state_dict(), key)
        found += [
            (name, place) for place in places if place.fit.rank == places[0].fit.rank and place.fit.share >= LEAST
        ]
    found.sort(key=lambda row: (row[1].fit.is_good, row[1].fit.share), reverse=True)
    for name, place in found[:BEST]:
        fit, used = place.fit, {place.prefix + fitting for fitting in place.fit.fitting}
        why = (
            "yes" if fit.is_good else "more layers" if fit.foreign else "other shapes" if fit.other_shape else "too few"
        )
        counts = f"{len(fit.fitting)} of {fit.of_tensors}", fit.percent
        yield name, why, *counts, place.name, list_rest(flat, place.prefix, used)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
