"""The command line: `python -m shards build | verify | synth`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shards import csv_file, folder, market1501
from shards.build import MAX_BROKEN, Build, build
from shards.records import RawDataset
from shards.summary import find_warnings, format_table
from shards.verify import verify

DATASETS = (market1501.NAME, folder.NAME, csv_file.NAME)
SHOWN = 20  # of a long list


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 on damage or on what the user can mend (said on stderr)."""
    options = _parser().parse_args(arguments)
    commands = {"build": _build, "verify": _verify, "synth": _synth}
    try:
        return commands[options.command](options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shards", description="Raw datasets to WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True)

    building = commands.add_parser("build", help="write a dataset as shards")
    building.add_argument("reader", choices=DATASETS, help="how the raw dataset is laid out")
    building.add_argument(
        "--root", type=Path, required=True, help="the raw dataset's folder; for csv also the CSV file"
    )
    building.add_argument("--csv", type=Path, help="csv only: the table, where it is not the one CSV in --root")
    building.add_argument("--out", type=Path, required=True, help="folder for the shards; an earlier build is replaced")
    building.add_argument("--shards", type=int, metavar="N", help="train shards; default: a power of two, up to 64")
    building.add_argument("--dataset", metavar="NAME", help="name in keys and reports; default: the reader's")
    building.add_argument(
        "--max-broken",
        type=float,
        default=MAX_BROKEN,
        metavar="FRACTION",
        help="share of images, 0 to 1, that may be broken and are left out; default %(default)s",
    )

    verifying = commands.add_parser("verify", help="check shards against their manifest")
    verifying.add_argument("out", type=Path, help="folder that `build` wrote")
    verifying.add_argument("--decode", action="store_true", help="decode every image, too")

    drawing = commands.add_parser("synth", help="draw a dataset of pedestrians in Market-1501's layout")
    drawing.add_argument("--out", type=Path, required=True, help="folder for the images")
    for name, text in SYNTH_OPTIONS.items():
        drawing.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    return parser


# Defaults are pedestrians.synthesize's own.
SYNTH_OPTIONS = {
    "identities_train": "identities to train on",
    "identities_test": "identities in query and gallery",
    "images_per_identity": "images of each identity, over all cameras",
    "cameras": "number of cameras",
    "distractors": "gallery images of nobody asked for (pid 0)",
    "junk": "gallery images to be dropped (pid -1)",
    "height": "pixels",
    "width": "pixels",
    "seed": "the same seed draws the same dataset",
}


def _read(options: argparse.Namespace) -> RawDataset:
    if options.csv is not None and options.reader != csv_file.NAME:
        raise ValueError(f"--csv {options.csv}: only `build csv` reads a table; leave it out or build csv")
    if options.reader == market1501.NAME:
        return market1501.read(options.root)
    if options.reader == folder.NAME:
        return folder.read(options.root)
    return csv_file.read(options.root, options.csv)


def _build(options: argparse.Namespace) -> int:
    raw = _read(options)
    print(f"terms of use: {raw.notice}", file=sys.stderr)
    done = build(
        raw,
        options.out,
        dataset=options.dataset,
        num_shards=options.shards,
        max_broken=options.max_broken,
        progress=True,
    )
    _print_build(done, options.out)
    return 0


def _print_build(done: Build, out: Path) -> None:
    print(format_table(done.manifest))
    if done.ignored:
        print(f"ignored: {done.ignored} files or folders that are no images of the dataset")
    skipped = done.manifest.skipped
    if skipped:
        print(f"broken and left out: {len(skipped)} images (all are listed in the manifest)")
        for entry in skipped[:SHOWN]:
            print(f"  {entry['source']}: {entry['reason']}")
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"shards of {done.manifest.dataset}: {out}")


def _verify(options: argparse.Namespace) -> int:
    result = verify(options.out, decode=options.decode, progress=True)
    print(format_table(result.manifest))
    for warning in find_warnings(result.sightings, result.manifest.distractor_pid):
        print(f"warning: {warning}")
    for damage in result.damage[:SHOWN]:
        print(f"damage: {damage}")
    if result.damage:
        shards = len({damage.shard for damage in result.damage})
        print(
            f"{options.out}: damaged: {len(result.damage)} findings in {shards} shards; copy them again or build again"
        )
        return 1
    print(f"{options.out}: whole" + (", every image decodes" if options.decode else ""))
    return 0


def _synth(options: argparse.Namespace) -> int:
    from shards.pedestrians import synthesize  # building and verifying need none of it

    given = {name: getattr(options, name) for name in SYNTH_OPTIONS if getattr(options, name) is not None}
    counts = synthesize(options.out, **given)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"pedestrians: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
