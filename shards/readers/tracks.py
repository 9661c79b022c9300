"""A tracker's output: for each camera `<camera>.txt` or `.csv`, next to its frames `<camera>/` or its video."""

from pathlib import Path

from shards.readers.tracking import Footage, Selection, make_dataset, number_frames, read_rows
from shards.records import RawDataset, WrongLayoutError, check_folder, describe_folder, list_folder
from shards.video import is_video

NAME = "tracks"
NOTICE = "Footage of yours: its terms of use, and the rights of the people in it, hold for these shards, too."


def read(
    root: Path, ids: str | None = None, merge: Path | None = None, every: int = 1, min_height: float = 0.0
) -> RawDataset:
    """Read `root/<camera>.txt` or `.csv`, each with a folder `root/<camera>/` of frames or a video `root/<camera>.mp4`.

    The arguments are those of `make_dataset` and `Selection`. `merge` may be a file of `root`.
    """
    selection = Selection(every, min_height)
    wanted = "give --root a folder with <camera>.txt or .csv, and for each <camera>/ with frames or <camera>.mp4"
    check_folder(root, wanted)
    entries = list_folder(root)
    tables = [path for path in entries if path.suffix.lower() in (".txt", ".csv") and not path.name.startswith(".")]
    tables = [path for path in tables if merge is None or path.resolve() != merge.resolve()]
    footage: list[Footage] = []
    for table in tables:
        frames = [
            path
            for path in entries
            if (path.is_dir() and path.name == table.stem) or (is_video(path) and path.stem == table.stem)
        ]
        if len(frames) != 1:
            found = " and ".join(path.name for path in frames) or f"neither a folder {table.stem}/ nor a video"
            raise WrongLayoutError(f"{table}: needs its frames in one place; found {found}; {wanted}")
        if any(other.camera == table.stem for other in footage):
            raise ValueError(f"{table}: the camera {table.stem} has two tables of tracks; keep one")
        pictures = number_frames(frames[0]) if frames[0].is_dir() else frames[0]
        footage.append(Footage(table.stem, pictures, read_rows(table)))
    if not footage:
        raise WrongLayoutError(f"{root}: no table of tracks; it holds {describe_folder(root)}; {wanted}")
    return make_dataset(NAME, root, NOTICE, footage, selection, ids, merge)
