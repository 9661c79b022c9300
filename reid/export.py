"""The export program: `reid export --checkpoint runs/x --format onnx --out x.onnx`.

onnx and torch_export hold a graph from float32 images (batch, 3, height, width), RGB, 0 to 1, to features (batch, dim)
after the neck; it normalizes images, but does not resize them. safetensors holds the weights of encoder and neck. Each
file has the metadata that a program needs to use it, also as a .json next to it, except for ONNX. A file whose features
differ from the model's is deleted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from reid.config import ModelConfig, normalize_flags
from reid.data.manifest import load_manifest
from reid.data.normalization import Normalization
from reid.embedder import Embedder
from reid.files import write_atomically
from reid.model.features import FLIP_TEST, compute_features
from reid.model.network import ReIDModel
from reid.model.positions import grid_of
from reid.program import call, name_program
from reid.runs.environment import PRODUCT, version_of
from reid.search.sources import is_shards, list_folder, list_shards

CHECKED = 8  # images that the file is compared on
TOLERANCE = 1e-4  # of the largest feature; float32 runners differ by about a hundredth of it

Runner = Callable[[Tensor], np.ndarray]  # (B, 3, height, width) uint8 -> (B, D)


class Graph(nn.Module):
    """The exported graph: images (B, 3, H, W) float32 in 0..1 -> features (B, D)."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.model, self.flip, self.dim = embedder.model, embedder.flip, embedder.dim
        self.mean = nn.Buffer(torch.tensor(embedder.pixels.normalization.mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(embedder.pixels.normalization.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return compute_features(self.model, (images - self.mean) / self.std, self.flip, self.dim)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model. What the user can fix ends the program with one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        prog=name_program("python -m reid.export"), description="A trained model for other programs."
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="a run's folder, or one of its checkpoints")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="FILE", help="an earlier file is replaced")
    images = "pictures or shards to compare on; default: the run's data, or noise"
    parser.add_argument("--images", default="", metavar="DIR", help=images)
    flip = "flip test: the features are means of those of an image and of its mirror image"
    parser.add_argument("--flip", action="store_true", help=flip)
    dimensions = "length of the features: one of the run's model.nested; default: all numbers"
    parser.add_argument("--dimensions", type=int, default=0, metavar="N", help=dimensions)
    share = "largest difference, as a share of the largest feature; default: %(default)s"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=share)
    options = parser.parse_args(normalize_flags(sys.argv[1:] if arguments is None else arguments))
    call(
        lambda: export(
            options.checkpoint,
            options.format,
            Path(options.out),
            options.images,
            options.tolerance,
            options.flip,
            options.dimensions,
        )
    )


def export(
    checkpoint: str, name: str, out: Path, images: str = "", tolerance: float = TOLERANCE, flip: bool = False,
    dimensions: int = 0,
) -> None:  # fmt: skip
    """Write a model to `out` in the format `name`, compare the file with the model and print the difference.

    Raises ValueError, and leaves no new file, if the features differ by more than `tolerance` times the largest one.
    """
    (write, load), part = FORMATS[name], out.with_name(f".part-{out.name}")
    try:
        embedder = Embedder.load(checkpoint, device="cpu", flip=flip, dimensions=dimensions)
        inputs, which = choose_images(embedder, images)
        scaling = "; normalization with mean and std is inside"
        if name == "safetensors":
            scaling = ", then (images - mean) / std, which is not inside"
            scaling += f"; nor is the cut to {dimensions} numbers" if dimensions else ""
            scaling += "; nor is the mean over the mirror image" if flip else ""
        metadata = {
            "made_by": f"{PRODUCT} {version_of(PRODUCT)}",
            "checkpoint": embedder.source.name,
            "fingerprint": embedder.fingerprint,
            "input": f"images float32 (batch, 3, height, width), RGB, 0 to 1{scaling}",
            "output": "features float32 (batch, dim)",
            **embedder.describe(),
        }
        if grid := grid_of(embedder.model):
            metadata["grid"] = grid
        write(embedder, metadata, part)
        difference, largest = compare(embedder, load(part), inputs)
        result = f"on {which}: largest absolute difference {difference:.2e}, largest feature {largest:.2e}"
        if not difference <= tolerance * largest:
            raise ValueError(f"{out}: not written: its features are not those of the model, {result}")
        part.replace(out)
        if name != "onnx":
            write_atomically(out.with_name(f"{out.name}.json"), json.dumps(metadata, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{out}: not written: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    print(
        f"{out}: {name}, {out.stat().st_size / 2**20:.1f} MiB, fingerprint {embedder.fingerprint[:12]}"
        + f", {FLIP_TEST}" * flip
    )
    print(f"compared {result}")


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


def compare(embedder: Embedder, run: Runner, images: Tensor) -> tuple[float, float]:
    """Return the largest absolute difference of features, in batches of several sizes, and the largest feature."""
    expected = embedder.embed_pixels(images)
    found = [np.concatenate([run(part) for part in images.split(size)]) for size in (len(images), 3, 1)]
    # NaN stays NaN, and is refused.
    return float(np.abs(np.stack(found) - expected).max()), float(np.abs(expected).max())


def _to_text(metadata: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _trace(embedder: Embedder) -> torch.export.ExportedProgram:
    example = torch.rand(2, 3, *embedder.size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        return torch.export.export(Graph(embedder).eval(), (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises many kinds for a model that it cannot trace
        reason = str(error).strip().splitlines()[0]
        encoder = embedder.knobs["encoder"]
        raise ValueError(f"the encoder {encoder} has no graph ({reason}); --format safetensors needs none") from error


def _write_onnx(embedder: Embedder, metadata: dict[str, Any], path: Path) -> None:
    try:
        for name in ("onnxscript", "onnxruntime"):  # the second is used later, but should be missed before the export
            importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--format onnx needs {name}: pip install 'mctl-reid[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _trace(embedder), input_names=["images"], output_names=["features"], dynamo=True, verbose=False
        )
    assert program is not None  # true for dynamo
    program.model.metadata_props.update(_to_text(metadata))
    program.save(path, external_data=False)


def _load_onnx(path: Path) -> Runner:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["features"], {"images": (images.float() / 255).numpy()})[0]


def _write_program(embedder: Embedder, metadata: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(_trace(embedder), file, extra_files={"metadata.json": json.dumps(metadata)})


def _load_program(path: Path) -> Runner:
    with open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(images.float() / 255).detach().numpy()


def _write_weights(embedder: Embedder, metadata: dict[str, Any], path: Path) -> None:
    state = embedder.model.state_dict()
    kept = {name: value.contiguous() for name, value in state.items() if not name.startswith("classifier.")}
    path.write_bytes(save_tensors(kept, metadata=_to_text(metadata)))


def _load_weights(path: Path) -> Runner:
    """Build a model from nothing but the file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    size = int(metadata["height"]), int(metadata["width"])
    model = ReIDModel(1, ModelConfig(**json.loads(metadata["model"])).without_weights(), size).eval()
    missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    assert missing == ["classifier.weight"], missing
    model.requires_grad_(False)
    normalization = Normalization(*(tuple(json.loads(metadata[name])) for name in ("mean", "std")))
    flip = bool(json.loads(metadata.get("flip", "false")))
    dim = int(metadata["dim"])
    return lambda images: compute_features(model, normalization.apply(images), flip, dim).numpy()


# How a file is written, and how a program that has only the file runs it.
FORMATS = {
    "onnx": (_write_onnx, _load_onnx),
    "torch_export": (_write_program, _load_program),
    "safetensors": (_write_weights, _load_weights),
}


if __name__ == "__main__":
    main()
