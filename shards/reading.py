"""The choice of a reader: its flags, and the other readers that fit a folder."""

import argparse
import contextlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shards.readers import (
    coco,
    csv_file,
    cuhk03,
    dukemtmc,
    folder,
    ltcc,
    market1501,
    mot,
    msmt17,
    occluded_duke,
    prcc,
    tracking,
    tracks,
    vehicleid,
    veri776,
)
from shards.records import RawDataset, WrongLayoutError, looks_published

DATASETS = (market1501, dukemtmc, occluded_duke, msmt17, cuhk03, ltcc, prcc, veri776, vehicleid)
MODULES = (*DATASETS, folder, csv_file, mot, coco, tracks)
# datasets in the layout of others, which are named to the user only if the counts are theirs
SAME_LAYOUT = (occluded_duke.NAME, msmt17.IN_MARKET_LAYOUT)
READERS: dict[str, Callable[..., RawDataset]] = {reader.NAME: reader.read for reader in MODULES}
# argument of a `read` -> flag; a reader has those that its `read` has
READER_FLAGS = {
    "table": "--csv",
    "boxes": "--boxes",
    "extra": "--extra",
    "with_val": "--without-val",
    "queries": "--queries",
    "vehicles": "--vehicles",
    "draw": "--draw",
    "ids": "--ids",
    "merge": "--merge",
    "every": "--every",
    "min_height": "--min-height",
    "min_visibility": "--min-visibility",
    "annotations": "--json",
    "identity": "--identity",
    "camera": "--camera",
}


def add_reader_flags(parser: argparse.ArgumentParser) -> None:
    """Add the reader and the flags of all readers."""
    add = parser.add_argument
    add("reader", choices=READERS, help="how the raw dataset is laid out")
    add("--root", type=Path, required=True, help="the raw dataset's folder; for csv also the CSV file")
    add("--csv", dest="table", type=Path, help="csv only: the table, if it is not the only CSV in --root")
    add("--boxes", help="cuhk03: detected (default) or labeled; csv: pixels (default) or normalized")
    help_extra = "csv only: further columns of the table, which are stored with each image"
    add("--extra", type=lambda names: names.split(","), metavar="COLUMN,...", help=help_extra)
    add("--without-val", dest="with_val", action="store_const", const=False, help="msmt17 only: train without val")
    add("--queries", choices=prcc.QUERIES, help="prcc only: clothes changed since the gallery (default), or the same")
    add("--vehicles", type=int, choices=vehicleid.TESTED, help="vehicleid only: which test list; default: 800")
    add("--draw", type=int, metavar="N", help="vehicleid only: another number draws another gallery; default: 0")
    help_ids = "mot, tracks: a track number of two cameras is one person, or a person in each"
    add("--ids", choices=tracking.IDS, help=help_ids)
    help_merge = "mot, tracks: a table camera,track,identity of the tracks that are one person"
    add("--merge", type=Path, metavar="CSV", help=help_merge)
    add("--every", type=int, metavar="N", help="mot, tracks: every N-th frame; default: 1")
    add("--min-height", type=float, metavar="PIXELS", help="mot, tracks: leave lower boxes out; default: 0")
    add("--min-visibility", type=float, metavar="SHARE", help="mot: leave people out who are hidden; default: 0")
    add("--json", dest="annotations", type=Path, help="coco: the file, if it is not the only .json in --root")
    add("--identity", metavar="ATTRIBUTE", help="coco: of an annotation, that says who it is")
    add("--camera", metavar="ATTRIBUTE", help="coco: of an image, that says which camera took it")


def read_dataset(options: argparse.Namespace) -> RawDataset:
    """Return what the chosen reader reads. Raise ValueError, with the readers that fit, if it does not."""
    given = {name: getattr(options, name) for name in READER_FLAGS if getattr(options, name) is not None}
    for name in given:
        readers = [reader for reader, read in READERS.items() if name in inspect.signature(read).parameters]
        if options.reader not in readers:
            others = " and ".join(readers)
            raise ValueError(
                f"{READER_FLAGS[name]}: not an option of `{options.command} {options.reader}`, only of {others}"
            )
    try:
        raw = READERS[options.reader](options.root, **given)
    except WrongLayoutError as error:
        if others := _find_readers(options.root, options.reader):
            raise ValueError(f"{error}; {others} reads {options.root}") from error
        raise
    if options.reader == folder.NAME and (others := _find_readers(options.root, options.reader)):
        return replace(raw, warnings=(*raw.warnings, f"{others} reads {options.root}, too, and may know cameras"))
    far = raw.published and not looks_published(raw)
    if far and (others := _find_readers(options.root, options.reader, looks_published)):
        return replace(raw, warnings=(*raw.warnings, f"the counts of images are those of {others}"))
    return raw


def _find_readers(root: Path, reader: str, fits: Callable[[RawDataset], bool] = bool) -> str:
    """Return the other readers that can read this folder and whose result `fits`."""
    found = []
    for name, read in READERS.items():
        with contextlib.suppress(ValueError, OSError):
            if name == reader:
                continue
            raw = read(root)
            if fits(raw) and (raw.name not in SAME_LAYOUT or looks_published(raw)):
                found.append(f"`build {name}`")
    return " or ".join(found)
