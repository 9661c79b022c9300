"""The command line: `reid shards build | split | merge | verify | stats | stage | synth | synth-footage`."""

import argparse
import io
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reid.data.manifest import load_manifest
from reid.program import Parser, call, convert_os_errors, name_program
from shards.boxes import Cropping
from shards.build import MAX_BROKEN, build
from shards.checks import run_checks
from shards.images import Encoding
from shards.merge import merge
from shards.pedestrians import dataset as pedestrians
from shards.pedestrians import footage as film
from shards.reading import add_reader_flags, read_dataset
from shards.records import RawDataset, name_dataset
from shards.splitting import WAYS, SplitRule, format_counts, split_dataset, write_table
from shards.stage import stage
from shards.summary import format_build, format_verification, to_json
from shards.verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status, 1 if `verify` found damage.

    What the user can fix ends the program with one line on stderr and status 2.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    # flags may be written with dashes or underscores
    options = _parser().parse_args([re.sub("^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in words])
    return call(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    commands = {
        "build": _build,
        "split": _split,
        "merge": _merge,
        "verify": _verify,
        "stats": _stats,
        "stage": _stage,
        "synth": _synth,
        "synth-footage": _synth_footage,
    }
    with convert_os_errors():
        return commands[options.command](options)


def _parser() -> Parser:
    parser = Parser(prog=name_program("python -m shards"), description="Raw datasets to WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="write a dataset as shards")
    add_reader_flags(building)
    _add_splitting(building)
    add = building.add_argument
    add("--out", type=Path, required=True, help="folder for the shards; an earlier build is replaced")
    size = building.add_mutually_exclusive_group()
    size.add_argument("--shards", type=int, metavar="N", help="train shards; default: a power of two, up to 64")
    size.add_argument("--shard-size", type=float, metavar="MIB", help="aim at shards of this size instead")
    add("--workers", type=int, default=1, metavar="N", help="processes; the bytes stay the same")
    add(
        "--size",
        metavar="HEIGHTxWIDTH",
        help="re-encode images as JPEGs of this size; default: the original bytes or boxes",
    )
    add("--quality", type=int, metavar="Q", help="of the re-encoded JPEGs, 1 to 100; default: 95")
    help_pad = "share of a box's size that is added on each side; default %(default)g"
    add("--pad-box", type=float, default=Cropping.pad, metavar="SHARE", help=help_pad)
    help_min = "boxes with a shorter side count as broken images; default %(default)s"
    add("--min-box", type=int, default=Cropping.min_side, metavar="PIXELS", help=help_min)
    add("--dataset", metavar="NAME", help="name in keys and reports; default: the reader's")
    help_broken = "share of images, 0 to 1, that may be broken and are left out; default %(default)s"
    add("--max-broken", type=float, default=MAX_BROKEN, metavar="SHARE", help=help_broken)

    splitting = commands.add_parser("split", help="divide people into train and test; writes a CSV for `build csv`")
    add_reader_flags(splitting)
    _add_splitting(splitting, required=True)
    splitting.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table; it must not exist")

    merging = commands.add_parser("merge", help="write several folders of shards as one; people stay apart")
    merging.add_argument("shards", nargs="+", help="folders that `build` wrote")
    merging.add_argument("--out", type=Path, required=True, help="folder for the merged shards")
    merging.add_argument("--dataset", metavar="NAME", default="merged", help="name in reports; default: %(default)s")

    verifying = commands.add_parser("verify", help="check shards against their manifest")
    verifying.add_argument("out", help="folder that `build` wrote")
    verifying.add_argument("--decode", action="store_true", help="also decode every image")
    verifying.add_argument("--json", action="store_true", help="print JSON, for programs")

    counting = commands.add_parser("stats", help="draw how many images and cameras the identities have")
    counting.add_argument("shards", help="folder that `build` wrote")
    counting.add_argument("--out", type=Path, metavar="PICTURE", help="default: <folder>-stats.png, next to the folder")

    staging = commands.add_parser("stage", help="copy shards to a node's own disk, checked; many processes may call it")
    staging.add_argument("source", help="folder that `build` wrote")
    staging.add_argument("target", help="folder on the node's disk; an interrupted copy is continued")

    drawing = commands.add_parser("synth", help="draw a dataset of pedestrians in Market-1501's layout")
    drawing.add_argument("--out", type=Path, required=True, help="folder for the images")
    _add_counts(drawing, pedestrians.ARGUMENTS)

    filming = commands.add_parser("synth-footage", help="draw people who walk past cameras, in MOTChallenge's layout")
    filming.add_argument("--out", type=Path, required=True, help="folder for the sequences; it must be empty")
    _add_counts(filming, film.ARGUMENTS)
    return parser


def _add_counts(parser: argparse.ArgumentParser, arguments: Mapping[str, tuple[int, int | None, str]]) -> None:
    for name, (default, _, text) in arguments.items():
        flag, text = f"--{name.replace('_', '-')}", f"{text}; default: {default}"
        parser.add_argument(flag, type=int, default=default, metavar="N", help=text)


def _add_splitting(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add the flags of SplitRule. Without a default: one that is given without --test-share is refused."""
    add = parser.add_argument
    help_share = "for images without splits: share of the people to test, from 0 (train only) to 1 (test only)"
    add("--test-share", type=float, required=required, metavar="SHARE", help=help_share)
    help_by = "test random people (default), the people who came last, or cameras that training does not see"
    add("--by", choices=WAYS, help=help_by)
    help_distractors = "share of the test people who are in the gallery without a query; default: 0"
    add("--distractors", type=float, metavar="SHARE", dest="distractor_share", help=help_distractors)
    add("--seed", type=int, metavar="N", help="another seed divides differently; default: 0")


def _divide(raw: RawDataset, options: argparse.Namespace) -> RawDataset:
    names = ("test_share", "by", "distractor_share", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if given and "test_share" not in given:
        raise ValueError("--by, --distractors and --seed: also need --test-share, the share of people to test")
    return split_dataset(raw, SplitRule(**given)) if given else raw


def _encoding(size: str | None, quality: int | None) -> Encoding | None:
    if size is None:
        if quality is not None:
            raise ValueError(f"--quality {quality}: also needs --size; without it the original bytes are stored")
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size {size}: give HEIGHTxWIDTH in pixels, such as 256x128")
    return Encoding(int(height), int(width), *([] if quality is None else [quality]))


def _local(folder: str) -> Path:
    if "://" in folder:
        raise ValueError(f"{folder}: is a URL, and this command reads local folders only; copy the shards to one first")
    return Path(folder)


def _build(options: argparse.Namespace) -> int:
    encoding = _encoding(options.size, options.quality)
    cropping = Cropping(options.pad_box, options.min_box)
    raw = name_dataset(_divide(read_dataset(options), options), options.dataset)
    print(f"terms of use: {raw.notice}", file=sys.stderr)
    done = build(
        raw,
        options.out,
        dataset=options.dataset,
        num_shards=options.shards,
        shard_bytes=None if options.shard_size is None else options.shard_size * 2**20,
        encoding=encoding,
        cropping=cropping,
        workers=options.workers,
        max_broken=options.max_broken,
        progress=True,
    )
    print(format_build(done.manifest, done.ignored, done.warnings))
    print(f"shards of {done.manifest.dataset}: {options.out}")
    return 0


def _split(options: argparse.Namespace) -> int:
    raw = _divide(read_dataset(options), options)
    write_table(raw, options.out)
    print("\n".join([format_counts(raw), *(f"warning: {warning}" for warning in raw.warnings)]))
    words = [*name_program("python -m shards").split(), "build", "csv"]
    words += ["--root", str(raw.root), "--csv", str(options.out)]
    words += ["--boxes", "normalized"] if any(record.box and record.box.normalized for record in raw.records) else []
    words += ["--extra", ",".join(options.extra)] if options.extra else []
    print(f"build it with: {shlex.join(words)} --out <folder>")
    return 0


def _merge(options: argparse.Namespace) -> int:
    merged = merge([str(_local(folder)) for folder in options.shards], options.out, options.dataset)
    print(f"terms of use: {merged.manifest.notice}", file=sys.stderr)
    print(format_verification(merged, run_checks(merged.sightings, merged.manifest.distractor_pid)))
    print(f"shards of {merged.manifest.dataset}: {options.out}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    result = verify(_local(options.out), decode=options.decode)
    checks = run_checks(result.sightings, result.manifest.distractor_pid)
    print(json.dumps(to_json(result, checks), indent=2) if options.json else format_verification(result, checks))
    return 1 if result.damage else 0


def _stats(options: argparse.Namespace) -> int:
    from shards.stats import draw_stats, format_stats  # imports matplotlib, which takes a second

    shards = _local(options.shards)
    manifest = load_manifest(shards)
    # Not in the folder of shards: a build refuses to replace a folder with other files.
    path = options.out or shards.resolve().with_name(f"{shards.resolve().name}-stats.png")
    print(format_stats(manifest))
    print(f"picture: {draw_stats(manifest, path, shards)}")
    return 0


def _stage(options: argparse.Namespace) -> int:
    done = stage(_local(options.source), _local(options.target))
    size = f"{done.copied} shards, {done.bytes / 2**20:.1f} MiB copied"
    print(f"{options.target}: {size}, {done.found} were there")
    return 0


def _synth(options: argparse.Namespace) -> int:
    counts = pedestrians.synthesize(options.out, **{name: getattr(options, name) for name in pedestrians.ARGUMENTS})
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"pedestrians: {options.out}")
    return 0


def _synth_footage(options: argparse.Namespace) -> int:
    boxes = film.synthesize(options.out, **{name: getattr(options, name) for name in film.ARGUMENTS})
    words = [*name_program("python -m shards").split(), "build", "mot", "--root", str(options.out)]
    words += ["--ids", "shared", "--test-share", "0.3", "--shards", "8"]
    print(f"footage: {options.out} ({boxes} boxes); build it with: {shlex.join(words)} --out <folder>")
    return 0


if __name__ == "__main__":
    sys.exit(main())
