"""How programs end: with one line instead of a stack trace for errors that the user can fix."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO, TypeVar, cast

from reid.data.shard_reader import DamagedData

Answer = TypeVar("Answer")
USER_ERROR = 2  # exit status of an error that the user can fix
STOPPED = 75  # exit status after a request to stop; EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as in shells
CLOSED_OUTPUT = 128 + signal.SIGPIPE  # exit status after `| head` has closed the output, as of other Unix tools
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # that request a stop


def call(action: Callable[[], Answer]) -> Answer:
    """Return what `action` returns; end the program with USER_ERROR on a ValueError or the loss of another process.

    It ends with CLOSED_OUTPUT, and prints nothing, if the program that reads the output has ended.
    """
    try:
        try:
            return _name_errors(action)
        finally:
            sys.stdout.flush()  # here: at the end of the interpreter, a closed pipe would be a stack trace
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
        if not closed:
            raise
        for stream in closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(CLOSED_OUTPUT)


def _is_closed_pipe(stream: TextIO) -> bool:
    """Return whether the program that reads a stream of this one has ended."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _name_errors(action: Callable[[], Answer]) -> Answer:
    """Return what `action` returns; print an error that the user can fix and exit with USER_ERROR.

    An error that all ranks share is printed by one process of each machine, since it may be the machine's.
    """
    rank, local_rank = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except ValueError as error:
        reason, everywhere = str(error), not isinstance(error, DamagedData)
    except RuntimeError as error:
        from reid.data.workers import explain_killed_worker
        from reid.distributed import explain_lost_rank

        lost = explain_killed_worker(error) or explain_lost_rank(error)
        if lost is None:
            raise
        reason, everywhere = lost, False
    if local_rank == "0" or not everywhere:
        print(f"error: {f'rank {rank}: ' if rank != '0' else ''}{reason}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR)


@contextlib.contextmanager
def convert_os_errors() -> Iterator[None]:
    """Raise ValueError instead of an OSError, such as a full disk or an absent folder; not if `| head` has ended."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ValueError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """argparse's, with errors of one line that name the nearest choice, and without abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
            message += "".join(f"; did you mean {choice}" for choice in near)
        self.exit(USER_ERROR, f"error: {self.prog}: {message}; --help describes all\n")


def name_program(module: str) -> str:
    """Return what --help calls a program: `reid shards` if it was started so, otherwise `module`."""
    return sys.argv[0] if sys.argv[0].startswith("reid ") else module


def ignore_closed_output() -> None:
    """Continue after the terminal, or the program that reads the output through a pipe, is gone; the output is lost."""
    sys.stdout, sys.stderr = (cast(TextIO, _OutputOrNothing(stream)) for stream in (sys.stdout, sys.stderr))


class _OutputOrNothing:
    """A text stream whose writes may fail."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
