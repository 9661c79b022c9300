"""Damaged files of every kind are refused by name, or change nothing. `python -m tests.bench.fuzz` tries more."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzz import FAULTS, Target, run_cases
from tests.support.fuzz_targets import make_targets, quick_readers

CASES = 12  # of each target


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with quick_readers():
        yield make_targets(tmp_path_factory.mktemp("sound"))


def test_damage_is_refused_by_name_or_changes_nothing(targets: dict[str, Target], tmp_path: Path) -> None:
    cases = [case for target in targets.values() for case in run_cases(target, range(CASES), tmp_path)]
    faults = [str(case) for case in cases if case.verdict in FAULTS]
    assert not faults, f"{len(faults)} of {len(cases)} cases:\n" + "\n".join(faults)
