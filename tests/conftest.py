"""What many tests share."""

import pytest

from tests.drawn import Drawn, draw_dataset


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """16 train identities of 2 to 7 images in 8 shards, 6 test identities, 32 x 16 pixels. Only to be read."""
    return draw_dataset(tmp_path_factory.mktemp("drawn"))
