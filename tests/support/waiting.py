"""A training that waits in its sixth step until a test asks it to stop, however fast the machine is.

SIGNALLED in the environment holds the ranks that wait. As a script it is train.py, which waits if SIGNALLED is set, in
the first start of a Slurm job and in the first task of an array.
"""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path

from reid.training.preemption import POLL_S, StopRequest

WAITS = "waits for its signal"


def wait_in_step_6() -> None:
    agreed, calls = StopRequest.agreed, []

    def waiting(self: StopRequest) -> bool:
        calls.append(len(calls))
        if len(calls) == 6 and os.environ.get("RANK", "0") in os.environ["SIGNALLED"]:
            print(WAITS, flush=True)
            while not self.reason and not (self.file and self.file.exists()):
                time.sleep(0.01)
            time.sleep(POLL_S if self.file else 0)  # or `agreed` would not look for the file yet
        return agreed(self)

    StopRequest.agreed = waiting  # type: ignore[method-assign]


if __name__ == "__main__":
    first = {os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_TASK_ID")} == {"0"}
    if first and "SIGNALLED" in os.environ:
        wait_in_step_6()
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "train.py"), run_name="__main__")
