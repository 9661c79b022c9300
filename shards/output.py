"""The folder that a build writes: a temporary one next to it, which is renamed at the end."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from reid.data.manifest import MANIFEST_NAME, load_manifest
from reid.files import hold, make_folder

FIX = "nothing was built; make room or give another --out"
# The name begins every key: WebDataset ends a key at its first dot, and a tar header has 100 characters for a name.
_DATASET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def check_name(dataset: str) -> None:
    """Raise ValueError if it cannot be the name of a dataset."""
    if not _DATASET_NAME.fullmatch(dataset):
        raise ValueError(
            f"--dataset {dataset!r}: use 1 to 40 letters, digits, '-' and '_', and begin with a letter or digit"
        )


@contextmanager
def replace_folder(out: Path, dataset: str) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` at the end of the block; an error in the block leaves `out` as it was.

    Raises ValueError if another process builds there, or `out` has files other than an earlier build of the dataset.
    """

    def refuse(holder: str) -> NoReturn:
        raise ValueError(f"{out}: {holder} is building there; wait for it or give another --out")

    make_folder(out.parent)
    with hold(out.with_name(f".{out.name}.lock"), refuse):
        temporary, old = out.with_name(f".{out.name}.building"), out.with_name(f".{out.name}.old")
        _clear_leftovers(out, temporary, old)
        _check_out(out, dataset)
        try:
            temporary.mkdir()
            yield temporary
            if out.exists():
                out.rename(old)
            temporary.rename(out)
        finally:
            _clear_leftovers(out, temporary, old)


def _clear_leftovers(out: Path, temporary: Path, old: Path) -> None:
    """Remove the files of a failed or killed build, and restore the earlier build if it was already moved."""
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_out(out: Path, name: str) -> None:
    """Raise ValueError unless `out` is missing, empty, or an earlier build of the same dataset without other files."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    fix = "give another --out, or remove it yourself"
    if not out.is_dir():
        raise ValueError(f"{out}: is a file, not a folder; {fix}")
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"{out}: is not empty and was not built by this program; {fix}")
    try:
        earlier = load_manifest(out)
    except ValueError as error:
        raise ValueError(f"{out}: holds shards that cannot be read; {fix} ({error})") from error
    if earlier.dataset != name:
        raise ValueError(f"{out}: holds shards of {earlier.dataset!r}, not {name!r}; {fix}")
    known = {MANIFEST_NAME} | {shard.name for shard in earlier.shards}
    others = sorted(path.name for path in out.iterdir() if path.name not in known)
    if others:
        raise ValueError(f"{out}: besides the shards there is {others[0]!r}, which a build would delete; {fix}")
