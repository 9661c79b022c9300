"""A pool of gloo processes for the whole test session."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.programs import CONTEXT, TIMEOUT_S


class Pool:
    """`run(world_size, function, *args)` calls function(*args) on each rank of a fresh process group.

    Functions must be importable by name; results come back as a list in rank order. An exception on any rank fails the
    test with that rank's stack trace; a rank that does not answer in time fails it too.
    """

    def __init__(self, size: int) -> None:
        self.connections: list[Connection] = []
        self.processes = []
        for _ in range(size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.connections.append(ours)
            self.processes.append(process)

    def run(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            store = f"file://{Path(folder) / 'store'}"
            for rank in range(world_size):
                self.connections[rank].send((function, args, rank, world_size, store))
            answers = [self.receive(rank) for rank in range(world_size)]
        for rank, (ok, value) in enumerate(answers):
            if not ok:
                raise AssertionError(f"rank {rank} of {world_size} failed:\n{value}")
        return [value for _, value in answers]

    def receive(self, rank: int) -> tuple[bool, Any]:
        if not self.connections[rank].poll(TIMEOUT_S + 30):
            return False, f"no answer within {TIMEOUT_S + 30} s"
        answer: tuple[bool, Any] = self.connections[rank].recv()
        return answer

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5)
            process.kill()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, args, rank, world_size, store = connection.recv()
        except EOFError:
            return
        try:
            dist.init_process_group(
                "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=TIMEOUT_S)
            )
            answer = (True, function(*args))
        except Exception:  # the stack trace travels to the test, which fails with it
            answer = (False, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        connection.send(answer)
