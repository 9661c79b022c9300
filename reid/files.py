"""Files: safe reading, a lock that one process holds at a time, atomic writes, folders checked before the work."""

import codecs
import contextlib
import errno
import hashlib
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

# What flock reports on file systems without locks, for example some Lustre mounts.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Held(Exception):
    """Another process holds the lock; the text names it, if it is known."""


@contextlib.contextmanager
def hold(path: Path, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold the lock file `path` during the block, and remove the file afterwards.

    The system releases the lock when the process ends, even if it is killed. On a file system without locks the block
    runs unguarded.

    Args:
        path: the lock file. Its folder must exist.
        on_wait: called once with the holder's name before waiting for it. If None, do not wait.

    Raises:
        Held: another process holds the lock, and `on_wait` is None.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_text(errors="replace") or holder
        if on_wait is None:
            raise Held(holder) from None
        on_wait(holder)
        lock.acquire()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: a waiting process then makes a new file, which stays
        lock.release()


def open_regular_file(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a file for reading in binary mode.

    Raises OSError if it cannot be read or is no regular file: a FIFO would block forever, a device may never end.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)  # before opening, which can already act on a device
    if kind != stat.S_IFREG:
        named = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}.get(kind, "a device")
        raise OSError(errno.EINVAL, f"is {named}, not a regular file", str(path))
    # O_NONBLOCK: or a FIFO that took the file's place since would block.
    return open(path, "rb", buffering, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular_file(path: str | Path, max_bytes: int = 1 << 32) -> bytes:
    """Return the content of a file. Raises OSError as `open_regular_file` does, or if it has more than max_bytes."""
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"has {size} bytes, more than {max_bytes}", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """Return a text that a person wrote: UTF-8, with or without a byte-order mark.

    Raises ValueError, which names the file and the line, if it cannot be read, is not UTF-8, or has a NUL character.
    """
    try:
        data = read_regular_file(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: not UTF-8 but UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: a NUL character; the file is damaged or no text: write it again")
    return text


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Return whether a file lies in a folder after all links and `..` are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # Path.resolve raises on loops


def warn_of_links(paths: Iterable[Path], folder: str | Path) -> str | None:
    """Return a warning with the number of images that lie outside the folder because a symbolic link leads there."""
    inside = cache(lambda path: is_inside(path, folder))  # of 100,000 images, only folders and links are resolved
    outside = sum(not inside(path if os.path.islink(path) else path.parent) for path in paths)
    if not outside:
        return None
    return f"{outside} image(s) lie outside {folder}: symbolic links lead there; check that this is intended"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace the file `path` so that a reader, also after a crash, finds all of the old content or all of the new.

    Raises OSError if it cannot be written. The old file is then unchanged and no temporary file remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path, flag: str = "--out") -> None:
    """Make a folder and check that files can be written into it.

    Raises ValueError, which names `flag`, if that fails: at the start, not after an hour of work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}; give another {flag}") from error


def check_writable(folder: Path, flag: str = "--runs") -> None:
    """Check as `make_folder` does, and remove the folders that did not exist before."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        make_folder(folder, flag)
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
