"""`reid model`: lists encoders, downloads their weights, and shows what a file of weights holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reid.config import DataConfig, ModelConfig
from reid.files import hash_file
from reid.model.contents import describe_file
from reid.model.encoders import ENCODERS, build_encoder
from reid.model.hub import resolve
from reid.model.preprocessing import own_preprocessing
from reid.model.published import cached_file, fetch, fix_of
from reid.model.timm_models import TIMM
from reid.program import call, name_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `reid model list`, `fetch NAME ...` or `inspect FILE`.

    Returns the exit status, 2 for an error of the user.
    """
    parser = argparse.ArgumentParser(
        prog=name_program("python -m reid.model"), description="Encoders and their weights."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the encoders, their parameters, and whether their weights are in the cache")
    fetching = commands.add_parser("fetch", help="download weights into the cache, for machines without internet")
    fetching.add_argument("names", nargs="+", metavar="NAME", help=f"e.g. resnet50, or {TIMM}<a model of timm>")
    inspecting = commands.add_parser("inspect", help="what a file of weights holds, and which encoders it fits")
    inspecting.add_argument("file", metavar="FILE", help="as model.weights: a file, or the folder of a run")
    names = f"compare only with this encoder, also {TIMM}<name>; may be repeated"
    inspecting.add_argument("--encoder", action="append", metavar="NAME", help=names)
    inspecting.add_argument(
        "--key", default="", metavar="PART", help="as model.weights_key: only this part of the file"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "inspect":
            print(describe_file(Path(resolve(options.file)), options.encoder or ENCODERS, options.key))
        if options.command == "list":
            _list()
        for name in options.names if options.command == "fetch" else []:
            _fetch(name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _list() -> None:
    height, width = DataConfig().image_size
    print(f"default size of all: {height} x {width} pixels (data.height, data.width)")
    print(f"{'encoder':<18}{'dim':>5}{'parameters':>13}  {'mean':<18}{'std':<18}{'resized':<10}ImageNet weights")
    for name in ENCODERS:
        with torch.device("meta"):
            encoder, dim = build_encoder(ModelConfig(encoder=name, weights="none"), (height, width))
        size = sum(parameter.numel() for parameter in encoder.parameters())
        own = own_preprocessing(name)
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (own.mean, own.std))
        where = fix_of(name) or f"{cached_file(name)}{'' if cached_file(name).is_file() else ' (not fetched)'}"
        print(f"{name:<18}{dim:>5}{size:>13,}  {mean:<18}{std:<18}{own.interpolation:<10}{where}")
    print(
        f"{TIMM + '<name>':<18}  any model of timm (pip install timm); timm/hf-hub:ORG/NAME: one of Hugging Face's hub"
    )


def _fetch(name: str) -> None:
    """Download weights, and print their hash, with which a copy on another machine can be compared."""
    if name.startswith(TIMM):
        build_encoder(ModelConfig(encoder=name, weights="imagenet"), DataConfig().image_size)
        print(f"{name}: in the Hugging Face cache")
        return
    if name not in ENCODERS:
        raise ValueError(f"{name} is not an encoder; choose from {', '.join(ENCODERS)}, or timm/<a model of timm>")
    path = fetch(name)
    print(f"{path} sha256 {hash_file(path)}")


if __name__ == "__main__":
    sys.exit(call(main))
