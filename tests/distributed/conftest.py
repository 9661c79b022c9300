from collections.abc import Iterator

import pytest

from tests.support.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four gloo processes; a test takes as many as it needs."""
    pool = Pool(4)
    yield pool
    pool.close()
