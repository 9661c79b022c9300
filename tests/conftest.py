"""What many tests share, and what makes a test's result the same on every machine."""

import os

# Before torch is imported; processes that tests start inherit them.
os.environ["OMP_NUM_THREADS"] = "1"  # ranks share the cores; sums are the same in each process
os.environ["ACCELERATE_USE_CPU"] = "true"  # figures are compared between programs that may and may not see a GPU
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # bfloat16 on AMX: see reid/precision.py
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = "127.0.0.1,localhost"  # test servers

import pytest
from hypothesis import settings

from tests.support.drawn import Drawn, draw_dataset

# Slow files start first; otherwise one process would still run them after the others have ended.
SLOW = ("test_slurm", "test_failures", "test_end_to_end", "test_evaluate", "test_clusters", "test_world_size")

settings.register_profile("machine", deadline=None, derandomize=True, database=None)
settings.load_profile("machine")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """16 train identities of 2 to 7 images in 8 shards, 6 test identities, 32 x 16 pixels. Only to be read."""
    return draw_dataset(tmp_path_factory.mktemp("drawn"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOW)))
