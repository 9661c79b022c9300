"""What the readers of all files make of damage: thousands of damaged files, and a table of the verdicts.

python -m tests.bench.fuzz                                all targets, 500 cases of each; minutes
python -m tests.bench.fuzz --target index --cases 5000    one of them, for longer
python -m tests.bench.fuzz --target index --case 17       one case, whose damaged files stay in --work

The exit status is 1 if there is a fault: an error that does not name the file, a stack trace, a hang, or a result that
silently differs though the format has a checksum. Each fault is printed with the number of its case.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.fuzz import FAULTS, VERDICTS, run_cases
from tests.support.fuzz_targets import make_targets, quick_readers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", default=[], help="part of a target's name; may be repeated")
    parser.add_argument("--cases", type=int, default=500, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="only this case")
    parser.add_argument("--work", type=Path, help="folder for damaged files; default: a temporary one")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.cases)
    numbers = numbers if options.case is None else range(options.case, options.case + 1)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, quick_readers():
        work = options.work or Path(folder, "work")
        rows = []
        for name, target in make_targets(Path(folder, "sound")).items():
            if options.target and not any(part in name for part in options.target):
                continue
            counts: Counter[str] = Counter()
            for case in run_cases(target, numbers, work):
                counts[case.verdict] += 1
                if case.verdict in FAULTS or options.case is not None:
                    print(case, flush=True)
            rows.append(f"| {name} | {counts.total()} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |")
            total += counts
    print(f"\n| target | cases | {' | '.join(VERDICTS)} |\n|{'---|' * (2 + len(VERDICTS))}")
    print("\n".join([*rows, f"| all | {total.total()} | {' | '.join(str(total[v]) for v in VERDICTS)} |"]))
    return int(any(total[verdict] for verdict in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
