"""CSV tables that people write: read strictly, and every error names the table, the line and the fix."""

import csv
import difflib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from reid.files import read_text

SHOWN = 8  # columns in an error
# What other tools call our columns, where the spelling is too far off for a guess.
_OTHER_NAMES = {
    "path": ("file", "filename", "file_name", "filepath", "image", "img", "image_path", "picture"),
    "identity": ("id", "pid", "person", "person_id", "label", "class", "name", "subject"),
    "camera": ("cam", "camid", "cid", "view"),
    "split": ("set", "subset", "partition"),
    "time": ("date", "timestamp"),
    "x": ("left", "bb_left", "bbox_x"),
    "y": ("top", "bb_top", "bbox_y"),
    "width": ("w", "bb_width", "bbox_w"),
    "height": ("h", "bb_height", "bbox_h"),
    "x1": ("x_1", "xmin", "x_min"),
    "y1": ("y_1", "ymin", "y_min"),
    "x2": ("x_2", "xmax", "x_max", "right"),
    "y2": ("y_2", "ymax", "y_max", "bottom"),
}


def read_table(
    table: Path,
    root: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    extra: Sequence[str] | None = None,
    distinct: Sequence[str] = ("split",),
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the fields, stripped, of each row that is not empty; absent columns are "".

    Args:
        table: UTF-8, with or without a byte-order mark; commas; a header in the first line.
        root: the folder that the column `path`, if it is required, starts from; it is returned as `relative_path` does.
        required: columns that the header must name.
        optional: columns that it may name. Others are refused: their author expects that they are used.
        extra: further columns, which the user gives by --extra; they may be empty. None: there is no such flag.
        distinct: columns that two rows of one path must not share, if they are known.

    Raises:
        ValueError: the file cannot be read as such a table, or two rows have the same path and `distinct` columns.
    """
    lines: dict[tuple[str, ...], int] = {}
    text = read_text(table)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        _check_header(table, header, required, optional, extra)
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(header):
                raise ValueError(
                    f"{table}, line {reader.line_num}: more or fewer fields than the header: {len(row)}, not "
                    f"{len(header)}; quote fields that hold commas"
                )
            fields = dict.fromkeys((*required, *optional, *(extra or ())), "") | dict(
                zip(header, map(str.strip, row), strict=True)
            )
            for name in required:
                if not fields[name]:
                    raise ValueError(f"{table}, line {reader.line_num}: {name} is empty; fill it or remove the line")
            if "path" in required:
                fields["path"] = relative_path(fields["path"], root, f"{table}, line {reader.line_num}").as_posix()
            key = tuple(fields.get(name, "") for name in ("path", *distinct))
            first = lines.setdefault(key, reader.line_num)
            if first != reader.line_num:
                what = key[0] or " ".join(key)
                raise ValueError(f"{table}, lines {first} and {reader.line_num}: {what.strip()} twice; keep one")
            yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{table}, line {reader.line_num}: not a CSV table ({error})") from error


def _check_header(
    table: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str], extra: Sequence[str] | None
) -> None:
    known = (*required, *optional, *(extra or ()))
    wanted = f"the columns are {', '.join(required)}" + (f" and, if known, {', '.join(optional)}" if optional else "")
    for name, character in (("tabs", "\t"), ("semicolons", ";")):
        if len(header) == 1 and character in header[0]:
            raise ValueError(f"{table}: its fields are separated by {name}; save it with commas ({wanted})")
    repeated = sorted({name for name in header if header.count(name) > 1 and name in known})
    if repeated:
        raise ValueError(f"{table}: the column {repeated[0]} is named twice; each once ({wanted})")
    others = [name for name in header if name not in known]
    missing = ", ".join(name for name in (*required, *(extra or ())) if name not in header)
    listed = header if missing else others
    named = ", ".join(repr(name) if name in known else _suggest(name, known) for name in listed[:SHOWN]) or "nothing"
    named += f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    if missing:
        raise ValueError(f"{table}: no column {missing}; the first line names {named}; {wanted}")
    if others:
        keep = f", or store them with --extra {','.join(others[:SHOWN])}" if extra is not None else ""
        raise ValueError(f"{table}: columns that are not read: {named}; rename or remove them{keep}; {wanted}")


def _suggest(name: str, known: Sequence[str]) -> str:
    """Return the name in quotes, with the known column that it most likely means."""
    plain = "_".join(name.lower().split())
    meant = [column for column in known if plain in _OTHER_NAMES.get(column, ())]
    meant = meant or difflib.get_close_matches(plain, known, n=1)
    return f"{name!r} (did you mean {meant[0]}?)" if meant else repr(name)


def relative_path(listed: str, root: Path, where: str) -> Path:
    """Return a path as a list or table writes it, relative to `root`, which it may repeat.

    Raises ValueError, which names `where`, if it lies outside or is written with backslashes.
    """
    path = Path(listed)
    if "\\" in listed and not os.path.lexists(root / path):
        raise ValueError(f"{where}: {listed} has backslashes, as Windows writes paths; write / and a path below {root}")
    if path.is_absolute() and path.is_relative_to(root.absolute()):
        path = path.relative_to(root.absolute())
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{where}: path {listed!r} lies outside {root}; give a path inside the folder of images")
    return path
