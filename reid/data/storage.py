"""Where shards are: a local folder, or a URL that the user gives. Manifests hold plain file names only.

A remote file is fetched entirely, into a temporary file without a name, before its first byte is read: a reader that
pauses then holds no connection, and a server that stalls is distinguished from such a reader. The tools are `curl`
(http, https), `gsutil` (gs) and `aws` (s3). They get the URL as one argument, without a shell; credentials belong in
their settings, not in the URL. gsutil and aws retry by themselves. curl is restarted here, because with --retry it
appends to the part that it had already written.

fsspec would need aiohttp, s3fs and gcsfs (34 packages), does not retry http, and refuses to run in forked processes.
"""

import io
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reid.files import open_regular_file

TOOLS = {"http": "curl", "https": "curl", "gs": "gsutil", "s3": "aws"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
BUFFER_BYTES = 1 << 13  # for descriptions; what is not in the buffer of a larger read is copied once
CONNECT_S, STALL_S = 30, 60  # longest time to reach a server, and longest time without a byte from it
PAUSES_S = (1, 5)  # before each retry of a failed fetch
_FINAL = re.compile(r"returned error: 4(?!08|29)")  # curl: there is no such file, or access is denied


def is_remote(root: str | Path) -> bool:
    """Return whether `root` is a URL. Raises ValueError for a URL with another scheme, credentials or a query."""
    found = _SCHEME.match(str(root))
    if not found or len(found[1]) == 1:  # one letter is a drive
        return False
    scheme = found[1].lower()
    if scheme not in TOOLS:
        raise ValueError(f"data root {scheme}:…: only local folders and {', '.join(TOOLS)} URLs are read")
    if re.search(r"[@?#\s'\"\\]", str(root)):
        raise ValueError(
            f"data root {scheme}://…: give a plain URL of a folder, without credentials, query, quotes or spaces; "
            f"credentials belong in the settings of {TOOLS[scheme]}"
        )
    if shutil.which(TOOLS[scheme]) is None:
        raise ValueError(f"data root {root}: the program {TOOLS[scheme]!r} fetches {scheme} URLs and is not installed")
    return True


def full_path(root: str | Path, name: str) -> str:
    """Return the absolute path or the URL of the file `name` of `root`."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else str(Path(root).absolute() / name)


@contextmanager
def open_file(root: str | Path, name: str) -> Iterator[IO[bytes]]:
    """Open the file `name` of `root` for reading. Raises OSError or ValueError if it cannot be read."""
    path = full_path(root, name)
    if not is_remote(root):
        with open_regular_file(path, BUFFER_BYTES) as file:
            yield file
        return
    with tempfile.TemporaryFile(buffering=0) as raw:
        _fetch(path, raw)
        yield io.BufferedReader(raw, BUFFER_BYTES)


def _fetch(url: str, into: io.FileIO) -> None:
    """Write the file at a URL into an empty file, which is then at its beginning.

    Raises OSError, with the URL and what the tool reported, if all tries failed or another try cannot help.
    """
    command = _command(url)
    for pause_s in (*(PAUSES_S if command[0] == "curl" else ()), None):
        tool = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=into, stderr=subprocess.PIPE)
        into.seek(0)
        if not tool.returncode:
            return
        message = (tool.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        if pause_s is None or _FINAL.search(message):
            raise OSError(f"{command[0]} could not fetch {url} (exit status {tool.returncode}: {message})")
        time.sleep(pause_s)
        into.truncate()


def _command(url: str) -> list[str]:
    """Return the command that writes the file at a URL to its output. gsutil and aws have time limits of their own."""
    tool = TOOLS[url.split(":", 1)[0].lower()]
    if tool == "gsutil":
        return [tool, "cat", url]
    if tool == "aws":
        return [tool, "s3", "cp", "--only-show-errors", url, "-"]
    limits = ["--connect-timeout", str(CONNECT_S), "--speed-limit", "1", "--speed-time", str(STALL_S)]
    return [tool, "--fail", "--silent", "--show-error", "--location", *limits, url]


def read_file(root: str | Path, name: str) -> bytes:
    """Return the content of a small file."""
    with open_file(root, name) as file:
        return file.read()


def file_version(root: str | Path, name: str) -> tuple[int, ...] | None:
    """Return a value that changes when a local file is replaced; None for a remote file."""
    if is_remote(root):
        return None
    status = Path(full_path(root, name)).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
