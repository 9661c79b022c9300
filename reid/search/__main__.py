"""The search program: `python -m reid.search index | add | query | remove | info`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2, with one line on stderr, on what the user can mend."""
    options = _parser().parse_args(arguments)
    from reid.search.commands import COMMANDS  # after parsing: --help and a wrong flag need no torch

    try:
        COMMANDS[options.command](options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reid.search", description="Search pictures of your own.")
    commands = parser.add_subparsers(dest="command", required=True)

    making = commands.add_parser("index", help="make an index of images")
    making.add_argument("--checkpoint", required=True, metavar="PATH", help="a run's folder, or one of its checkpoints")
    making.add_argument("--out", required=True, metavar="INDEX", help="folder for the index; it must not exist")
    _add_images(making)

    adding = commands.add_parser("add", help="append images to an index; those that it has are passed over")
    adding.add_argument("index", metavar="INDEX")
    adding.add_argument(
        "--checkpoint", default="", metavar="PATH", help="default: where it lay when the index was made"
    )
    _add_images(adding)

    asking = commands.add_parser("query", help="find what looks most like each photo")
    asking.add_argument("index", metavar="INDEX")
    asking.add_argument("photos", nargs="+", metavar="PHOTO")
    asking.add_argument(
        "--checkpoint", default="", metavar="PATH", help="default: where it lay when the index was made"
    )
    asking.add_argument("--top", type=int, default=10, metavar="K", help="results per photo; default: %(default)s")
    asking.add_argument(
        "--gallery", choices=("images", "centroids"), default="images", help="what is ranked; default: %(default)s"
    )
    asking.add_argument(
        "--camera", default="", metavar="NAME", help="leave out images of this camera, e.g. the photos'"
    )
    asking.add_argument("--out", default="", metavar="PAGE.html", help="write the results as a page with pictures")
    asking.add_argument("--csv", default="", metavar="FILE")
    asking.add_argument("--json", default="", metavar="FILE")
    _add_device(asking)

    removing = commands.add_parser("remove", help="take identities or images out of an index; it is written anew")
    removing.add_argument("index", metavar="INDEX")
    removing.add_argument("--identity", nargs="+", default=[], metavar="NAME")
    removing.add_argument("--path", nargs="+", default=[], metavar="PATH", help="as `query` prints it")

    telling = commands.add_parser("info", help="what an index holds")
    telling.add_argument("index", metavar="INDEX")
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures, or of shards")
    parser.add_argument("--csv", default="", metavar="FILE", help="pictures: columns path, identity, camera, time")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="shards: the splits; default: gallery")
    parser.add_argument("--prefix", default="", help="put before identities, to keep those of two datasets apart")
    parser.add_argument(
        "--on_damage", choices=("skip", "stop"), default="skip", help="unreadable images; default: %(default)s"
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s"
    )
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="default: %(default)s")


if __name__ == "__main__":
    sys.exit(main())
