"""Initial weights of encoders: torchvision's published files in torch's cache, or a local file of tensors."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from reid.files import hold
from reid.model.parts import find_prefix, flatten, list_rest, list_top_names, may_lack, name_prefix
from reid.model.positions import POSITIONS, TOKENS, Grid, find_stated_grid, grid_of, infer_grid, resize_positions
from reid.model.weights_file import read_file

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


def load_weights(encoder: nn.Module, path: Path, grid: Grid | None = None) -> str:
    """Load a file into an encoder: of ImageNet, of a re-ID model, or with any other prefix before the names.

    Tensors that are no part of the encoder, such as a classifier, are left out. Position embeddings are resized.

    Args:
        encoder: receives the tensors.
        path: a .safetensors file or one of torch.save, also with the tensors in "state_dict" or "model".
        grid: rows and columns of patches that the file's position embeddings are for, if the file does not say.

    Returns:
        What was loaded and what was left out, for the log.

    Raises:
        ValueError: a tensor of the encoder is missing or has another shape, the file holds the encoder more than once
            or is of an encoder with more layers, or the grid of its position embeddings is unknown.
    """
    own = encoder.state_dict()
    content, header = read_file(path)
    flat = flatten(content)
    prefix, hint = find_prefix(flat, own, path)
    under = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
    state = {name: value for name, value in under.items() if isinstance(value, Tensor) and ": " not in name}
    try:
        resized = _fit_positions(encoder, own, state, find_stated_grid(path, header, state), grid)
    except ValueError as error:
        raise ValueError(f"model.weights = {path}: {error}") from error
    other_shape = {name for name, value in own.items() if name in state and state[name].shape != value.shape}
    try:  # torchvision's modules translate the names of old files as they load
        found = encoder.load_state_dict({n: v for n, v in state.items() if n not in other_shape}, strict=False)
    except RuntimeError as error:  # only torch knows that a tensor with an old name has another shape
        raise ValueError(f"model.weights = {path}: {str(error).splitlines()[-1].strip()}; {FIX}") from error
    needed = [name for name in own if not may_lack(name)]
    wrong = [name for name in needed if name in found.missing_keys or name in other_shape]
    if wrong:
        how = "of another shape" if wrong[0] in other_shape else "missing"
        raise ValueError(
            f"model.weights = {path}: {len(needed) - len(wrong)} of the encoder's {len(needed)} tensors fit; the first "
            f"that does not is {wrong[0]} ({how}); the file holds {list_top_names(content)}; {hint or FIX}"
        )
    more = [name for name in found.unexpected_keys if _changes_features(name, own)]
    if more:
        raise ValueError(
            f"model.weights = {path}: all {len(needed)} tensors of the encoder fit, but the file has {len(more)} more, "
            f"the first {more[0]}; it is of a larger or another encoder; {FIX}"
        )
    for name, value in encoder.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"model.weights = {path}: {name} has values that are not finite; give another file")
    used = {prefix + name for name in state.keys() - set(found.unexpected_keys)}
    where = f" under {name_prefix(prefix)}" if prefix else ""
    initial = "; not in it: avgpool.p" if "avgpool.p" in found.missing_keys else ""
    return f"{path}: {len(needed)} tensors{where}{resized}; left out: {list_rest(flat, prefix, used)}{initial}"


def _fit_positions(
    encoder: nn.Module, own: Mapping[str, Tensor], state: dict[str, Tensor], stated: Grid | None, given: Grid | None
) -> str:
    """Resize the position embeddings in `state` to the encoder's grid, and return what was done, for the log."""
    grid, name = grid_of(encoder), next((name for name in POSITIONS if name in own), "")
    if grid is None or not name:
        if given:
            raise ValueError(
                f"model.weights_grid = {list(given)}: the encoder has no grid of patches; leave it at null"
            )
        return ""
    stored, num_prefix = state.get(name), own[name].shape[1] - math.prod(grid)
    if stored is None or stored.ndim != 3 or own[name].ndim != 3 or stored.shape[2] != own[name].shape[2]:
        return ""  # refused later
    if stated and given and stated != given:
        raise ValueError(
            f"model.weights_grid = {list(given)}, but the file says {list(stated)}; leave model.weights_grid at null"
        )
    num_tokens = sum(state[token].shape[1] for token in TOKENS if token in state and state[token].ndim == 3)
    known = stated or given or infer_grid(stored.shape[1], grid, num_prefix, num_tokens)
    state[name] = resize_positions(stored, grid, known, num_prefix)
    how = "" if stated or given else " (assumed: the file does not say)"
    to = "" if known == grid else f", resized to {grid[0]} x {grid[1]}"
    return f", position embeddings of {known[0]} x {known[1]} patches{how}{to}"


def _changes_features(name: str, own: Iterable[str]) -> bool:
    """Return whether a tensor that the encoder lacks would change its features: it belongs to a layer or a token.

    A classifier, a projection, or a token for another purpose (mask_token, sie_embed) would not.
    """
    if name.startswith(HEADS) or may_lack(name):
        return False
    layers = {re.sub(r"\d+", "", key.split(".")[0]) for key in own} | {*TOKENS, "norm_pre"}
    return re.sub(r"\d+", "", name.split(".")[0]) in layers
