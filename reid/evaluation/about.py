"""What a report is about, about.json: with it, reports on the same data are found and others are not mixed up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from reid.config import DataConfig
from reid.data.normalization import describe_pixels
from reid.files import write_atomically
from reid.metrics.features import JUNK, Features

ABOUT = "about.json"
DISTRACTOR = -2  # stands for any pid of a distractor in fingerprints


@dataclass(frozen=True)
class About:
    """What a report is about, as about.json holds it. Junk is left out of the labels and the numbers.

    source: the checkpoint or the feature files.
    data_fingerprint: of the shards' manifest, "" for feature files.
    labels_fingerprint: of pids and camids in their order, which identifies the images of another system's features.
    num_queries, num_gallery: images.
    pixels: how pictures became the encoder's input (`describe_pixels`); empty for feature files. Reports of earlier
        versions do not say it: ImageNet's mean and std, bilinear.
    flip: whether features are means of those of an image and of its mirror image.
    root: folder or URL of the shards, where a comparison finds images; "" for feature files.
    """

    dataset: str
    source: str
    data_fingerprint: str
    labels_fingerprint: str
    num_queries: int
    num_gallery: int
    pixels: dict[str, Any] = field(default_factory=dict)
    flip: bool = False
    root: str = ""


def describe(
    dataset: str,
    source: str,
    data_fingerprint: str,
    query: Features,
    gallery: Features,
    pixels: Mapping[str, Any] | None = None,
    flip: bool = False,
    root: str = "",
) -> About:
    """Return what a report on these features is about."""
    digest, sizes = hashlib.sha256(), []
    for split in (query, gallery):
        kept = split.pids != JUNK
        pids = split.pids.masked_fill(split.is_distractor(), DISTRACTOR)
        digest.update(torch.stack([pids[kept], split.camids[kept]]).cpu().numpy().astype("<i8").tobytes())
        sizes.append(int(kept.sum()))
    digest.update(f"{sizes}".encode())
    labels = digest.hexdigest()
    return About(dataset, source, data_fingerprint, labels, sizes[0], sizes[1], dict(pixels or {}), flip, root)


def load_about(folder: Path) -> About:
    """Read about.json. Raises ValueError if it is damaged."""
    path = folder / ABOUT
    try:
        document = {"pixels": {}, "flip": False, "root": "", **json.loads(path.read_text(encoding="utf-8"))}
        about = About(**{f.name: document[f.name] for f in fields(About)})
        for f in fields(About):
            if type(getattr(about, f.name)).__name__ != str(f.type).split("[")[0]:
                raise TypeError(f"{f.name} is no {f.type}")
        if about.data_fingerprint and not about.pixels:
            return replace(about, pixels=describe_pixels(DataConfig()))
        return about
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); evaluate again to write it") from error


def difference(one: About, other: About) -> str:
    """Return why two reports are about different data, as text; "" if they are about the same."""
    if (one.num_queries, one.num_gallery) != (other.num_queries, other.num_gallery):
        return (
            f"{one.num_queries} queries and {one.num_gallery} gallery images against {other.num_queries} and "
            f"{other.num_gallery}"
        )
    for name in ("data_fingerprint", "labels_fingerprint"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if ours and theirs and ours != theirs:
            return f"{name.replace('_', ' ')} {ours[:12]} against {theirs[:12]}"
    return ""


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def find_about(folder: Path) -> About | None:
    """Read about.json, or return None if there is none or it is damaged: the report is then replaced."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        return load_about(folder)
    return None
