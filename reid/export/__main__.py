"""The export program: `reid export --checkpoint runs/x --format onnx --out x.onnx`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reid.config import normalize_flags
from reid.export import FORMATS, HALF_TOLERANCE, PLACES, TOLERANCE
from reid.model.hub import PATH_OR_HUB
from reid.program import Parser, call, name_program


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model. What the user can fix ends the program with one line on stderr and status 2."""
    options = _parser().parse_args(normalize_flags(sys.argv[1:] if arguments is None else arguments))
    call(lambda: _run(options))


def _parser() -> Parser:
    parser = Parser(prog=name_program("python -m reid.export"), description="A trained model for other programs.")
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help=PATH_OR_HUB)
    parser.add_argument("--format", choices=FORMATS, help="required without --push, which is of the format hub")
    out = "file, or for hub the folder, that is written; an earlier one is replaced; may be left out with --push"
    parser.add_argument("--out", default="", metavar="FILE", help=out)
    push = "upload the folder of --format hub to Hugging Face's hub"
    parser.add_argument("--push", default="", metavar="ORG/NAME", help=push)
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    images = "pictures or shards to compare on; default: the run's data, or noise"
    parser.add_argument("--images", default="", metavar="DIR", help=images)
    flip = "flip test: the features are means of those of an image and of its mirror image"
    parser.add_argument("--flip", action="store_true", help=flip)
    dimensions = "length of the features: one of the run's model.nested; default: all numbers"
    parser.add_argument("--dimensions", type=int, default=0, metavar="N", help=dimensions)
    half = "compute in float16 (of safetensors: store); input and output stay float32"
    parser.add_argument("--half", action="store_true", help=half)
    place = "of (images - mean) / std: in the graph, or left to the caller; default: inside for graphs"
    parser.add_argument("--normalization", choices=PLACES, help=place)
    share = "largest difference, as a share of the largest feature; default: "
    share += f"{TOLERANCE:g}, with --half {HALF_TOLERANCE:g}"
    parser.add_argument("--tolerance", type=float, help=share)
    return parser


def _run(options: argparse.Namespace) -> None:
    from reid.export.exporter import export  # after parsing: --help and a wrong flag need no torch
    from reid.export.publishing import publish

    if options.push and options.format not in (None, "hub"):
        raise ValueError(f"--push uploads the format hub; leave out --format {options.format}")
    if options.private and not options.push:
        raise ValueError("--private works only with --push ORG/NAME")
    if not options.push and not (options.format and options.out):
        raise ValueError(f"give --format ({', '.join(FORMATS)}) and --out, or --push ORG/NAME")
    if options.push or options.format == "hub":
        unused = [name for name in ("flip", "dimensions", "half", "normalization") if getattr(options, name)]
        if unused:
            raise ValueError(f"--{unused[0]} works only with the other formats; give it where the model is loaded")
        publish(options.checkpoint, options.out, options.push, options.private, images=options.images)
        return
    export(
        options.checkpoint,
        options.format,
        Path(options.out),
        images=options.images,
        tolerance=options.tolerance,
        flip=options.flip,
        dimensions=options.dimensions,
        half=options.half,
        normalization=options.normalization,
    )


if __name__ == "__main__":
    main()
