"""A CSV table with the columns path, identity, camera and split: any dataset, without its own reader."""

from pathlib import Path
from typing import NamedTuple

from reid.data.table import read_table, relative_path
from shards.labels import describe_lookalikes
from shards.records import SPLITS, UNKNOWN_CAMERA, RawDataset, Record, WrongLayoutError, list_few, number_from_one

NAME = "csv"
NOTICE = "Images listed by a table of yours: their terms of use hold for these shards, too."
REQUIRED = ("path", "identity", "split")
OPTIONAL = ("camera",)
HEADER = "path,identity,camera,split"


class Row(NamedTuple):
    """One line of the table; camera is empty if unknown."""

    line: int
    path: Path
    identity: str
    camera: str
    split: str


def read(root: Path, table: Path | None = None) -> RawDataset:
    """Read the images that a CSV lists.

    The first line is the header; camera may be absent or empty (camid -1), other columns are refused. Identities and
    cameras are any text and are numbered from 1 in sorted order over all splits. A path that does not exist counts as
    a broken image in the build. Paths start from `root`; without `table`, `root` is the CSV itself or a folder with
    exactly one CSV.

    Raises ValueError with the table, the line and the fix.
    """
    table, root = _locate(root, table)
    rows = [_parse_row(fields, line, table, root) for line, fields in read_table(table, REQUIRED, OPTIONAL)]
    if not rows:
        raise ValueError(f"{table}: no row below the header; write one line per image: {HEADER}")
    lines: dict[tuple[str, Path], int] = {}
    for row in rows:
        first = lines.setdefault((row.split, row.path), row.line)
        if first != row.line:
            raise ValueError(f"{table}, lines {first} and {row.line}: the same {row.split} image twice; keep one line")
    pids = number_from_one(row.identity for row in rows)
    camids = number_from_one(row.camera for row in rows if row.camera)
    records = [
        Record(row.path, pids[row.identity], camids.get(row.camera, UNKNOWN_CAMERA), row.split, row.identity)
        for row in rows
    ]
    warnings = describe_lookalikes("identities", pids) + describe_lookalikes("cameras", camids)
    return RawDataset(NAME, root, records, None, NOTICE, warnings=warnings)


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


def _parse_row(fields: dict[str, str], line: int, table: Path, root: Path) -> Row:
    where = f"{table}, line {line}"
    if fields["split"] not in SPLITS:
        raise ValueError(f"{where}: split {fields['split']!r} is unknown; use {', '.join(SPLITS)}")
    # Shards store the path as `source`, so it must be relative: valid on other machines, without this one's folders.
    path = root / relative_path(fields["path"], root, where)
    return Row(line, path, fields["identity"], fields["camera"], fields["split"])
