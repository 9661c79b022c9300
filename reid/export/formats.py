"""The formats of exported files: how each is written, and how a program that has only the file runs it."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from reid.config import ModelConfig
from reid.data.normalization import Normalization
from reid.embedder import Embedder
from reid.model.features import compute_features
from reid.model.network import ReIDModel

Runner = Callable[[Tensor], np.ndarray]  # (B, 3, height, width) uint8 -> (B, D) float32


class Graph(nn.Module):
    """The exported graph: images (B, 3, H, W) float32 -> features (B, D) float32.

    Args:
        embedder: the model; it is unchanged.
        half: compute in float16; input and output are float32.
        inside: images are in 0 to 1, and are normalized here; else the caller has normalized them.
    """

    def __init__(self, embedder: Embedder, half: bool = False, inside: bool = True) -> None:
        super().__init__()
        self.flip, self.dim, self.half_precision, self.inside = embedder.flip, embedder.dim, half, inside
        self.model = copy.deepcopy(embedder.model).half() if half else embedder.model
        if inside:
            self.mean = nn.Buffer(torch.tensor(embedder.pixels.normalization.mean).view(1, 3, 1, 1))
            self.std = nn.Buffer(torch.tensor(embedder.pixels.normalization.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.inside:
            images = (images - self.mean) / self.std
        return compute_features(self.model, images.half() if self.half_precision else images, self.flip, self.dim)


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata for files that hold text only: JSON of what is none."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _prepare(images: Tensor, metadata: Mapping[str, str]) -> Tensor:
    """Return images uint8 as the input of a graph, by what its metadata says."""
    if metadata["normalization"] == "inside":
        return images.float() / 255
    return _read_normalization(metadata).apply(images)


def _read_normalization(metadata: Mapping[str, str]) -> Normalization:
    return Normalization(*(tuple(json.loads(metadata[name])) for name in ("mean", "std")))


def _trace(embedder: Embedder, metadata: Mapping[str, Any]) -> torch.export.ExportedProgram:
    graph = Graph(embedder, metadata["precision"] == "float16", metadata["normalization"] == "inside")
    example = torch.rand(2, 3, *embedder.size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        return torch.export.export(graph.eval(), (example,), dynamic_shapes=shapes)
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
            _trace(embedder, metadata), input_names=["images"], output_names=["features"], dynamo=True, verbose=False
        )
    assert program is not None  # true for dynamo
    program.model.metadata_props.update(to_text(metadata))
    program.save(path, external_data=False)


def _load_onnx(path: Path) -> Runner:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(["features"], {"images": _prepare(images, metadata).numpy()})[0]


def _write_program(embedder: Embedder, metadata: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.export.save(_trace(embedder, metadata), file, extra_files={"metadata.json": json.dumps(metadata)})


def _load_program(path: Path) -> Runner:
    extra = {"metadata.json": ""}
    with open(path, "rb") as file:
        module = torch.export.load(file, extra_files=extra).module()
    metadata = to_text(json.loads(extra["metadata.json"]))
    return lambda images: module(_prepare(images, metadata)).detach().numpy()


def _write_weights(embedder: Embedder, metadata: dict[str, Any], path: Path) -> None:
    state = embedder.model.state_dict()
    kept = {name: value.contiguous() for name, value in state.items() if not name.startswith("classifier.")}
    if metadata["precision"] == "float16":
        kept = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
    path.write_bytes(save_tensors(kept, metadata=to_text(metadata)))


def _load_weights(path: Path) -> Runner:
    """Build a model from nothing but the file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    size = int(metadata["height"]), int(metadata["width"])
    model = ReIDModel(1, ModelConfig(**json.loads(metadata["model"])).without_weights(), size).eval()
    missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    assert missing == ["classifier.weight"], missing
    model.requires_grad_(False)
    normalization = _read_normalization(metadata)
    flip = bool(json.loads(metadata.get("flip", "false")))
    dim = int(metadata["dim"])
    return lambda images: compute_features(model, normalization.apply(images), flip, dim).numpy()


# How a file is written, and how a program that has only the file runs it.
WRITERS = {
    "onnx": (_write_onnx, _load_onnx),
    "torch_export": (_write_program, _load_program),
    "safetensors": (_write_weights, _load_weights),
}
