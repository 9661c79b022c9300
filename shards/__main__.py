"""The command line: `python -m shards build | verify | stats | stage | synth`."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reid.data.manifest import load_manifest
from shards.build import MAX_BROKEN, Build, build
from shards.checks import run_checks
from shards.images import Encoding
from shards.readers import csv_file, cuhk03, dukemtmc, folder, market1501, msmt17, veri776
from shards.records import RawDataset
from shards.stage import stage
from shards.summary import format_table, format_verification, to_json
from shards.verify import verify

# What each reader takes beside --root: command-line option -> the argument of its `read`.
READERS: dict[str, tuple[Callable[..., RawDataset], dict[str, str]]] = {
    market1501.NAME: (market1501.read, {}),
    dukemtmc.NAME: (dukemtmc.read, {}),
    msmt17.NAME: (msmt17.read, {"with_val": "with_val"}),
    cuhk03.NAME: (cuhk03.read, {"boxes": "boxes"}),
    veri776.NAME: (veri776.read, {}),
    folder.NAME: (folder.read, {}),
    csv_file.NAME: (csv_file.read, {"csv": "table"}),
}
SHOWN = 20  # of a long list


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 on damage or on what the user can mend (said on stderr)."""
    options = _parser().parse_args(arguments)
    commands = {"build": _build, "verify": _verify, "stats": _stats, "stage": _stage, "synth": _synth}
    try:
        return commands[options.command](options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shards", description="Raw datasets to WebDataset shards.")
    commands = parser.add_subparsers(dest="command", required=True)

    building = commands.add_parser("build", help="write a dataset as shards")
    building.add_argument("reader", choices=READERS, help="how the raw dataset is laid out")
    building.add_argument(
        "--root", type=Path, required=True, help="the raw dataset's folder; for csv also the CSV file"
    )
    building.add_argument("--csv", type=Path, help="csv only: the table, where it is not the one CSV in --root")
    building.add_argument("--boxes", choices=cuhk03.BOXES, help="cuhk03 only: whose boxes; default: detected")
    building.add_argument(
        "--without-val", dest="with_val", action="store_const", const=False, help="msmt17 only: train without val"
    )
    building.add_argument("--out", type=Path, required=True, help="folder for the shards; an earlier build is replaced")
    size = building.add_mutually_exclusive_group()
    size.add_argument("--shards", type=int, metavar="N", help="train shards; default: a power of two, up to 64")
    size.add_argument("--shard-size", type=float, metavar="MIB", help="aim at shards of this size instead")
    building.add_argument("--workers", type=int, default=1, metavar="N", help="processes; the bytes stay the same")
    building.add_argument(
        "--size", metavar="HEIGHTxWIDTH", help="re-encode every image as a JPEG of this size; default: bytes untouched"
    )
    building.add_argument("--quality", type=int, metavar="Q", help="of the re-encoded JPEGs, 1 to 100; default: 95")
    building.add_argument("--dataset", metavar="NAME", help="name in keys and reports; default: the reader's")
    building.add_argument(
        "--max-broken",
        type=float,
        default=MAX_BROKEN,
        metavar="FRACTION",
        help="share of images, 0 to 1, that may be broken and are left out; default %(default)s",
    )

    verifying = commands.add_parser("verify", help="check shards against their manifest")
    verifying.add_argument("out", help="folder that `build` wrote")
    verifying.add_argument("--decode", action="store_true", help="decode every image, too")
    verifying.add_argument("--json", action="store_true", help="print JSON, for programs")

    counting = commands.add_parser("stats", help="how images and cameras spread over identities, as a picture")
    counting.add_argument("shards", help="folder that `build` wrote")
    counting.add_argument(
        "--out", type=Path, metavar="PICTURE", help="default: <folder>-stats.png, beside the folder of shards"
    )

    staging = commands.add_parser("stage", help="copy shards to a node's own disk, checked; many processes may call it")
    staging.add_argument("source", help="folder that `build` wrote")
    staging.add_argument("target", help="folder on the node's disk; an interrupted copy is continued")

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


READER_OPTIONS = {"csv": "--csv", "boxes": "--boxes", "with_val": "--without-val"}


def _read(options: argparse.Namespace) -> RawDataset:
    read, arguments = READERS[options.reader]
    given = {name: getattr(options, name) for name in READER_OPTIONS if getattr(options, name) is not None}
    for name in given.keys() - arguments.keys():
        takers = ", ".join(reader for reader, (_, taken) in READERS.items() if name in taken)
        raise ValueError(f"{READER_OPTIONS[name]}: `build {options.reader}` has no use for it, only: {takers}")
    return read(options.root, **{arguments[name]: value for name, value in given.items()})


def _encoding(size: str | None, quality: int | None) -> Encoding | None:
    if size is None:
        if quality is not None:
            raise ValueError(f"--quality {quality}: needs --size, too; without it the original bytes are stored")
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size {size}: give HEIGHTxWIDTH in pixels, such as 256x128")
    return Encoding(int(height), int(width), *([] if quality is None else [quality]))


def _shard_bytes(mib: float | None) -> int | None:
    if mib is not None and not math.isfinite(mib):
        raise ValueError(f"--shard-size {mib}: give MiB above 0")
    return None if mib is None else int(mib * 2**20)


def _local(folder: str) -> Path:
    if "://" in folder:  # which Path would turn into the name of a folder that nobody meant
        raise ValueError(f"{folder}: is a URL, and this command reads local folders only; copy the shards to one first")
    return Path(folder)


def _build(options: argparse.Namespace) -> int:
    encoding = _encoding(options.size, options.quality)
    raw = _read(options)
    print(f"terms of use: {raw.notice}", file=sys.stderr)
    done = build(
        raw,
        options.out,
        dataset=options.dataset,
        num_shards=options.shards,
        shard_bytes=_shard_bytes(options.shard_size),
        encoding=encoding,
        workers=options.workers,
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
    result = verify(_local(options.out), decode=options.decode, progress=True)
    checks = run_checks(result.sightings, result.manifest.distractor_pid)
    if options.json:
        print(json.dumps(to_json(result, checks), indent=2))
    else:
        print(format_verification(result, checks))
    return 1 if result.damage else 0


def _stats(options: argparse.Namespace) -> int:
    from shards.stats import draw_stats, format_stats  # nothing else draws: matplotlib takes a second to load

    shards = _local(options.shards)
    manifest = load_manifest(shards)
    folder = shards.resolve()  # beside it: in a folder of shards a build suffers nothing else
    print(format_stats(manifest))
    print(f"picture: {draw_stats(manifest, options.out or folder.with_name(f'{folder.name}-stats.png'))}")
    return 0


def _stage(options: argparse.Namespace) -> int:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    done = stage(_local(options.source), _local(options.target), say=say, progress=True)
    size = f"{done.copied} shards, {done.bytes / 2**20:.1f} MiB copied"
    print(f"{options.target}: {size}, {done.found} were there")
    return 0


def _synth(options: argparse.Namespace) -> int:
    from shards.pedestrians.dataset import synthesize  # building and verifying need none of it

    given = {name: getattr(options, name) for name in SYNTH_OPTIONS if getattr(options, name) is not None}
    counts = synthesize(options.out, **given)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"pedestrians: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
