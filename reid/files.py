"""Files: a lock that one process holds at a time, and folders and files that can be written or say why not."""

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class Held(Exception):
    """Another process holds the lock; the text says which, as far as it is known."""


@contextmanager
def hold(path: Path, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold the lock file `path` (its folder exists) for the length of the block, and remove the file afterwards.

    on_wait: called once with the holder's name before waiting for it; without it Held is raised instead of waiting.
    A file system that has no locks (some Lustre mounts) gives none: the block then runs unguarded.
    """
    handle = _acquire(path, on_wait)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before letting go: whoever waits sees that its file is gone and opens a new one
        os.close(handle)


def _acquire(path: Path, on_wait: Callable[[str], object] | None) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(handle, wait=False):
                holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                if on_wait is None:
                    raise Held(holder)
                on_wait(holder)
                on_wait = _silent  # once is enough
                _lock(handle, wait=True)
            if _is_current(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _is_current(handle: int, path: Path) -> bool:
    """Whether the file that was locked is still the one that others would open."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _silent(holder: str) -> None:
    return None


def check_writable(folder: Path, flag: str = "--runs") -> None:
    """Raise ValueError, which names `flag`, if nothing can be written into `folder`. Leave no folder behind."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}; give another {flag}") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def write_file(path: Path, text: str) -> None:
    """ValueError, which all ranks may share, where it cannot be written."""
    try:
        path.write_text(text)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}; make room, or give another --runs"
        ) from error


def make_folder(folder: Path) -> None:
    """ValueError where it cannot be made or written to: before an hour of work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}; give another --out") from error
