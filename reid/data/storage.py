"""Where shards lie: a local folder, or a URL that the user gives. Manifests hold plain names only, never places.

A remote file is fetched whole, into a temporary file that has no name, before its first byte is read: a reader that
pauses then holds no connection, and a server that stalls is told from it. The tools are `curl` (http, https), `gsutil`
(gs) and `aws` (s3), which get the URL as one argument, without a shell. Credentials belong into their settings, not
into the URL. What failed is tried again from its beginning, here for curl, which like WebDataset's own opener for http
would put the file behind the part that had come; the others try again themselves.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TOOLS = {"http": "curl", "https": "curl", "gs": "gsutil", "s3": "aws"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
BUFFER_BYTES = 1 << 16  # what is larger, as most identities are, is read past the buffer: copied once
CONNECT_S, STALL_S = 30, 60  # to reach a server, and without a byte from it
PAUSES_S = (1, 5)  # before a failed fetch is tried again
_FINAL = re.compile(r"returned error: 4(?!08|29)")  # of curl: the server has no such file, or not for us


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
def open_file(root: str | Path, name: str) -> Iterator[IO[bytes]]:
    """The file `name` of `root`, to be read from its beginning. OSError or ValueError if that fails."""
    place = place_of(root, name)
    if not is_remote(root):
        with open(place, "rb", buffering=BUFFER_BYTES) as file:
            yield file
        return
    with tempfile.TemporaryFile(buffering=BUFFER_BYTES) as file:
        _fetch(place, file)
        file.seek(0)
        yield file


def _fetch(place: str, into: IO[bytes]) -> None:
    """The whole file at a URL, tried again where that may help. OSError, which names it and says what the tool says."""
    command = _command(place)
    for pause_s in (*(PAUSES_S if command[0] == "curl" else ()), None):
        status, said = _run(command, into)
        if not status:
            return
        if pause_s is None or _FINAL.search(said):
            raise OSError(f"{command[0]} could not fetch {place} (exit status {status}: {said})")
        time.sleep(pause_s)
        into.seek(0)
        into.truncate()


def _run(command: list[str], into: IO[bytes]) -> tuple[int, str]:
    """Exit status and last words of a command whose output is put behind what `into` holds."""
    from webdataset.gopen import Pipe

    with tempfile.TemporaryFile() as errors:
        pipe = Pipe(command, mode="rb", stderr=errors)
        try:
            shutil.copyfileobj(pipe.stream, into, 1 << 20)
            status = pipe.proc.wait()
        finally:
            pipe.ignore_errors = True  # said by the caller, or killed here: this process is stopped or its disk full
            pipe.proc.kill()
            pipe.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    return status, said[-1] if said else "it says nothing"


def _command(place: str) -> list[str]:
    """What writes the file at a URL to its output. gsutil and aws have time limits of their own."""
    tool = TOOLS[place.split(":", 1)[0].lower()]
    if tool == "gsutil":
        return [tool, "cat", place]
    if tool == "aws":
        return [tool, "s3", "cp", "--only-show-errors", place, "-"]
    limits = ["--connect-timeout", str(CONNECT_S), "--speed-limit", "1", "--speed-time", str(STALL_S)]
    return [tool, "--fail", "--silent", "--show-error", "--location", *limits, place]


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
