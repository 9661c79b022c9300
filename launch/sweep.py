"""Door to reid.sweeps, so that `python launch/sweep.py` works from the root."""

import sys

from reid.sweeps.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
