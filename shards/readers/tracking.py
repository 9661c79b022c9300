"""People followed through the frames of cameras: rows of frame, track and box become records. Shared by readers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reid.data.table import read_table
from reid.files import read_text
from shards.boxes import CORNERS, SIZED, Box, check_units, parse_box
from shards.records import (
    UNKNOWN_CAMERA,
    UNSPLIT,
    RawDataset,
    Record,
    is_image,
    list_few,
    list_folder,
    number_from_one,
)

IDS = ("shared", "per-camera")
COLUMNS = ("frame", "track", *SIZED, "confidence", "class", "visibility")  # of a file without a header
KNOWN = (*COLUMNS, *CORNERS)
_PEOPLE, _IGNORED = 1.0, 0.0  # a class, and a confidence, of MOTChallenge's ground truth


class Row(NamedTuple):
    """One person in one frame. where: file and line, for errors."""

    where: str
    frame: int
    track: str
    box: Box
    values: Mapping[str, float]  # of the columns confidence, class and visibility that the file has


@dataclass(frozen=True)
class Footage:
    """The rows of one camera, and its frames: a video, or number -> picture."""

    camera: str
    frames: Path | Mapping[int, Path]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Selection:
    """Which rows are kept.

    every: every n-th frame, from the first picture.
    min_height: pixels of a box.
    min_visibility: share of a person that is not hidden.
    """

    every: int = 1
    min_height: float = 0.0
    min_visibility: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"--every {self.every}: give 1 or more frames")
        if not self.min_height >= 0:
            raise ValueError(f"--min-height {self.min_height:g}: give pixels, 0 or more")
        if not 0 <= self.min_visibility <= 1:
            raise ValueError(f"--min-visibility {self.min_visibility:g}: give a share, from 0 to 1")

    def reason(self, row: Row, first: int) -> str:
        """Return the flag that leaves the row out, or ""."""
        if (row.frame - first) % self.every:
            return f"--every {self.every}"
        if row.box.bottom - row.box.top < self.min_height:
            return f"--min-height {self.min_height:g}"
        if self.min_visibility and "visibility" not in row.values:
            raise ValueError(f"{row.where}: no visibility, the ninth column; leave --min-visibility out")
        return (
            f"--min-visibility {self.min_visibility:g}" if row.values.get("visibility", 1) < self.min_visibility else ""
        )


def read_rows(path: Path) -> list[Row]:
    """Read a file of tracks: commas or spaces, one person in one frame per line, in the order of COLUMNS or a header.

    Raises ValueError, with file and line, if a line cannot be read or a track is in a frame twice.
    """
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: is empty; a line is frame,track,x,y,width,height")
    names = _split(lines[0][1])
    if _is_number(names[0]):
        names = list(COLUMNS)
    else:
        lines = lines[1:]
        _check_header(path, names)
        if not lines:
            raise ValueError(f"{path}: no row below the header; add rows, or remove the file")
    rows, seen = [], dict[tuple[int, str], str]()
    for where, line in lines:
        row = _parse_row(_split(line), names, where)
        if (first := seen.setdefault((row.frame, row.track), where)) != where:
            raise ValueError(f"{first} and {where}: track {row.track} is in frame {row.frame} twice; keep one")
        rows.append(row)
    check_units([row.box for row in rows], str(path))
    return rows


def _split(line: str) -> list[str]:
    return [field.strip() for field in (line.split(",") if "," in line else line.split())]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII | re.IGNORECASE) is not None


def _check_header(path: Path, names: Sequence[str]) -> None:
    wanted = "frame, track and x, y, width, height or x1, y1, x2, y2"
    boxes = CORNERS if set(CORNERS) <= set(names) else SIZED
    if missing := [name for name in ("frame", "track", *boxes) if name not in names]:
        raise ValueError(f"{path}: no column {missing[0]}; the first line names {list_few(names)}; give {wanted}")
    if {*names} & {*SIZED} and {*names} & {*CORNERS}:
        raise ValueError(f"{path}: has boxes as {','.join(SIZED)} and as {','.join(CORNERS)}; keep one of them")
    if others := [name for name in names if name not in KNOWN or names.count(name) > 1]:
        known = "confidence, class, visibility"
        raise ValueError(f"{path}: columns that are not read: {list_few(others)}; give {wanted} and, if known, {known}")


def _parse_row(fields: Sequence[str], names: Sequence[str], where: str) -> Row:
    if names[:1] and len(fields) < 6:
        raise ValueError(f"{where}: {len(fields)} fields; a line is frame,track,x,y,width,height")
    given = dict(zip(names, fields, strict=False))
    for name in ("frame", "track"):
        if not re.fullmatch(r"\d{1,12}(\.0*)?", given.get(name, ""), re.ASCII):
            reason = "is no track: a detector's output?" if name == "track" else "is no number of a frame"
            raise ValueError(f"{where}: {name} {given.get(name, '')!r} {reason}; give whole numbers from 0")
    sides = CORNERS if CORNERS[0] in given else SIZED
    box = parse_box([given.get(name, "") for name in sides], sides, where)
    # MOT15 and trackers fill the columns after the confidence with other things
    extra = ("confidence", "class", "visibility") if len(fields) <= len(COLUMNS) else ()
    values = {name: float(given[name]) for name in extra if _is_number(given.get(name, ""))}
    return Row(where, int(float(given["frame"])), str(int(float(given["track"]))), box, values)


def drop_ignored(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of MOTChallenge's ground truth that are walking people and are not marked as ignored."""
    return [
        row
        for row in rows
        if row.values.get("confidence") != _IGNORED and row.values.get("class", _PEOPLE) in (_PEOPLE, -1.0)
    ]


def number_frames(folder: Path) -> dict[int, Path]:
    """Return the pictures of a folder by the last number in their names. Raises ValueError if two have the same."""
    found: dict[int, Path] = {}
    for path in list_folder(folder):
        if not is_image(path) or path.is_dir():
            continue
        digits = re.search(r"\d{1,12}$", path.stem, re.ASCII)
        if digits is None:
            raise ValueError(f"{path}: ends with no number; name frames by their numbers, such as 000001.jpg")
        first = found.setdefault(int(digits[0]), path)
        if first != path:
            raise ValueError(f"{first} and {path.name}: are both frame {int(digits[0])}; keep one")
    if not found:
        raise ValueError(f"{folder}: no picture found; name frames by their numbers, such as 000001.jpg")
    return found


def make_dataset(
    name: str,
    root: Path,
    notice: str,
    sequences: Sequence[Footage],
    selection: Selection,
    ids: str | None = None,
    merge: Path | None = None,
    warnings: Sequence[str] = (),
) -> RawDataset:
    """Return the records of all cameras, without splits. With one camera, camids are unknown: no rule can use them.

    Args:
        ids: one of IDS: a track number in two cameras is one person, or two. None: such a number is refused.
        merge: a CSV with the columns camera,track,identity; other tracks are people of their own.

    Raises:
        ValueError: with the file, the line and the fix.
    """
    kept: list[tuple[str, Row, Path, int | None]] = []  # camera, row, picture or video, frame of the video
    left_out: Counter[str] = Counter()
    for footage in sequences:
        first = 1 if isinstance(footage.frames, Path) else min(footage.frames)
        for row in footage.rows:
            if reason := selection.reason(row, first):
                left_out[reason] += 1
            else:
                kept.append((footage.camera, row, *_find_frame(footage.frames, row)))
    if not kept:
        reasons = ", ".join(f"{count} by {reason}" for reason, count in left_out.items())
        raise ValueError(
            f"{root}: no box is left; left out: {reasons}; lower the thresholds" if left_out else f"{root}: no box"
        )
    people = _name_people([(camera, row) for camera, row, _, _ in kept], ids, merge)
    pids, camids = number_from_one(people), number_from_one(camera for camera, *_ in kept)
    notes = [f"{count} boxes were left out by {reason}" for reason, count in sorted(left_out.items())]
    if len(camids) == 1:
        notes.append("one camera: it is stored as unknown, or the same-camera rule would remove every match")
        camids = dict.fromkeys(camids, UNKNOWN_CAMERA)
    records = [
        Record(path, pids[person], camids[camera], UNSPLIT, person, row.box, frame, float(row.frame))
        for (camera, row, path, frame), person in zip(kept, people, strict=True)
    ]
    cameras = {camid: camera for camera, camid in camids.items()}
    return RawDataset(name, root, records, None, notice, warnings=(*warnings, *notes), cameras=cameras)


def _find_frame(frames: Path | Mapping[int, Path], row: Row) -> tuple[Path, int | None]:
    if isinstance(frames, Path):
        if row.frame < 1:
            raise ValueError(f"{row.where}: frame 0 of {frames.name}; count frames from 1")
        return frames, row.frame
    if row.frame not in frames:
        folder = next(iter(frames.values())).parent
        there = f"{folder} holds the frames {min(frames)} to {max(frames)}, {len(frames)} in all"
        raise ValueError(f"{row.where}: frame {row.frame} has no picture; {there}; add it, or correct the numbers")
    return frames[row.frame], None


def _name_people(rows: Sequence[tuple[str, Row]], ids: str | None, merge: Path | None) -> list[str]:
    """Return the identity of each row: its track, with the camera where tracks are numbered per camera."""
    if ids not in (None, *IDS):
        raise ValueError(f"--ids {ids}: use {' or '.join(IDS)}")
    if merge is not None:
        if ids is not None:
            raise ValueError("--ids and --merge: give one of them; the table says which tracks are one person")
        return _merge(rows, merge)
    if ids == "per-camera":
        return [f"{camera}-{row.track}" for camera, row in rows]
    first: dict[str, tuple[str, Row]] = {}
    for camera, row in rows if ids is None else ():
        other, found = first.setdefault(row.track, (camera, row))
        if other != camera:
            raise ValueError(
                f"{found.where} and {row.where}: track {row.track} is in two cameras, {other} and {camera}; give "
                "--ids shared (one person), --ids per-camera (two people) or --merge with a table"
            )
    return [row.track for _, row in rows]


def _merge(rows: Sequence[tuple[str, Row]], table: Path) -> list[str]:
    """Return the identities of a table; a track that it does not name is a person of its own.

    Raises ValueError if such a track has the name of a person of the table, or if a person is in a frame twice.
    """
    known = {(camera, row.track) for camera, row in rows}
    merged: dict[tuple[str, str], str] = {}
    for line, fields in read_table(table, table.parent, ("camera", "track", "identity"), distinct=("camera", "track")):
        key = fields["camera"], fields["track"]
        if key not in known:
            cameras = list_few(sorted({camera for camera, _ in known}))
            raise ValueError(f"{table}, line {line}: camera {key[0]} has no track {key[1]}; the cameras are {cameras}")
        merged[key] = fields["identity"]
    own = {key: "-".join(key) for key in known - merged.keys()}
    listed = set(merged.values())
    if taken := sorted(key for key, name in own.items() if name in listed):
        camera, track = taken[0]
        raise ValueError(
            f"{table}: the identity {own[taken[0]]} is also the name of track {track} of camera {camera}, which has no "
            "line; give it one with the same identity, or choose another identity"
        )
    people = [merged.get((camera, row.track)) or own[camera, row.track] for camera, row in rows]
    seen: dict[tuple[str, int, str], str] = {}
    for (camera, row), person in zip(rows, people, strict=True):
        if (first := seen.setdefault((camera, row.frame, person), row.where)) != row.where:
            raise ValueError(f"{first} and {row.where}: {person} is in frame {row.frame} twice; correct {table}")
    return people
