"""Published ImageNet weights of encoders: their URLs, torch's cache, and the download."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from reid.files import hold

IBN_FILES = {"resnet50_ibn_a": "resnet50_ibn_a-d9d0bb7b.pth", "resnet101_ibn_a": "resnet101_ibn_a-59ea0ac6.pth"}


def fix_of(name: str) -> str:
    """Return what to do for an encoder without ImageNet weights that a program may fetch; "" if there are some."""
    if name.startswith("osnet"):
        return "download its file from torchreid's model zoo and give its path as model.weights"
    if name.startswith("solider"):
        return "download its file from the page of SOLIDER and give its path as model.weights"
    return "use model.weights = none" if name == "resnet10" else ""


def url_of(name: str) -> str:
    """Return the URL of an encoder's ImageNet weights: IBN-Net's for IBN-a, else torchvision's.

    Those are IMAGENET1K_V1, from which BoT and the papers that it is compared with start. V2 is the better classifier,
    but its results could not be compared with theirs; it can be given as a local file.
    """
    from torchvision.models import get_model_weights

    if name in IBN_FILES:
        return f"https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{IBN_FILES[name]}"
    if fix := fix_of(name):
        raise ValueError(f"model.weights = imagenet: there are no ImageNet weights for {name} to fetch; {fix}")
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
            f"machine with internet run `reid model fetch {name}` and copy the file into that folder, or "
            "give model.weights a local file, or none"
        ) from error
    return path
