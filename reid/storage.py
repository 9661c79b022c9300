"""Where shards lie: a local folder, or a URL that the user gives. Manifests hold plain names only, never places.

Remote files come through WebDataset's openers, which run `curl` (http, https), `gsutil` (gs) or, added here, `aws`
(s3) with the URL as one argument, without a shell. Credentials belong into those tools' settings, not into the URL.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from webdataset.gopen import Pipe, gopen

TOOLS = {"http": "curl", "https": "curl", "gs": "gsutil", "s3": "aws"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
BUFFER_BYTES = 1 << 20


def is_remote(root: str | Path) -> bool:
    """Whether `root` is a URL. ValueError on one that is not read: another scheme, credentials, or a query."""
    found = _SCHEME.match(str(root))
    if not found or len(found[1]) == 1:  # one letter: a drive
        return False
    scheme = found[1].lower()
    if scheme not in TOOLS:
        raise ValueError(f"data root {scheme}:…: only local folders and {', '.join(TOOLS)} URLs are read")
    if re.search(r"[@?#\s'\"\\]", str(root)):
        raise ValueError(
            f"data root {scheme}://…: give a plain URL of a folder, without credentials, query, quotes or blanks; "
            f"credentials belong into the settings of {TOOLS[scheme]}"
        )
    if shutil.which(TOOLS[scheme]) is None:
        raise ValueError(f"data root {root}: the program {TOOLS[scheme]!r} fetches {scheme} URLs and is not installed")
    return True


def place_of(root: str | Path, name: str) -> str:
    """Absolute path or URL of the file `name` of `root`, for people and for opening."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else str(Path(root).resolve() / name)


@contextmanager
def open_file(root: str | Path, name: str) -> Iterator[BinaryIO]:
    """The file `name` of `root`, to be read from its beginning. OSError or ValueError if that fails."""
    place = place_of(root, name)
    if not is_remote(root):
        with open(place, "rb", buffering=BUFFER_BYTES) as file:
            yield file
        return
    if place.startswith("s3:"):
        pipe = Pipe(["aws", "s3", "cp", "--only-show-errors", place, "-"], mode="rb", bufsize=BUFFER_BYTES)
    else:
        pipe = gopen(place, "rb", bufsize=BUFFER_BYTES)
    try:
        yield _Whole(pipe, place)  # type: ignore[misc]
    finally:
        pipe.ignore_errors = True  # who stops in the middle of a file breaks the tool's pipe, which is no error
        pipe.proc.kill()
        pipe.close()


class _Whole:
    """A pipe whose `read` says so when the tool behind it failed, rather than that the file ends there."""

    def __init__(self, pipe: Pipe, place: str) -> None:
        self.pipe, self.place = pipe, place

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.pipe.stream.read(size)
        if size < 0 or len(data) < size:
            status = self.pipe.proc.wait()
            if status:
                tool = TOOLS[self.place.split(":", 1)[0].lower()]
                raise OSError(f"{tool} could not fetch {self.place} (exit status {status})")
        return data


def read_file(root: str | Path, name: str) -> bytes:
    """All of a small file."""
    with open_file(root, name) as file:
        return file.read()


def stamp_of(root: str | Path, name: str) -> tuple[int, ...] | None:
    """Something that changes when a local file is replaced; None for a remote one."""
    if is_remote(root):
        return None
    status = Path(place_of(root, name)).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
