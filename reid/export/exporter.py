"""Write a model as a file for other programs, and compare the file with the model.

onnx and torch_export hold a graph from images (batch, 3, height, width) float32, RGB, to features (batch, dim) float32
after the neck; it normalizes images, if this is not left to the caller, but does not resize them. safetensors holds the
weights of encoder and neck. Each file has the metadata that a program needs to use it, also as a .json next to it. A
file whose features differ from the model's is deleted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid.data.manifest import load_manifest
from reid.embedder import Embedder
from reid.export import GRAPHS, HALF_TOLERANCE, TOLERANCE
from reid.export.formats import WRITERS, Runner
from reid.files import write_atomically
from reid.model.features import FLIP_TEST
from reid.model.positions import grid_of
from reid.runs.environment import PRODUCT, version_of
from reid.runs.models import read_origin
from reid.search.sources import is_shards, list_folder, list_shards

CHECKED = 8  # images that the file is compared on


class Parity(NamedTuple):
    """How the features of a file differ from the model's: largest absolute difference, largest feature, least cosine
    of the two features of an image."""

    difference: float
    largest: float
    cosine: float

    def __str__(self) -> str:
        return (
            f"largest absolute difference {self.difference:.2e}, largest feature {self.largest:.2e}, smallest cosine "
            f"{self.cosine:.7f}"
        )


def export(
    checkpoint: str,
    name: str,
    out: Path,
    *,
    images: str = "",
    tolerance: float | None = None,
    flip: bool = False,
    dimensions: int = 0,
    half: bool = False,
    normalization: str | None = None,
) -> None:
    """Write a model to `out` in a format, compare the file with the model and print the difference.

    Args:
        checkpoint: as of `Embedder.load`.
        name: onnx, torch_export or safetensors.
        out: the file.
        images: a folder of pictures or shards to compare on; "" = the run's data, or noise.
        tolerance: largest difference of a number, as a share of the largest feature; None: TOLERANCE or HALF_TOLERANCE.
        flip: see `compute_features`.
        dimensions: see `Embedder.load`.
        half: compute in float16; safetensors: store weights as float16.
        normalization: "inside" the graph (None), or "outside", left to the caller. Always outside of safetensors.

    Raises:
        ValueError: no new file is left; also if the features differ by more than the tolerance.
    """
    if normalization == "inside" and name not in GRAPHS:
        raise ValueError(f"--normalization inside: {name} has no graph; leave it out, or use --format onnx")
    try:
        embedder = Embedder.load(checkpoint, device="cpu", flip=flip, dimensions=dimensions)
        place = normalization or ("inside" if name in GRAPHS else "outside")
        metadata = describe_export(embedder, name, "float16" if half else "float32", place)
        share = tolerance if tolerance is not None else HALF_TOLERANCE if half else TOLERANCE
        result = write_checked(embedder, name, out, metadata, images, share)
        write_atomically(out.with_name(f"{out.name}.json"), json.dumps(metadata, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{out}: not written: {error}") from error
    facts = f"{metadata['precision']}, normalization {place}, fingerprint {embedder.fingerprint[:12]}"
    print(f"{out}: {name}, {out.stat().st_size / 2**20:.1f} MiB, {facts}" + f", {FLIP_TEST}" * flip)
    print(f"compared {result}")


def describe_export(embedder: Embedder, name: str, precision: str, normalization: str) -> dict[str, Any]:
    """Return the metadata that a program needs to use a file, as values of JSON."""
    scaling = "; normalization with mean and std is inside"
    if normalization == "outside":
        scaling = ", then (images - mean) / std, which is not inside"
    if name not in GRAPHS:
        scaling += f"; nor is the cut to {embedder.dim} numbers" * (embedder.dim < embedder.model.dim)
        scaling += "; nor is the mean over the mirror image" * embedder.flip
    origin = read_origin(embedder.source)
    metadata = {
        "made_by": f"{PRODUCT} {version_of(PRODUCT)}",
        "checkpoint": embedder.source.name,
        "fingerprint": embedder.fingerprint,
        "input": f"images float32 (batch, 3, height, width), RGB, 0 to 1{scaling}",
        "output": "features float32 (batch, dim)",
        "precision": precision,
        "normalization": normalization,
        "interpolation": embedder.pixels.interpolation,
        "nested": list(embedder.model.nested),
        "weights": origin.weights,
        "data": origin.data,
        **embedder.describe(),
    }
    if grid := grid_of(embedder.model):
        metadata["grid"] = grid
    return metadata


def write_checked(
    embedder: Embedder, name: str, out: Path, metadata: dict[str, Any], images: str, tolerance: float
) -> str:
    """Write a file, and compare it with the model before it gets its name. Return the result as text.

    Raises ValueError, and leaves no new file, if the features differ by more than `tolerance` times the largest one.
    """
    (write, load), part = WRITERS[name], out.with_name(f".part-{out.name}")
    try:
        inputs, which = choose_images(embedder, images)
        write(embedder, metadata, part)
        parity = compare(embedder, load(part), inputs)
        if not parity.difference <= tolerance * parity.largest:
            raise ValueError(f"{out}: not written: its features are not those of the model, on {which}: {parity}")
        part.replace(out)
        return f"on {which}: {parity}"
    finally:
        with suppress(OSError):
            part.unlink()


def choose_images(embedder: Embedder, root: str) -> tuple[Tensor, str]:
    """Return (N, 3, H, W) uint8 to compare on, and what they are: from `root` or, by default, the run's data or noise.

    Raises ValueError if no image of `root` can be read.
    """
    folder, images = root or embedder.data, list[Tensor]()
    try:
        listed = list_shards(folder, min(load_manifest(folder).splits)) if is_shards(folder) else list_folder(folder)
        for image in listed:
            with suppress(ValueError):
                images.append(image.read(embedder))
            if len(images) == CHECKED:
                break
        if not images:
            raise ValueError(f"{folder}: no image to compare on can be read; give other --images")
        return torch.stack(images), f"{len(images)} images of {folder}"
    except ValueError:
        if root:
            raise
    noise = torch.randint(0, 256, (CHECKED, 3, *embedder.size), generator=torch.Generator().manual_seed(0))
    return noise.to(torch.uint8), f"{CHECKED} images of noise ({folder} cannot be read; --images gives others)"


def compare(embedder: Embedder, run: Runner, images: Tensor) -> Parity:
    """Return how features differ, in batches of several sizes."""
    expected = embedder.embed_pixels(images)
    found = np.stack([np.concatenate([run(part) for part in images.split(size)]) for size in (len(images), 3, 1)])
    lengths = np.linalg.norm(found, axis=2) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=2) / np.maximum(lengths, np.finfo(np.float32).tiny)
    # NaN stays NaN, and is refused.
    return Parity(*(float(value) for value in (np.abs(found - expected).max(), np.abs(expected).max(), cosines.min())))
