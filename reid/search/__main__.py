"""The search program: `reid search index | add | query | remove | info`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from reid.config import normalize_flags
from reid.config.schema import DTYPES
from reid.model.hub import PATH_OR_HUB
from reid.program import Parser, call, name_program
from reid.search import GALLERIES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. What the user can fix ends the program with one line on stderr and status 2."""
    options = _parser().parse_args(normalize_flags(sys.argv[1:] if arguments is None else arguments))
    from reid.search.commands import run  # after parsing: --help and a wrong flag need no torch

    call(lambda: run(options))


def _parser() -> Parser:
    parser = Parser(prog=name_program("python -m reid.search"), description="Search pictures of your own.")
    commands = parser.add_subparsers(dest="command", required=True)

    index = commands.add_parser("index", help="make an index of images")
    index.add_argument("--checkpoint", required=True, metavar="PATH", help=PATH_OR_HUB)
    index.add_argument("--out", required=True, dest="index", metavar="INDEX", help="a folder that does not exist yet")
    flip = "flip test: features are means of those of an image and of its mirror image, also those of later queries"
    dimensions = "length of the features, also of later queries: one of the run's model.nested; default: all numbers"
    index.add_argument("--dimensions", type=int, default=0, metavar="N", help=dimensions)
    index.add_argument("--flip", action="store_true", help=flip)
    half = "store features as float16: half the bytes; scores change by less than 0.001"
    index.add_argument("--half", action="store_true", help=half)
    _add_images(index)

    add = commands.add_parser("add", help="append images to an index, without those that it has")
    _add_index(add)
    _add_images(add)

    query = commands.add_parser("query", help="find what looks most like each photo")
    _add_index(query)
    query.add_argument("photos", nargs="+", metavar="PHOTO")
    query.add_argument("--top", type=int, default=10, metavar="K", help="results per photo; default: %(default)s")
    query.add_argument("--gallery", choices=GALLERIES, default="images", help="what is ranked; default: %(default)s")
    query.add_argument("--camera", default="", metavar="NAME", help="leave out images of this camera, e.g. the photos'")
    unknown = "say unknown if no score reaches this: a cosine, or thresholds.json of an evaluation of the model"
    query.add_argument("--threshold", default="", metavar="SCORE|FILE", help=unknown)
    at = "of a file: open_set/RATE or verification/RATE; default: the strictest"
    query.add_argument("--at", default="", metavar="NAME", help=at)
    query.add_argument("--out", default="", metavar="PAGE.html", help="write the results as a page with pictures")
    sources = "with --out: show pictures of these folders or shards; the index names them but is not trusted"
    query.add_argument("--images", nargs="+", default=[], metavar="DIR", help=sources)
    query.add_argument("--csv", default="", metavar="FILE")
    query.add_argument("--json", default="", metavar="FILE")
    _add_device(query)

    remove = commands.add_parser("remove", help="remove identities or images from an index, which is rewritten")
    remove.add_argument("index", metavar="INDEX")
    remove.add_argument("--identity", nargs="+", default=[], metavar="NAME")
    remove.add_argument("--path", nargs="+", default=[], metavar="PATH", help="as `query` prints it")

    info = commands.add_parser("info", help="what an index holds")
    info.add_argument("index", metavar="INDEX")
    return parser


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX")
    where = "default: where it was when the index was made"
    parser.add_argument("--checkpoint", default="", metavar="PATH", help=where)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures, or of shards")
    parser.add_argument("--csv", default="", metavar="FILE", help="pictures: columns path, identity, camera, time")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="shards: the splits; default: gallery")
    parser.add_argument("--prefix", default="", help="put before identities, to keep those of two datasets apart")
    unreadable = "unreadable images; default: %(default)s"
    parser.add_argument("--on_damage", choices=("skip", "stop"), default="skip", help=unreadable)
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="default: %(default)s")


if __name__ == "__main__":
    main()
