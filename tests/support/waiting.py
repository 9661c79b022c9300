"""A training that waits in its sixth step for a test's signal, however fast the machine is; as a script it is train.py.

SIGNALLED in the environment holds the ranks that wait.
"""

from __future__ import annotations

import os
import runpy
import time

from reid.stopping import StopRequest

WAITS = "waits for its signal"


def wait_in_step_6() -> None:
    agreed, calls = StopRequest.agreed, []

    def waiting(self: StopRequest) -> bool:
        calls.append(len(calls))
        if len(calls) == 6 and os.environ.get("RANK", "0") in os.environ["SIGNALLED"]:
            print(WAITS, flush=True)
            while not self.reason:
                time.sleep(0.01)
        return agreed(self)

    StopRequest.agreed = waiting  # type: ignore[method-assign]


if __name__ == "__main__":
    wait_in_step_6()
    runpy.run_path("train.py", run_name="__main__")
