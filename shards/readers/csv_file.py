"""A CSV table of images or of boxes in pictures: any dataset, without its own reader."""

import contextlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from reid.data.table import read_table
from shards.boxes import CORNERS, SIZED, UNITS, Box, check_units, parse_box
from shards.labels import check_sides, describe_lookalikes
from shards.records import SPLITS, UNKNOWN_CAMERA, RawDataset, Record, WrongLayoutError, list_few, number_from_one
from shards.video import MAX_FRAME, is_video

NAME = "csv"
NOTICE = "Images listed by a table of yours: their terms of use hold for these shards, too."
REQUIRED = ("path", "identity")
OPTIONAL = ("split", "camera", "time", "frame", *SIZED, *CORNERS)
HEADER = "path,identity,camera,split"

_Row = tuple[str, dict[str, str]]  # where it is, for errors, and its fields


def read(root: Path, table: Path | None = None, boxes: str = "pixels", extra: Sequence[str] = ()) -> RawDataset:
    """Read the images that a CSV lists.

    The first line is the header; camera may be absent or empty (camid -1), split and time may be absent, a path that
    is a video needs frame, other columns are refused. Identities and cameras are any text and are numbered from 1 in
    sorted order over all splits. A path that does not exist counts as a broken image in the build.

    Args:
        root: the folder that the paths start from; without `table`, the CSV itself or a folder with exactly one CSV.
        table: the CSV.
        boxes: the unit of the columns x, y, width, height or x1, y1, x2, y2: one of UNITS.
        extra: further columns, which are stored with the images.

    Raises:
        ValueError: with the table, the line and the fix.
    """
    if boxes not in UNITS:
        raise ValueError(f"--boxes {boxes}: use {' or '.join(UNITS)}")
    table, root = _locate(root, table)
    if taken := [name for name in extra if name in (*REQUIRED, *OPTIONAL)]:
        raise ValueError(f"--extra {taken[0]}: the column {taken[0]} is read anyway; remove it from --extra")
    distinct = ("split", "frame", *SIZED, *CORNERS)
    listed = read_table(table, root, REQUIRED, OPTIONAL, extra=extra, distinct=distinct)
    rows = [(f"{table}, line {line}", row) for line, row in listed]
    if not rows:
        raise ValueError(f"{table}: no row below the header; write one line per image: {HEADER}")
    has_splits = any(row["split"] for _, row in rows)
    for where, row in rows:
        if row["split"] not in SPLITS and has_splits:
            raise ValueError(f"{where}: split {row['split']!r} is unknown; use {', '.join(SPLITS)}")
    check_sides((row["split"], row["identity"], where) for where, row in rows)
    pids = number_from_one(row["identity"] for _, row in rows)
    camids = number_from_one(row["camera"] for _, row in rows if row["camera"])
    records = [
        Record(
            root / row["path"],
            pids[row["identity"]],
            camids.get(row["camera"], UNKNOWN_CAMERA),
            row["split"],
            row["identity"],
            box,
            _parse_frame(row, where),
            _parse_time(row["time"] or row["frame"], where),
            tuple((name, row[name]) for name in extra),
        )
        for (where, row), box in zip(rows, _read_boxes(rows, table, boxes), strict=True)
    ]
    warnings = describe_lookalikes("identities", pids) + describe_lookalikes("cameras", camids)
    cameras = {camid: name for name, camid in camids.items()}
    return RawDataset(NAME, root, records, None, NOTICE, warnings=warnings, cameras=cameras)


def _parse_frame(row: dict[str, str], where: str) -> int | None:
    """Return the frame of a video, None for a picture."""
    if not is_video(Path(row["path"])):
        if row["frame"]:
            raise ValueError(f"{where}: frame {row['frame']!r}, but {row['path']} is no video; leave frame empty")
        return None
    if not (row["frame"].isascii() and row["frame"].isdecimal() and 0 < int(row["frame"]) < MAX_FRAME):
        raise ValueError(
            f"{where}: frame {row['frame']!r} of {row['path']}; give the number of the frame, counted from 1"
        )
    return int(row["frame"])


def _parse_time(text: str, where: str) -> float | None:
    """Return a number as it is, a date and time in seconds; None if there is none."""
    if not text:
        return None
    for parse in (float, lambda written: datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp()):
        with contextlib.suppress(ValueError):
            if math.isfinite(time := parse(text)):
                return time
    raise ValueError(f"{where}: time {text!r} is no number and no date; write 12.5 or 2026-01-31 08:15:00")


def _read_boxes(rows: Sequence[_Row], table: Path, units: str) -> list[Box] | list[None]:
    """Return the box of each row; None for all rows if no row has one."""
    used = [names for names in (SIZED, CORNERS) if any(row[name] for _, row in rows for name in names)]
    if not used:
        if units != UNITS[0]:
            raise ValueError(
                f"{table}: --boxes {units}, but no column {' or '.join(SIZED[:1] + CORNERS[:1])} with boxes"
            )
        return [None] * len(rows)
    if len(used) > 1:
        raise ValueError(f"{table}: has boxes as {','.join(SIZED)} and as {','.join(CORNERS)}; keep one of them")
    for where, row in rows:
        if empty := [name for name in used[0] if not row[name]]:
            raise ValueError(f"{where}: no {empty[0]}; each row needs a box of {', '.join(used[0])}, or none has one")
    found = [parse_box([row[name] for name in used[0]], used[0], where, units) for where, row in rows]
    check_units(found, str(table), "give --boxes normalized")
    return found


def _locate(root: Path, table: Path | None) -> tuple[Path, Path]:
    """Return the table and the folder that its paths start from."""
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder; give --root the CSV or the folder of its images")
    if table is not None:
        if not table.exists():
            raise ValueError(f"{table}: no such file; give --csv a table with the header {HEADER}")
        if not root.is_dir():
            raise ValueError(f"{root}: not a folder; with --csv, --root is the folder that the paths start from")
        return table, root
    if root.suffix.lower() == ".zip" and root.is_file():
        raise ValueError(f"{root}: zip files are not read; unzip it and give --root the folder")
    if not root.is_dir():
        return root, root.parent
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and not path.name.startswith("."))
    if len(tables) != 1:
        found = list_few([path.name for path in tables]) or "none"
        raise WrongLayoutError(f"{root}: exactly one .csv was expected, found: {found}; name it with --csv")
    return tables[0], root
