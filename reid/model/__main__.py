"""`reid model`: lists encoders, downloads their weights, and shows what a file of weights holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from reid.program import Parser, call, name_program


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `list`, `fetch NAME ...` or `inspect FILE`. What the user can fix ends the program with status 2."""
    options = _parser().parse_args(arguments)
    call(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from reid.model import commands  # after parsing: --help and a wrong flag need no torch

    if options.command == "inspect":
        commands.inspect_file(options.file, options.encoder, options.key)
    if options.command == "list":
        commands.list_encoders()
    for name in options.names if options.command == "fetch" else []:
        commands.fetch_weights(name)


def _parser() -> Parser:
    parser = Parser(prog=name_program("python -m reid.model"), description="Encoders and their weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the encoders, their parameters, and whether their weights are in the cache")
    fetching = commands.add_parser("fetch", help="download weights into the cache, for machines without internet")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="e.g. resnet50, or timm/<a model of timm>")
    inspecting = commands.add_parser("inspect", help="what a file of weights holds, and which encoders it fits")
    inspecting.add_argument("file", metavar="FILE", help="as model.weights: a file, or the folder of a run")
    names = "compare only with this encoder, also timm/<name>; may be repeated"
    inspecting.add_argument("--encoder", action="append", metavar="NAME", help=names)
    inspecting.add_argument(
        "--key", default="", metavar="PART", help="as model.weights_key: only this part of the file"
    )
    return parser


if __name__ == "__main__":
    main()
