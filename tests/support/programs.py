"""Run programs in processes forked from one that has imported all they need, so that a start costs no imports.

Each rank gets the environment that torchrun would give it. What is about the launcher itself uses `launch`.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300  # against hangs
GRACE_S = 30  # from a launcher's SIGTERM to its SIGKILL, as torchrun's

CONTEXT = multiprocessing.get_context("forkserver")
# Not wandb: it makes a temporary folder when it is imported, which the first of the processes to end would remove.
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        "torchvision",
        "accelerate",
        "webdataset",
        "matplotlib.figure",
        "sklearn.manifold",
        "reid.training.train",
    ]
)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


class Program:
    """A program that runs on one or several ranks: `Program("train.py", "--dry_run=true", ranks=2).end()`.

    Args:
        name: a script at the repository's root, or a module that can be run (`reid.search`).
        arguments: what a user types after it.
        ranks: number of processes.
        environment: variables beside those of this process. Those that torch reads at its import have no effect.
        prepare: called first in each process; a function that can be imported.
    """

    def __init__(
        self,
        name: str,
        *arguments: str,
        ranks: int = 1,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self.output = tempfile.TemporaryDirectory()
        own = {**os.environ, **(environment or {})}
        if ranks > 1:
            own |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = []
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            log = str(Path(self.output.name) / f"rank-{rank}.log")
            process = CONTEXT.Process(target=_run, args=(name, list(arguments), {**own, **place}, log, prepare))
            process.start()
            self.processes.append(process)

    def pid(self, rank: int = 0) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def signal(self, number: signal.Signals, rank: int = 0) -> None:
        os.kill(self.pid(rank), number)

    def kill(self) -> None:
        """SIGKILL to all ranks and to the processes that they started."""
        for rank, process in enumerate(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid(rank), signal.SIGKILL)
            process.kill()  # it may not lead a process group yet
            process.join()

    def said(self) -> str:
        """What all ranks have written to stdout and stderr so far."""
        return "\n".join(path.read_text() for path in sorted(Path(self.output.name).iterdir()))

    def wait_for(self, ready: Callable[[], object]) -> None:
        """Return as soon as `ready()` is true; fail if the program ends before."""
        end = time.monotonic() + TIMEOUT_S
        while not ready():
            if any(process.exitcode is not None for process in self.processes) or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it ended or took too long before the test went on:\n{self.said()}")
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """Wait until all ranks have ended: the exit status of the first that failed, or 0, and all that was said.

        When a rank fails the others get SIGTERM, as from a launcher.
        """
        end, failed = time.monotonic() + TIMEOUT_S, 0
        while any(process.exitcode is None for process in self.processes):
            statuses = [process.exitcode for process in self.processes if process.exitcode]
            if statuses and not failed:
                failed, end = statuses[0], min(end, time.monotonic() + GRACE_S)
                for process in self.processes:
                    process.terminate()
            if time.monotonic() > end:
                self.kill()
                assert failed, f"it did not end within {TIMEOUT_S} s:\n{self.said()}"
            time.sleep(0.01)
        failed = failed or next((process.exitcode for process in self.processes if process.exitcode), 0)
        return failed, self.said()


def launch(*arguments: str) -> Program:
    """`accelerate launch` with these arguments: the launcher is forked, its ranks are interpreters that it starts."""
    return Program("accelerate.commands.accelerate_cli", "launch", *arguments)


def run_program(name: str, *arguments: str, **options: object) -> tuple[int, str]:
    """The exit status of a program and what it said."""
    return Program(name, *arguments, **options).end()  # type: ignore[arg-type]


def _run(
    name: str, arguments: list[str], environment: dict[str, str], log: str, prepare: Callable[[], object] | None
) -> None:
    """In the process of a rank: what an interpreter does from its start to its end."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # Linux's default, for the program's own processes
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    sys.argv = [name, *arguments]
    if prepare is not None:
        prepare()
    status = 0
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()  # multiprocessing leaves these out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
