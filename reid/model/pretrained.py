"""Initial weights of encoders: torchvision's published files in torch's cache, or a local file of tensors."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from reid.files import hold

# Position embeddings of a transformer, as torchvision and timm name them.
POSITIONS = ("encoder.pos_embedding", "pos_embed")
# ImageNet classifiers, which no encoder here has. ConvNeXt's normalization under classifier.0 is loaded nevertheless.
HEADS = ("fc.", "classifier.", "head.", "heads.")
FIX = "give a file of this encoder, or change model.encoder to the file's"


def url_of(name: str) -> str:
    """Return the URL of torchvision's ImageNet weights of an encoder.

    They are IMAGENET1K_V1, from which BoT and the papers that it is compared with start. V2 is the better classifier,
    but its results could not be compared with theirs; it can be given as a local file.
    """
    from torchvision.models import get_model_weights

    if name == "resnet10":
        raise ValueError(
            "model.weights = imagenet: there are no ImageNet weights for resnet10; use model.weights = none"
        )
    return str(get_model_weights(name)["IMAGENET1K_V1"].url)


def cached_file(name: str) -> Path:
    """Return the path of an encoder's ImageNet weights in torch's cache, whether the file exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url_of(name)).name


def fetch(name: str) -> Path:
    """Return the cached file of an encoder's ImageNet weights, and download it first if it is missing.

    A lock next to the file lets one process of a node (or of a shared home folder) download, without a process group.
    Raises ValueError, which says how to copy the file here, if there is no internet.
    """
    path = cached_file(name)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        say = partial(print, file=sys.stderr, flush=True)
        with hold(path.with_suffix(".lock"), on_wait=lambda holder: say(f"waiting for {holder} to fetch {path.name}")):
            if not path.is_file():
                say(f"fetching {url_of(name)}")
                digest = path.stem.rsplit("-", 1)[1]  # torchvision's names end with the first digits of the sha256
                torch.hub.download_url_to_file(url_of(name), str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
        raise ValueError(
            f"model.weights = imagenet: {path.name} is not in {path.parent} and cannot be fetched ({error}); on a "
            f"machine with internet run `python -m reid.model fetch {name}` and copy the file into that folder, or "
            "give model.weights a local file, or none"
        ) from error
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .pth file (also nested in "state_dict", "model"). No code in it runs."""
    if not path.is_file():
        raise ValueError(f"model.weights = {path}: no such file; give imagenet, none or a local file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state[key] if isinstance(state.get(key), Mapping) else state
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch and safetensors raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model.weights = {path}: not a file of tensors: {reason}") from error


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Load a file into an encoder: of ImageNet, of a re-ID model, or with any other prefix before the names.

    A classifier in it is ignored, position embeddings are resized. Raises ValueError if a tensor of the encoder is
    missing or has another shape, or if the file has more layers than the encoder.
    """
    own = encoder.state_dict()
    state = _without_prefix(read_weights(path), own)
    for name in POSITIONS:
        if name in own and name in state:
            grid: tuple[int, int] = encoder.grid  # type: ignore[assignment]
            state[name] = resize_positions(state[name], grid, own[name].shape[1] - math.prod(grid))
    other_shape = {name for name, value in own.items() if name in state and state[name].shape != value.shape}
    try:  # torchvision's modules translate the names of old files as they load
        found = encoder.load_state_dict({n: v for n, v in state.items() if n not in other_shape}, strict=False)
    except RuntimeError as error:  # only torch knows that a tensor with an old name has another shape
        raise ValueError(f"model.weights = {path}: {str(error).splitlines()[-1].strip()}; {FIX}") from error
    wrong = [name for name in own if (name in found.missing_keys or name in other_shape) and not _may_lack(name)]
    if wrong:
        how = "of another shape" if wrong[0] in other_shape else "missing"
        raise ValueError(
            f"model.weights = {path}: {len(own) - len(wrong)} of the encoder's {len(own)} tensors fit; the first that "
            f"does not is {wrong[0]} ({how}); {FIX}"
        )
    more = [name for name in found.unexpected_keys if not name.startswith(HEADS) and not _may_lack(name)]
    if more:
        raise ValueError(
            f"model.weights = {path}: all {len(own)} tensors of the encoder fit, but the file has {len(more)} more, "
            f"the first {more[0]}; it is of a larger encoder; {FIX}"
        )


def _may_lack(name: str) -> bool:
    """Return whether old files lack this tensor: BatchNorm's step counters, and the exponent of our GeM pooling."""
    return name.endswith("num_batches_tracked") or name == "avgpool.p"


def _without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the prefix ("", "encoder.", "module.", ...) with which most names fit the encoder."""
    probe = next(iter(own))
    prefixes = {key[: -len(probe)] for key in state if key == probe or key.endswith(f".{probe}")} | {""}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in state for name in own))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def resize_positions(stored: Tensor, grid: tuple[int, int], num_prefix: int = 1) -> Tensor:
    """Resize position embeddings (1, num_prefix + h*w, D) to another grid of patches (rows, columns), bicubic.

    The first num_prefix (of the class token) are kept. The stored grid is assumed to be a square, or else to have the
    proportions of `grid`. The embeddings are returned unchanged if the number of patches is equal.
    """
    prefix, patches = stored[:, :num_prefix], stored[:, num_prefix:]
    if patches.shape[1] == math.prod(grid):
        return stored
    rows = columns = math.isqrt(patches.shape[1])
    if rows * columns != patches.shape[1]:
        rows = round(math.sqrt(patches.shape[1] * grid[0] / grid[1]))
        columns = rows * grid[1] // grid[0]
    if rows * columns != patches.shape[1]:
        raise ValueError(
            f"model.weights: {patches.shape[1]} position embeddings form neither a square nor a grid of the "
            f"proportions of {grid[0]} x {grid[1]}; train at the data.height and data.width of that file"
        )
    as_map = patches.float().unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
    resized = F.interpolate(as_map, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(stored.dtype)], dim=1)
