"""A CSV table with the columns path, identity, camera and split: any dataset, without its own reader."""

from pathlib import Path

from reid.data.table import read_table
from shards.labels import describe_lookalikes
from shards.records import SPLITS, UNKNOWN_CAMERA, RawDataset, Record, WrongLayoutError, list_few, number_from_one

NAME = "csv"
NOTICE = "Images listed by a table of yours: their terms of use hold for these shards, too."
REQUIRED = ("path", "identity", "split")
OPTIONAL = ("camera",)
HEADER = "path,identity,camera,split"


def read(root: Path, table: Path | None = None) -> RawDataset:
    """Read the images that a CSV lists.

    The first line is the header; camera may be absent or empty (camid -1), other columns are refused. Identities and
    cameras are any text and are numbered from 1 in sorted order over all splits. A path that does not exist counts as
    a broken image in the build. Paths start from `root`; without `table`, `root` is the CSV itself or a folder with
    exactly one CSV.

    Raises ValueError with the table, the line and the fix.
    """
    table, root = _locate(root, table)
    rows = []
    for line, row in read_table(table, root, REQUIRED, OPTIONAL):
        if row["split"] not in SPLITS:
            raise ValueError(f"{table}, line {line}: split {row['split']!r} is unknown; use {', '.join(SPLITS)}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{table}: no row below the header; write one line per image: {HEADER}")
    pids = number_from_one(row["identity"] for row in rows)
    camids = number_from_one(row["camera"] for row in rows if row["camera"])
    records = [
        Record(
            root / row["path"],
            pids[row["identity"]],
            camids.get(row["camera"], UNKNOWN_CAMERA),
            row["split"],
            row["identity"],
        )
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
