"""What many tests share."""

import pytest

from tests.drawn import Drawn, draw_dataset

LONG = ("test_failures", "test_slurm", "test_evaluate", "test_world_size", "test_end_to_end")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first, so that two processes that share the files end together."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """16 train identities of 2 to 7 images in 8 shards, 6 test identities, 32 x 16 pixels. Only to be read."""
    return draw_dataset(tmp_path_factory.mktemp("drawn"))
