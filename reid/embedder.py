"""A trained model as a function from images to features, for search, export and other programs.

from reid import Embedder
features = Embedder.load("runs/market1501").embed(["a.jpg", "b.png"])  # (2, 2048) float32
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reid import config
from reid.config.schema import DTYPES, LATER, NOT_SAVED
from reid.data.image_file import read_image_file
from reid.data.images import Pixels
from reid.model.features import check_dimensions, compute_features
from reid.model.hub import is_published, resolve
from reid.model.network import ReIDModel
from reid.model.saved import is_checkpoint
from reid.precision import find_device, find_wrong_convolution, forward_pass
from reid.runs.models import TRAINED, build_models, find_run, read_config

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A file, an encoded image, a PIL image, or (height, width, 3) uint8 RGB."""
# Knobs of `model` that change how a model learns, not what its features are.
LEARNING = {*NOT_SAVED, "head", "head_temperature", "nested"}
ORIENTATION = 0x0112  # the EXIF tag
THREADS = 8  # at most, to decode images while the model works


class Embedder:
    """Computes features after the neck, as the evaluator does: not normalized. Compare them by their cosine.

    With `flip` they are the means of the features of an image and of its mirror image, with `dimensions` their first
    numbers, a size that the model was trained for (`model.nested`).
    `size` is the (height, width) that images are resized to, `dim` the length of a feature, `source` the checkpoint's
    folder, `data` the shards that it was trained on (of several datasets the first), and `knobs` the run's `model`
    configuration.
    """

    def __init__(
        self, model: ReIDModel, run: config.Config, source: Path, device: str, dtype: str, batch_size: int,
        flip: bool = False, dimensions: int = 0,
    ) -> None:  # fmt: skip
        if dtype not in DTYPES:
            raise ValueError(f"dtype = {dtype!r}: choose {', '.join(DTYPES)}")
        check_dimensions(dimensions, model, str(source))
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} must be at least 1")
        self.device = find_device(device)
        self.dtype, self.batch_size = getattr(torch, dtype), batch_size
        if wrong := find_wrong_convolution(self.device, self.dtype):
            raise ValueError(f"dtype = {dtype!r}: {wrong}")
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.knobs, self.source, self.data = asdict(run.model), source, run.data.roots[0]
        self.pixels, self.size = Pixels.from_config(run.data), (run.data.height, run.data.width)
        self.flip, self.dim = flip, dimensions or model.dim

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str = "auto", dtype: str = "float32", batch_size: int = 64,
        flip: bool = False, dimensions: int = 0,
    ) -> Embedder:  # fmt: skip
        """Load a model: of a run's folder (its newest undamaged checkpoint), of a checkpoint's folder, or of the hub.

        Raises ValueError if there is no such model or device, or if this machine computes wrong features in `dtype`.

        Args:
            path: the folder; or `hf:org/name`, also with `@revision`, a model on Hugging Face's hub.
            device: auto (CUDA if there is one), or any of torch's names.
            dtype: float32, or bfloat16 or float16, which autocast the forward pass.
            batch_size: images per forward pass.
            flip: see `compute_features`; twice the time.
            dimensions: length of the features: one of the model's `nested`; 0 = all numbers.
        """
        name = resolve(os.fspath(path))
        is_model = is_checkpoint(Path(name)) or is_published(Path(name))
        folder, found = find_run("", name) if is_model else find_run(name, "newest")
        run = read_config(folder, found)
        model = cast(ReIDModel, build_models(found, run)[TRAINED])
        return cls(model, run, found, device, dtype, batch_size, flip, dimensions)

    def embed(self, images: Iterable[Picture]) -> np.ndarray:
        """Return the features (N, D) float32 of N images, any mix of kinds, in their order.

        Images are turned upright as EXIF says and made RGB. They are decoded while the model works on earlier ones, and
        only a few batches are held in memory. Raises ValueError, which names the first image that cannot be used.
        """
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise ValueError("embed takes several images: give a list, with one image in it for one image")
        readers = (partial(self.read, image, f"image {i}") for i, image in enumerate(images))
        parts = [features for _, features in self.stream(readers)]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def read(self, image: Picture, where: str = "image") -> Tensor:
        """Return one image as the model sees it before normalization: (3, height, width) uint8.

        Errors call the image by its path or, if it is not a file, `where`.
        """
        if isinstance(image, (str, os.PathLike)):
            where = os.fspath(image)
            if "\0" in where:
                raise ValueError(f"{where!r}: no file has a NUL character in its name")
            image = read_image_file(image)
        # One decoder reads all kinds: an image in memory becomes an uncompressed TIFF.
        data = image if isinstance(image, bytes) else _to_tiff(image, where)
        if not data:
            raise ValueError(f"{where}: an empty file (0 bytes)")
        return self.pixels.decode(data, where)

    def stream(
        self, readers: Iterable[Callable[[], Tensor]], on_damage: Callable[[int, str], object] | None = None
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the places (B,) of the readers and their features (B, D) float32, batch by batch.

        Each reader returns what `read` returns. If one raises ValueError, `on_damage` is called with its place and the
        reason; without `on_damage` the error is raised.
        """
        images = self._read_ahead(readers, on_damage)
        while batch := dict(islice(images, self.batch_size)):
            yield list(batch), self.embed_pixels(torch.stack(list(batch.values())))

    def _read_ahead(
        self, readers: Iterable[Callable[[], Tensor]], on_damage: Callable[[int, str], object] | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Run the readers in threads, two batches ahead, and yield the images that can be read, in their order."""
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            started = ((place, pool.submit(reader)) for place, reader in enumerate(readers))
            waiting = deque(islice(started, 2 * self.batch_size))
            while waiting:
                waiting.extend(islice(started, 1))
                place, reading = waiting.popleft()
                try:
                    yield place, reading.result()
                except ValueError as error:
                    if on_damage is None:
                        raise
                    on_damage(place, str(error))

    @torch.inference_mode()
    def embed_pixels(self, images: Tensor) -> np.ndarray:
        """Return the features (B, D) float32 of images (B, 3, height, width) uint8, in one forward pass, or two."""
        normalized = self.pixels.normalization.apply(images.to(self.device, non_blocking=True))
        with forward_pass(self.device, self.dtype):
            return self.compute(normalized).cpu().numpy()

    def compute(self, images: Tensor) -> Tensor:
        """Return the features (B, D) float32 of normalized images (B, 3, height, width) on the device."""
        return compute_features(self.model, images, self.flip, self.dim)

    def __repr__(self) -> str:
        height, width = self.size
        return f"Embedder({self.source}: {self.dim} numbers of {height} x {width} pixels, on {self.device})"

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that a feature depends on besides its image: preprocessing, encoder and neck.

        It leaves out the classifier, and also device and dtype, which change only the last digits.
        """
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            if not name.startswith("classifier."):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what another program must know besides the weights to get the same features; JSON.

        What earlier versions did without saying it (a knob of LATER, no flip test) is left out: fingerprints, and so
        indexes, stay.
        """
        is_cut = self.dim < self.model.dim
        which = f"first {self.dim} of {self.model.dim} numbers, " * is_cut
        which += "mean of those of the image and of its mirror image, " * self.flip
        return {
            "model": {
                name: value
                for name, value in self.knobs.items()
                if name not in LEARNING and not (name in LATER and value == LATER[name])
            },
            "dim": self.dim,
            "height": self.size[0],
            "width": self.size[1],
            "colours": "RGB",
            "resize": f"{self.pixels.interpolation} with antialiasing, to height x width whatever the shape was",
            "mean": self.pixels.normalization.mean,
            "std": self.pixels.normalization.std,
            "feature": f"{which}after the neck, not normalized; compare by cosine",
            **({"flip": True} if self.flip else {}),
            **({"dimensions": self.dim} if is_cut else {}),
        }


def _to_tiff(image: Image.Image | np.ndarray, where: str) -> bytes:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"{where}: an array {image.dtype} {image.shape}; give uint8 (height, width, 3), RGB")
        image = Image.fromarray(image)
    elif not isinstance(image, Image.Image):
        raise ValueError(f"{where}: a {type(image).__name__}; give a path, bytes, a PIL image or a uint8 array")
    if not image.width or not image.height:
        raise ValueError(f"{where}: a picture of {image.width} x {image.height} pixels")
    buffer, exif = io.BytesIO(), Image.Exif()
    try:
        image.load()  # first: this turns a TIFF upright and removes its orientation tag
        exif[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
        image.save(buffer, "TIFF", exif=exif)
    except Exception as error:  # Pillow raises many kinds for a damaged file that was opened lazily
        raise ValueError(f"{where}: image cannot be decoded: {error}") from error
    return buffer.getvalue()
