"""reid/training/preemption.py and the output of a program: what asks a run to stop, and what must not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import pytest

from reid.program import ignore_closed_output
from reid.training.preemption import ACCELERATE, NO_LAUNCHER, TORCHRUN, StopRequest, find_launcher, stop_signals


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TORCHRUN, ACCELERATE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", [TORCHRUN, ACCELERATE])
def test_a_run_stops_when_its_launcher_has_ended(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "x")
    stop = StopRequest(launcher=find_launcher())
    assert not stop.agreed()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.agreed() and stop.reason == NO_LAUNCHER
    stop.close()


def test_a_run_without_a_launcher_survives_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(launcher=find_launcher())
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not stop.agreed()
    stop.close()


def test_a_closed_terminal_stops_a_run_unless_it_was_started_with_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        assert signal.SIGHUP in stop_signals()
        stop = StopRequest()
        signal.raise_signal(signal.SIGHUP)
        assert stop.agreed() and stop.reason == "SIGHUP"
        stop.close()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in stop_signals()
        monkeypatch.setenv(TORCHRUN, "x")  # forwards it, ignored or not, and then kills
        assert signal.SIGHUP in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_continues_when_nobody_reads_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", broken)
    with pytest.raises(BrokenPipeError):
        print("lost")
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back afterwards
    ignore_closed_output()
    print("lost", flush=True)
    assert not sys.stdout.isatty()
    with contextlib.suppress(BrokenPipeError):
        broken.close()
